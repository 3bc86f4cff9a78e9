"""A copy of the project, as a user has it."""

import shutil
import subprocess
import sys
from pathlib import Path

from conftest import REPO


def copy_project(root: Path) -> None:
    """A fresh copy of the project, with this environment as its .venv."""
    for folder in ("rn50_jax", "configs", "scripts"):
        shutil.copytree(REPO / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (REPO / "constraints.txt", *REPO.glob("requirements*.txt")):
        shutil.copy2(file, root)
    wanted = subprocess.run(["bash", "-c", "cat constraints.txt requirements*.txt | cksum"], cwd=root, stdout=-1)
    venv = root / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(sys.executable)
    (venv / "bin/activate").write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    (venv / "installed-requirements.txt").write_bytes(wanted.stdout)
