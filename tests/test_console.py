"""The console command, in the source tree and installed from a wheel, and what the wheel holds."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPO, assert_user_error
from helpers.runs import PATIENCE

from rn50_jax.__main__ import find_commands, main
from rn50_jax.errors import UserError

NET = ("--config.model.arch=resnet18", "--config.model.width=8", "--config.model.stages=(1,)")
Console = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def env(process_env: dict[str, str]) -> dict[str, str]:
    """Without the source tree."""
    return {name: value for name, value in process_env.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def installed(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the project's wheel in it; for the dependencies it looks into this one."""
    root = tmp_path_factory.mktemp("install")
    source = root / "source"
    for folder in ("rn50_jax", "configs"):
        shutil.copytree(REPO / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy2(REPO / name, source)

    def pip(*args: object) -> None:
        command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, args)]
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr

    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", root, source)
    venv.create(root / "venv", symlinks=True)
    (wheel,) = root.glob("*.whl")
    pip("--python", root / "venv/bin/python", "install", "--no-deps", wheel)
    (packages,) = root.glob("venv/lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return root / "venv/bin"


@pytest.fixture(scope="module")
def console(installed: Path, env: dict[str, str]) -> Console:
    """Runs the installed `rn50-jax ARGS...`."""

    def run(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [installed / "rn50-jax", *map(str, args)]
        return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)

    return run


def test_the_commands_are_those_of_the_files() -> None:
    commands = find_commands()
    assert {"benchmark", "convert", "evaluate", "export", "plot", "predict", "train"} <= set(commands)
    for path in (REPO / "rn50_jax").glob("*.py"):
        is_command = "\ndef main(argv: Sequence[str]) -> int:" in path.read_text() and path.stem != "__main__"
        assert (path.stem in commands) == is_command, path
    for name, what in commands.items():
        assert 10 < len(what) < 80 and what[0].isupper() and "`" not in what.replace("`val/`", ""), (name, what)


def test_help_is_quick_and_complete(process_env: dict[str, str]) -> None:
    heavy = "import sys; from rn50_jax.__main__ import main; main(['--help']); sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", heavy], env=process_env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, what in find_commands().items():
        assert f"  {name} " in done.stdout and what in done.stdout
    assert f"recipes for --config, in {REPO / 'configs'}:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give a command, one of .*train.*--help"),
        (["trian"], r"'trian' is no command \(did you mean train\?\)"),
        (["errors"], r"'errors' is no command"),
        (["train", "--workdir", "x"], "--config; see .*--help"),
    ],
)
def test_wrong_commands(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(argv)


@pytest.mark.slow
def test_python_m(process_env: dict[str, str], tmp_path: Path) -> None:
    for call, spelling in (("rn50_jax", "python -m rn50_jax train"), ("rn50_jax.train", "python -m rn50_jax.train")):
        words = ["train", "--help"] if call == "rn50_jax" else ["--help"]
        done = subprocess.run([sys.executable, "-m", call, *words], env=process_env, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.startswith(f"usage: {spelling} [-h]"), done.stdout
    done = subprocess.run([sys.executable, "-m", "rn50_jax", "plot", tmp_path], env=process_env, capture_output=True)
    assert done.returncode == 2 and done.stderr.startswith(b"error: ")


@pytest.mark.slow
def test_installed_from_a_wheel(console: Console, digits: Path, tmp_path: Path) -> None:
    data = f"--config.data.dir={digits}"
    done = console("train", "--config", "quickstart", "--workdir", "w", "--config.run.prof=2", data, *NET, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "w/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 2
    assert os.listdir(tmp_path) == ["w"]  # noqa: PTH208
    done = console("plot", "w", "--html", "page.html", cwd=tmp_path)
    assert done.returncode == 0 and "</html>" in (tmp_path / "page.html").read_text(), done.stderr
    assert console("--version", cwd=tmp_path).stdout == "rn50-jax 0.1.0\n"
    done = console("train", "--help", cwd=tmp_path)
    assert done.stdout.startswith("usage: rn50-jax train [-h]")
    assert_user_error(
        console("train", "--config", "dgx1", cwd=tmp_path), "'dgx1' does not exist; did you mean dgx1_90e?"
    )

    # A recipe of one's own, anywhere, starts from an installed one.
    recipe = tmp_path / "recipes/mine.py"
    recipe.parent.mkdir()
    recipe.write_text("from configs import quickstart\n\n\ndef get_config():\n    return quickstart.get_config()\n")
    options = ("--mode", "infer", "--steps", 1, "--warmup", 0, *NET, "--config.batch_size=2")
    for config in ("recipes/mine.py", "configs/dgx1_90e.py:fp32"):
        done = console("benchmark", "--config", config, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("32 px" if "mine" in config else "224 px") in done.stdout


def test_every_package_is_installed() -> None:
    tool = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {str(path.parent.relative_to(REPO)).replace("/", ".") for path in REPO.glob("rn50_jax/**/__init__.py")}
    assert set(tool["packages"]) == packages | {"rn50_jax.configs"}
    data = {
        f"{package.replace('.', '/')}/{path}"
        for package, patterns in tool["package-data"].items()
        for pattern in patterns
        for path in (file.name for file in (REPO / package.replace(".", "/")).glob(pattern))
    }
    files = {str(path.relative_to(REPO)) for path in REPO.glob("rn50_jax/**/*.*") if path.suffix not in (".py", ".pyc")}
    assert data == files
