"""Every command of the README, in order, in a copy of the project; and the files that describe the project."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

from rn50_jax.rules import RULES

Block = tuple[str, str, str]


def blocks(page: Path) -> list[Block]:
    """Language, what it needs, and text of each fenced block."""
    return re.findall(r"^```(\w+)( needs=\w+)?\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


README = blocks(REPO / "README.md")
PAGES = [page.name for page in sorted((REPO / "docs").glob("*.md")) if any(b[:2] == ("bash", "") for b in blocks(page))]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh copy of the project, with this environment as its .venv."""
    root = tmp_path_factory.mktemp("project")
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
    return root


def run_blocks(page: list[Block], project: Path, env: dict[str, str]) -> int:
    """Runs each line of the blocks that need nothing; returns how many lines there were."""
    lines = [line for language, needs, text in page if language == "bash" and not needs for line in text.splitlines()]
    # As a user has it: XLA's own flags, and huge pages.
    env = {name: value for name, value in env.items() if name not in ("XLA_FLAGS", "RN50_JAX_HUGE_PAGES")}
    for line in lines:
        if line == "./scripts/test.sh":
            continue  # this is it
        bash = ["bash", "-c", f"[ -f .venv/bin/activate ] && source .venv/bin/activate; {line}"]
        done = subprocess.run(bash, cwd=project, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    return len(lines)


def test_readme_commands_run(project: Path, process_env: dict[str, str]) -> None:
    assert run_blocks(README, project, process_env) >= 15
    # The first command was the quick start: it learns to read, and draws its curves.
    lines = [json.loads(line) for line in (project / "runs/quickstart/metrics.jsonl").read_text().splitlines()]
    final = [line for line in lines if "val.top1" in line][-1]
    assert (final["epoch"], final["val.images"]) == (8, 297)
    assert final["val.top1"] >= 96
    assert (project / "runs/quickstart/curves.png").stat().st_size > 10_000
    assert json.loads((project / "result.json").read_text())["val.top1"] >= final["val.top1"]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_documents_run(page: str, project: Path, process_env: dict[str, str]) -> None:
    assert run_blocks(blocks(REPO / "docs" / page), project, process_env)


def test_other_commands_are_marked_and_well_formed() -> None:
    pages = [README, *(blocks(REPO / "docs" / page.name) for page in (REPO / "docs").glob("*.md"))]
    others = [
        line
        for page in pages
        for language, needs, text in page
        if language == "bash" and needs
        for line in text.splitlines()
    ]
    assert others
    for line in others:
        line = line.removeprefix("taskset -c 1 ")
        command = re.search(r"(?:^|-- )(?:python -m (rn50_jax\.\w+)|(?:python )?(?:\./)?(scripts/\w+\.\w+)) ", line)
        assert command, line
        file = command[2] or command[1].replace(".", "/") + ".py"
        assert (REPO / file).is_file(), line
        for config in re.findall(r"configs/\w+\.py", line):
            assert (REPO / config).is_file()


def test_links_of_the_documents_exist() -> None:
    for page in (REPO / "README.md", *(REPO / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)


def test_every_option_of_the_recipe_is_explained() -> None:
    page = (REPO / "docs/recipe.md").read_text()
    for key in RULES:
        if key.startswith(("recipe.", "model.")) and key not in ("model.num_classes", "model.pretrained_weights"):
            assert re.search(re.escape(key.removeprefix("model.")) + r"\b", page), key


def test_pages_made_from_the_code_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, REPO / "scripts/make_docs.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_requirements_for_cuda_12_list_the_same_packages() -> None:
    def packages(name: str) -> list[str]:
        lines = (REPO / name).read_text().splitlines()
        return [
            line.replace("[cuda12]", "").replace("cuda120", "cuda130") for line in lines if not line.startswith("#")
        ]

    assert packages("requirements-cuda12.txt") == packages("requirements.txt")


def test_constraints_pin_every_requirement() -> None:
    pinned = {line.split("==")[0] for line in (REPO / "constraints.txt").read_text().splitlines() if "==" in line}
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (REPO / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r")):
                assert re.split(r"[\[<>=]", line)[0] in pinned, line


@pytest.mark.parametrize(
    ("pattern", "home"),
    [
        (r"^\s*(import|from) orbax", {"checkpoint.py"}),
        (r"^\s*(import|from) nvidia", {"dali.py", "verify.py"}),
        (r"jax\.pmap\(|jax\.shard_map\(", {"parallel.py"}),
        (r"jax\.distributed\.initialize|multihost_utils", {"hosts.py"}),
        (r"^\s*(import|from) torch", {"weight_files.py", "torch_peer.py"}),
        (r"^\s*(import|from) safetensors", {"weight_files.py"}),
    ],
)
def test_what_has_one_home_stays_there(pattern: str, home: set[str]) -> None:
    files = (REPO / "rn50_jax").rglob("*.py")
    assert {path.name for path in files if re.search(pattern, path.read_text(), re.MULTILINE)} == home


def test_no_room_is_crowded() -> None:
    for path in (REPO / "rn50_jax").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 320, path
