"""Shared data and processes. Tests see eight fake CPU devices; commands run in processes of their own, or in this one.

What is costly to make, such as a trained run, is made once for all workers of pytest-xdist, and only read.
"""

import atexit
import contextlib
import gc
import importlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PLATFORMS"] = "cpu"
# PyTorch's threads, of which several processes have more than there are cores, wait for each other by spinning.
os.environ["OMP_NUM_THREADS"] = "1"
# Scripts call `python`, which is this one whether or not its environment was activated.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# What a process has once read stays with it: no test may be the one that lets Weights & Biases look for its server.
os.environ.update(WANDB_MODE="offline", WANDB_ERROR_REPORTING="false", MLFLOW_ALLOW_FILE_STORE="true")
# Tiny networks take longer to compile than to run, so they are compiled quickly. Devices wait for each other as long
# as it takes on a busy machine.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_warn_stuck_timeout_seconds=1200"
os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=1200"
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"

import jax
import pytest
from filelock import FileLock
from helpers.programs import keep_programs, linked_programs
from helpers.runs import PATIENCE
from helpers.trees import write_image

from rn50_jax import cli
from rn50_jax.data.prepare.digits import write_digits

# Programs that are compiled more than once, in workers, in commands or in the next run of the tests, come from a cache.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(linked_programs())
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])

REPO = Path(__file__).parent.parent
QUICK_COMPILE = os.environ["XLA_FLAGS"].rpartition(" ")[0]
# A network and schedule that train in seconds; the commands' real model is ResNet-50.
TINY = (
    "--config.model.arch=resnet18",
    "--config.model.stages=(1, 1)",
    "--config.model.width=8",
    "--config.recipe.lr=0.2",
    "--config.epochs=2",
    "--config.log.print_every=10",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is for the night as slow too."""
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker("slow")


def pytest_runtest_logfinish() -> None:
    """Exempts what a test leaves behind, JAX's caches above all, from every later collection of garbage."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Keeps what was compiled for the next time, when the last worker is done."""
    if not hasattr(config, "workerinput"):
        keep_programs(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))
    else:
        atexit.register(os._exit, 0)  # before JAX takes thousands of programs apart one by one


Run = Callable[..., subprocess.CompletedProcess[str]]
Shared = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Makes a folder once for all workers: `shared(name, make)` calls `make(folder)` unless one of them has."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def get(name: str, make: Callable[[Path], None]) -> Path:
        folder = root / "shared" / name
        done = folder.with_name(f"{name}.done")
        folder.parent.mkdir(exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def digits(shared: Shared) -> Path:
    """The built-in class folders."""
    return shared("data", lambda folder: write_digits(folder / "digits")) / "digits"


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
    """Environment of a command: one CPU device."""
    # pytest-xdist tells its workers, and they our commands, of a terminal of its own; VENV and PYTHON are for set-up.
    foreign = ("COLUMNS", "LINES", "VENV", "PYTHON")
    own = {name: value for name, value in os.environ.items() if name not in foreign}
    return own | {"XLA_FLAGS": QUICK_COMPILE, "PYTHONPATH": str(REPO)}


@pytest.fixture(scope="session")
def run(process_env: dict[str, str]) -> Run:
    """Runs `python -m rn50_jax.MODULE ARGS...` to its end."""

    def run_module(module: str, *args: object, devices: int = 1, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
        flags = f"--xla_force_host_platform_device_count={devices} {QUICK_COMPILE}"
        env = process_env | {"XLA_FLAGS": flags}
        command = [sys.executable, "-m", f"rn50_jax.{module}", *map(str, args)]
        return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)

    return run_module


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command as `run` does, but within this process, which has imported everything.

    Its output is what is written to the process's standard output and error, its exit code that with which it would
    have ended. Every command runs in a process of its own too: those of the README and of docs/.
    """

    def call_main(module: str, *args: object, devices: int = 1, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
        main = importlib.import_module(f"rn50_jax.{module}").main
        argv = [f"{module}.py", *map(str, args)]
        found = jax.devices()[:devices]
        capfd.readouterr()
        with monkeypatch.context() as patch, contextlib.chdir(cwd):
            patch.setattr(sys, "argv", argv)
            for function in ("devices", "local_devices"):
                patch.setattr(jax, function, lambda: found)
            with pytest.raises(SystemExit) as ended:
                cli.run(main)
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(argv, ended.value.code, *capfd.readouterr())

    return call_main


def tiny_args(digits: Path) -> tuple[object, ...]:
    """What makes `train` train the tiny network on the digits."""
    return ("--config", REPO / "configs/quickstart.py", f"--config.data.dir={digits}", *TINY)


@pytest.fixture(scope="session")
def train_tiny(run: Run, digits: Path) -> Run:
    """Trains the tiny network on the digits in a work folder."""

    def train(workdir: Path, *args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        return run("train", *tiny_args(digits), "--workdir", workdir, *args, **kwargs)

    return train


@pytest.fixture
def call_train(call: Run, digits: Path) -> Run:
    """Does as `train_tiny` does within this process."""

    def train(workdir: Path, *args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        return call("train", *tiny_args(digits), "--workdir", workdir, *args, **kwargs)

    return train


@pytest.fixture(scope="session")
def trained(train_tiny: Run, shared: Shared) -> tuple[Path, str]:
    """A finished run of the tiny network, to be read: its work folder and what training printed."""

    def make(folder: Path) -> None:
        done = train_tiny(folder / "tiny")
        assert done.returncode == 0, done.stderr
        (folder / "printed").write_text(done.stdout)

    folder = shared("trained", make)
    return folder / "tiny", (folder / "printed").read_text()


@pytest.fixture
def own_copy(trained: tuple[Path, str], tmp_path: Path) -> Path:
    """The finished run as a work folder of this test's own, to be trained in."""
    return shutil.copytree(trained[0], tmp_path / "copy")


def assert_user_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 2 and one line on standard error that holds all the parts."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for part in parts:
        assert part in lines[0], (part, lines[0])
