"""The house: every file in its room, imports only go down, and what has one home stays there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

PACKAGE = REPO / "rn50_jax"
# From the top to the bottom, as CONTRIBUTING.md describes them: a module imports from its own room and those below.
ROOMS = [
    "analysis",
    "exporting",
    "bench",
    "training",
    "inference",
    "loggers",
    "data",
    "checkpoint",
    "distributed",
    "cli",
    "runtime",
    "weights",
    "config",
    "models",
    "io",
    "errors",
]


def modules() -> dict[str, Path]:
    """The package's modules by their dotted names below it; "" is the package itself."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
        for path in PACKAGE.rglob("*.py")
    }


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            parts = {f"{node.module}.{name.name}" for name in node.names}
            found |= {part if part.removeprefix("rn50_jax.") in known else str(node.module) for part in parts}
    return {name.removeprefix("rn50_jax").lstrip(".") for name in found if name.split(".")[0] == "rn50_jax"}


ALL = modules()
ARROWS = {name: imports(path, ALL) - {""} for name, path in ALL.items()}
# In the root, and what a room says of itself as `python -m rn50_jax.ROOM`.
COMMANDS = {name for name in ALL if name.endswith(".__main__") or ("." not in name and name not in ROOMS)} - {""}


def test_the_root_holds_commands_and_every_folder_is_a_room() -> None:
    for name in COMMANDS - {"__main__"}:
        assert "\ndef main(argv: Sequence[str]) -> int:" in ALL[name].read_text(), f"{name} is no command"
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders | {"cli", "errors"} == set(ROOMS)
    for folder in (path.parent for path in PACKAGE.rglob("*/__init__.py")):
        text = (folder / "__init__.py").read_text().strip()
        assert text.startswith('"""') and text.endswith('."""') and "\n" not in text, (
            f"{folder} does not say what it is"
        )


def test_nothing_imports_a_command() -> None:
    for name, imported in ARROWS.items():
        assert not imported & COMMANDS, name


def test_imports_only_go_down() -> None:
    heights = {name: ROOMS.index(name.split(".")[0]) if name not in COMMANDS else -1 for name in ALL if name}
    up = [f"{a} -> {b}" for a, below in ARROWS.items() if a for b in below if heights[b] < heights[a]]
    assert not up


def test_no_circles() -> None:
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in done:
            for below in ARROWS[name]:
                walk(below, (*above, name))
            done.add(name)

    for name in ALL:
        walk(name, ())


@pytest.mark.parametrize(
    ("pattern", "room"),
    [
        (r"^\s*(import|from) orbax", "checkpoint"),
        (r"^\s*(import|from) nvidia", "data"),
        (r"\bpmap\(|\bshard_map\(", "distributed"),
        (r"jax\.distributed\.initialize|multihost_utils", "distributed"),
        (r"^\s*(import|from) safetensors", "weights"),
        (r"^\s*(import|from) (tensorboard|wandb|mlflow)", "loggers"),
        (r"^\s*(import|from) matplotlib", "analysis"),
        (r"^\s*(import|from) (onnx|onnxruntime)\b", "exporting"),
    ],
)
def test_what_has_one_home_stays_there(pattern: str, room: str) -> None:
    found = {name.split(".")[0] for name, path in ALL.items() if re.search(pattern, path.read_text(), re.MULTILINE)}
    assert found == {room}


def test_data_are_read_without_the_optimizer() -> None:
    program = "import sys, rn50_jax.data.loader; print({'optax', 'rn50_jax.config.loading'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_images_are_checked_without_the_schema() -> None:
    program = "import sys, rn50_jax.check_data; print({'pydantic', 'rn50_jax.config.schema'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_no_file_is_crowded() -> None:
    for path in ALL.values():
        assert len(path.read_text().splitlines()) <= 320, path


def test_tests_mirror_the_rooms() -> None:
    tests = REPO / "tests"
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")} - {Path()}
    assert all((PACKAGE / folder).is_dir() for folder in folders), folders
    for path in tests.rglob("*.py"):
        assert not re.search(
            r"^\s*(from|import) test_\w+", path.read_text().replace("from test_decodable", ""), re.M
        ), path
