"""The scripts that make an environment: which Python they take, and what installs into it."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from conftest import REPO

SYSTEM = "/usr/bin:/bin"


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def find(folder: Path) -> str:
    command = ["bash", REPO / "scripts/find_python.sh", "3.99", "3.98"]
    return subprocess.run(command, env={"PATH": f"{folder}:{SYSTEM}"}, capture_output=True, text=True).stdout


def test_the_newest_python_that_works_is_taken(tmp_path: Path) -> None:
    assert find(tmp_path) == ""
    write_program(tmp_path / "python3.98", "exit 0")
    assert find(tmp_path) == "python3.98\n"
    write_program(tmp_path / "python3.99", "exit 127")  # as pyenv's stand-in for a version that is not switched on
    assert find(tmp_path) == "python3.98\n"
    write_program(tmp_path / "pyenv", f'[ "$2" != 3.99 ] || echo {tmp_path}/versions')
    write_program(tmp_path / "versions/bin/python", "exit 0")
    assert find(tmp_path) == f"{tmp_path}/versions/bin/python\n"


@pytest.mark.parametrize("uv_works", [True, False])
def test_pip_installs_where_uv_cannot(tmp_path: Path, uv_works: bool) -> None:
    project = tmp_path / "project"
    (project / "scripts").mkdir(parents=True)
    for name in ("scripts/setup.sh", "constraints.txt", *(path.name for path in REPO.glob("requirements*.txt"))):
        shutil.copy(REPO / name, project / name)
    write_program(project / "other/bin/python", f'echo "$@" >>{tmp_path}/pip')
    (project / "other/bin/activate").write_text("")
    write_program(tmp_path / "uv", f'echo "$@" >>{tmp_path}/uv.log\nexit {0 if uv_works else 2}')
    line = ["bash", "-c", "source scripts/setup.sh requirements.txt"]
    for _ in range(2):  # the second time there is nothing to do
        done = subprocess.run(line, env={"PATH": f"{tmp_path}:{SYSTEM}", "VENV": "other"}, cwd=project)
        assert done.returncode == 0
    (told,) = (tmp_path / "uv.log").read_text().splitlines()
    assert told.startswith("pip install") and "other/bin/python" in told
    assert told.endswith("--requirement requirements.txt --constraint constraints.txt")
    installed = [call for call in (tmp_path / "pip").read_text().splitlines() if " install " in call]
    assert len(installed) == (0 if uv_works else 1)
    assert all(call.endswith("--requirement requirements.txt --constraint constraints.txt") for call in installed)


def test_a_python_that_is_too_old_is_told(tmp_path: Path) -> None:
    write_program(tmp_path / "python2", "exit 1")
    (tmp_path / "scripts").mkdir()
    shutil.copy(REPO / "scripts/setup.sh", tmp_path / "scripts")
    (tmp_path / "requirements.txt").touch()
    line = ["bash", "-c", "source scripts/setup.sh requirements.txt"]
    env = {"PATH": f"{tmp_path}:{SYSTEM}", "PYTHON": "python2"}
    done = subprocess.run(line, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "needs Python 3.11 to 3.13 with venv, and python2 is not" in done.stderr


@pytest.mark.parametrize(("made_of", "asked"), [("", "-cuda12"), ("-dev", "-cuda12"), ("-cuda12", "-cuda13")])
def test_one_environment_has_one_dali(tmp_path: Path, made_of: str, asked: str) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(REPO / "scripts/setup.sh", tmp_path / "scripts")
    write_program(tmp_path / ".venv/bin/python", "exit 1")
    for name in (f"requirements{asked}.txt", f".venv/installed-requirements{made_of}.txt"):
        (tmp_path / name).touch()
    line = ["bash", "scripts/setup.sh", f"requirements{asked}.txt"]
    done = subprocess.run(line, env={"PATH": SYSTEM}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert f".venv holds requirements{made_of}.txt, whose DALI cannot live beside that of" in done.stderr


def test_the_extras_for_cuda_are_those_of_the_requirements() -> None:
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for cuda in ("cuda12", "cuda13"):
        lines = (REPO / f"requirements-{cuda}.txt").read_text().splitlines()
        assert extras[cuda] == [line for line in lines if line.startswith(f"jax[{cuda}]")]


def test_what_is_no_requirements_file_is_told_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(REPO / "scripts/setup.sh", tmp_path / "scripts")
    (tmp_path / "requirements-dev.txt").touch()
    for args, told in (([], "no file"), (["--help"], "--help")):
        done = subprocess.run(
            ["bash", "scripts/setup.sh", *args], env={"PATH": SYSTEM}, cwd=tmp_path, capture_output=True, text=True
        )
        wanted = f"error: {told} is no requirements file; give one of requirements-dev.txt\n"
        assert (done.returncode, done.stderr) == (2, wanted)
    assert not (tmp_path / ".venv").exists()
