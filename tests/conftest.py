"""Shared data and processes. Tests see eight fake CPU devices; commands run in processes of their own."""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Programs that the tests compile more than once, here, in workers or in commands, come from a cache.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rn50-jax-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PLATFORMS"] = "cpu"
# Tiny networks take longer to compile than to run, so they are compiled quickly.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"

import pytest
from trees import write_image

from rn50_jax.data.digits import write_digits

REPO = Path(__file__).parent.parent
QUICK_COMPILE = os.environ["XLA_FLAGS"].rpartition(" ")[0]
# A network and schedule that train in seconds; the commands' real model is ResNet-50.
TINY = (
    "--config.model.arch=resnet18",
    "--config.model.width=8",
    "--config.epochs=2",
    "--config.report.print_every=10",
)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the cache when the last worker is done."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in class folders."""
    root = tmp_path_factory.mktemp("data") / "digits"
    write_digits(root)
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three classes; each image's grey value tells its number, class by class."""
    number = itertools.count()
    for split, counts in (("train", (7, 9, 6)), ("val", (3, 2, 5))):
        for name, count in zip(("ant", "bee", "cat"), counts, strict=True):
            for i in range(count):
                grey = 5 * (next(number) % 22)
                write_image(tmp_path / split / name / f"{i}.png", (grey, grey, grey))
        number = itertools.count()
    return tmp_path


@pytest.fixture(scope="session")
def process_env() -> dict[str, str]:
    """Environment of a command: one CPU device, and no second start for huge pages, which small models do not need."""
    # pytest-xdist tells its workers, and they our commands, of a terminal of its own.
    own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return own | {"XLA_FLAGS": QUICK_COMPILE, "PYTHONPATH": str(REPO), "RN50_JAX_HUGE_PAGES": "0"}


@pytest.fixture(scope="session")
def run(process_env: dict[str, str]) -> Run:
    """Runs `python -m rn50_jax.MODULE ARGS...` to its end."""

    def run_module(module: str, *args: object, devices: int = 1, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
        flags = f"--xla_force_host_platform_device_count={devices} {QUICK_COMPILE}"
        env = process_env | {"XLA_FLAGS": flags}
        command = [sys.executable, "-m", f"rn50_jax.{module}", *map(str, args)]
        return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=300)

    return run_module


@pytest.fixture(scope="session")
def train_tiny(run: Run, digits: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Trains the tiny network on the digits in a work folder."""

    def train(workdir: Path, *args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        config = ("--config", REPO / "configs/quickstart.py", f"--config.data.dir={digits}", *TINY)
        return run("train", *config, "--workdir", workdir, *args, **kwargs)

    return train


@pytest.fixture(scope="session")
def trained(
    train_tiny: Callable[..., subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A finished run of the tiny network: its work folder and what training printed."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    done = train_tiny(workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def assert_user_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 2 and one line on standard error that holds all the parts."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for part in parts:
        assert part in lines[0], (part, lines[0])
