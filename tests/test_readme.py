"""Every command of the README and of docs/, in order, in a copy of the project; and the files that describe it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO, Shared
from helpers.project import copy_project
from helpers.runs import PATIENCE, read_lines

from rn50_jax.config.schema import options

Block = tuple[str, str, str]
QUICKSTART = "./scripts/quickstart.sh"
# What makes the copy's networks and runs small: seconds instead of minutes. What their size decides is in
# `test_the_quick_start_in_full`.
SMALL = {
    "default": "config.model.update(arch='resnet18', stages=(1, 1), width=8)",
    "quickstart": "config.epochs, config.recipe.lr = 2, 0.2",
    "linear_probe": "config.finetune.freeze = ('stem', 'layer1', 'layer2')",
}
SMALL_RECIPE = """

full_config = get_config


def get_config(*variant: str) -> ConfigDict:
    config = full_config(*variant)
    {change}
    return config
"""


def blocks(page: Path) -> list[Block]:
    """Language, what it needs, and text of each fenced block."""
    return re.findall(r"^```(\w+)( needs=\w+)?\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The lines that need nothing special."""
    return [line for lang, needs, text in blocks(page) if (lang, needs) == ("bash", "") for line in text.splitlines()]


def write_files(page: Path, project: Path) -> None:
    """Writes what a page tells to write, its blocks with `file=NAME`."""
    for name, text in re.findall(r"^```\w+ file=(\S+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        (project / name).write_text(text)


README = commands(REPO / "README.md")
PAGES = [page.name for page in sorted((REPO / "docs").glob("*.md")) if commands(page)]


def run_lines(lines: list[str], project: Path, env: dict[str, str]) -> None:
    for line in lines:
        bash = ["bash", "-c", f"source .venv/bin/activate; {line}"]
        done = subprocess.run(bash, cwd=project, env=env, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, (line, done.stdout, done.stderr)


@pytest.fixture
def project(shared: Shared, process_env: dict[str, str], tmp_path: Path) -> Path:
    """A copy of the project of this test's own, in which the quick start, made small, has run."""

    def make(folder: Path) -> None:
        copy_project(folder)
        for name, change in SMALL.items():
            with (folder / f"configs/{name}.py").open("a") as file:
                file.write(SMALL_RECIPE.format(change=change))
        run_lines([QUICKSTART], folder, process_env)

    return shutil.copytree(shared("project", make), tmp_path / "project", symlinks=True)


@pytest.mark.slow
def test_readme_commands_run(project: Path, process_env: dict[str, str]) -> None:
    assert len(README) >= 14
    assert README[:2] == [QUICKSTART, "./scripts/test.sh"]  # the fixture has run the first; the second is this
    run_lines(README[2:], project, process_env)
    final = [line for line in read_lines(project / "runs/quickstart") if "val.top1" in line][-1]
    assert (final["epoch"], final["val.images"]) == (2, 297)
    assert (project / "runs/quickstart/curves.png").stat().st_size > 10_000
    assert json.loads((project / "result.json").read_text())["val.top1"] >= final["val.top1"]


@pytest.mark.nightly
@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_documents_run(page: str, project: Path, process_env: dict[str, str]) -> None:
    write_files(REPO / "docs" / page, project)
    run_lines(commands(REPO / "docs" / page), project, process_env)


@pytest.mark.nightly
def test_the_quick_start_in_full(process_env: dict[str, str], tmp_path: Path) -> None:
    """It learns to read; then the README's other commands and those of all pages, with the full network."""
    # As a user has it: XLA's own flags and threads.
    ours = ("XLA_FLAGS", "OMP_NUM_THREADS")
    env = {name: value for name, value in process_env.items() if name not in ours}
    copy_project(tmp_path)
    run_lines([QUICKSTART], tmp_path, env)
    final = [line for line in read_lines(tmp_path / "runs/quickstart") if "val.top1" in line][-1]
    assert (final["epoch"], final["val.images"]) == (8, 297)
    assert final["val.top1"] >= 96
    for page in PAGES:
        write_files(REPO / "docs" / page, tmp_path)
    for lines in (README[2:], *(commands(REPO / "docs" / page) for page in PAGES)):
        run_lines(lines, tmp_path, env)


def test_every_command_names_options_and_keys_that_exist() -> None:
    """Of all pages, also where their commands are not run, for what they need or until the night."""
    help_of = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", (REPO / "docs/commands.md").read_text(), re.M | re.S))
    checked = 0
    for page in (REPO / "README.md", *(REPO / "docs").glob("*.md")):
        lines = [line for language, _, text in blocks(page) if language == "bash" for line in text.splitlines()]
        for name, args in re.findall(r"python -m rn50_jax\.(\w+)(.*)", "\n".join(lines)):
            for key, option in re.findall(r" --(?:config\.([\w.]+)|([\w-]+))", args):
                assert key in options() if key else f"--{option} " in help_of[name], (page.name, name, args)
                checked += 1
    assert checked > 100


def test_other_commands_are_marked_and_well_formed() -> None:
    pages = [blocks(page) for page in (REPO / "README.md", *(REPO / "docs").glob("*.md"))]
    others = [
        line
        for page in pages
        for language, needs, text in page
        if language == "bash" and needs
        for line in text.splitlines()
        if not line.startswith(("# ", "source "))
    ]
    assert others
    for line in others:
        line = line.removeprefix("taskset -c 1 ").removeprefix("CUDA_VISIBLE_DEVICES=0 ")
        line = line.removeprefix("REQUIREMENTS=requirements-cuda13.txt ").removeprefix("TOTAL=780 ")
        command = re.search(
            r"(?:^|-- )(?:python -m (rn50_jax\.\w+)|(?:python |bash )?(?:\./)?(scripts/\w+\.\w+))(?: |$)", line
        )
        assert command, line
        file = command[2] or command[1].replace(".", "/") + ".py"
        assert (REPO / file).is_file(), line
        for config in re.findall(r"configs/\w+\.py", line):
            assert (REPO / config).is_file()


def test_links_of_the_documents_exist() -> None:
    for page in (REPO / "README.md", *(REPO / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), (page, target)


def test_every_option_of_the_recipe_is_explained() -> None:
    page = (REPO / "docs/recipe.md").read_text()
    for key in options():
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
