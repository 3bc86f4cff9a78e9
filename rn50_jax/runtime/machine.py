"""What is written down about the machine, the libraries and the code that a result comes from."""

import importlib.metadata
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from rn50_jax import __version__
from rn50_jax.io.text import first_line, size_text

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-collections", "numpy")
_DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
# What of the environment changes results or times, beside what begins with NCCL_.
_ENVIRONMENT = (
    *("XLA_FLAGS", "JAX_PLATFORMS", "JAX_DEFAULT_MATMUL_PRECISION", "CUDA_VISIBLE_DEVICES"),
    *("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"),
    *("XLA_PYTHON_CLIENT_ALLOCATOR", "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "GLIBC_TUNABLES"),
)
_GIT_TIMEOUT = 5.0  # seconds for an answer of git's, on a slow file system
# By nvidia-smi's name: ours, with the unit that it has without one. All but the first two are numbers.
_FIELDS = {
    "name": "name",
    "driver_version": "driver",
    "memory.total": "memory_mib",
    "power.limit": "power_limit_w",
    "clocks.sm": "sm_clock_mhz",
    "clocks.max.sm": "max_sm_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "clocks.max.mem": "max_memory_clock_mhz",
}


def describe_machine(devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Returns what `run.json` and a benchmark's result say of where they come from.

    Returns:
      host, see `describe_host`; environment, the variables that change results or times, XLA's flags among them;
      versions, those of `versions`, of torch and of JAX's plugin for CUDA; commit of the code, see
      `find_commit`. Where the devices are GPUs, gpus too, see `read_gpus`, the versions of CUDA's libraries, and
      nvidia_smi, what that complains of, if it does.
    """
    facts: dict[str, Any] = {"host": describe_host()}
    on_gpu = devices[0].platform == "gpu"
    if on_gpu:
        facts["gpus"], problem = read_gpus()
        facts |= {"nvidia_smi": problem} if problem else {}
    names = [*_ENVIRONMENT, *sorted(name for name in os.environ if name.startswith("NCCL_"))]
    return facts | {
        "environment": {name: os.environ[name] for name in names if os.environ.get(name)},
        "versions": versions() | _installed(["torch"]) | _cuda_versions(on_gpu),
        "commit": find_commit(Path(__file__).parents[1]),
    }


def versions() -> dict[str, str]:
    """Returns the versions of everything that can change a result on one kind of device."""
    return {"rn50_jax": __version__, "python": platform.python_version()} | _installed((*_PACKAGES, *_DALI))


def dali_version() -> str | None:
    """Returns the version of the installed DALI; None if no package tells."""
    return next(iter(_installed(_DALI).values()), None)


def _installed(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _cuda_versions(on_gpu: bool) -> dict[str, str]:
    """Of JAX's plugins for CUDA, and where the devices are GPUs of the packages with the libraries that they load."""
    found: dict[str, str] = {}
    for cuda, end in ((13, ""), (12, "-cu12")):
        plugin = _installed([f"jax-cuda{cuda}-plugin"])
        libraries = [f"nvidia-{name}{end}" for name in ("cuda-runtime", "cuda-nvcc", "cublas")]
        libraries += [f"jax-cuda{cuda}-pjrt", f"nvidia-cudnn-cu{cuda}", f"nvidia-nccl-cu{cuda}"]
        found |= plugin | (_installed(libraries) if plugin and on_gpu else {})
    return found


def describe_host() -> dict[str, Any]:
    """Returns of this machine: system, CPU, cores that the process may use, GB of memory, as far as it tells."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    host: dict[str, Any] = {"system": system, "cores": len(os.sched_getaffinity(0))}
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next(line for line in lines if line.startswith("model name"))
        host["cpu"] = cpu.partition(":")[2].strip()
    with suppress(ValueError, OSError):
        host["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    return host


def find_commit(package: Path) -> str | None:
    """Returns the commit of the checkout that holds a package's folder, with "+changes" if tracked files of it differ.

    None where no checkout holds it: in an installed copy, or inside a repository that does not track it. Nor is it
    known where git is missing, refuses a checkout of another user, or does not answer in time.
    """
    if not _ask_git(package, "ls-files", "__init__.py") or not (commit := _ask_git(package, "rev-parse", "HEAD")):
        return None
    changes = _ask_git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{commit}+changes" if changes else commit


def _ask_git(folder: Path, *words: str) -> str:
    """What git answers; "" if it is missing, fails or takes too long."""
    # Variables of a git that called us would name another repository.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    with suppress(OSError, subprocess.TimeoutExpired):
        done = _ask(["git", "-C", str(folder), *words], _GIT_TIMEOUT, env | {"GIT_OPTIONAL_LOCKS": "0"})
        return "" if done.returncode else done.stdout.strip()
    return ""


def _ask(command: list[str], timeout: float, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "encoding": "utf-8", "errors": "replace"}
    return subprocess.run(command, capture_output=True, timeout=timeout, env=env, check=False, **options)


def read_gpus(timeout: float = 20.0) -> tuple[list[dict[str, Any]], str | None]:
    """Asks nvidia-smi for all GPUs of this machine, those among them that JAX does not use.

    Args:
      timeout: seconds after which it is ended.

    Returns:
      For each GPU name and driver; memory in MiB, power limit in W, SM and memory clock as they are at this moment and
      at most, in MHz; None for what it does not tell. And what it complains of, or why there are none; else None.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = _ask(command, timeout)
    except subprocess.TimeoutExpired:
        return [], f"no answer within {timeout:g} s"
    except OSError as error:
        return [], first_line(error)
    gpus, said = [], []
    for line in (*done.stdout.splitlines(), *done.stderr.splitlines()):
        row = [cell.strip() for cell in line.split(",")]
        if len(row) == len(_FIELDS):
            gpus.append({key: _value(key, cell) for key, cell in zip(_FIELDS.values(), row, strict=True)})
        elif line.strip():
            said.append(line.strip()[:200])
    if gpus and not done.returncode:
        return gpus, None
    return gpus, said[0] if said else f"exit code {done.returncode}"


def _value(key: str, cell: str) -> str | float | None:
    if key in ("name", "driver"):
        return None if cell.startswith("[") else cell
    try:
        return float(cell)
    except ValueError:  # "[N/A]", "[Not Supported]", "[Unknown Error]"
        return None


def gpu_lines(gpus: Any) -> list[str]:
    """Returns a line for each kind of GPU in the `gpus` of `describe_machine`, as far as they have that form."""
    known = [gpu for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []
    return [f"{count} x {kind}" for kind, count in Counter(map(_gpu_text, known)).items()]


def _gpu_text(gpu: dict[str, Any]) -> str:
    parts = [str(gpu.get("name") or "GPU")] + ([f"driver {gpu['driver']}"] if gpu.get("driver") else [])
    told = {"memory_mib": "{:,.0f} MiB", "power_limit_w": "{:,.0f} W power limit"}
    told |= {"max_sm_clock_mhz": "SM clock up to {:,.0f} MHz", "max_memory_clock_mhz": "memory clock up to {:,.0f} MHz"}
    parts += [text.format(gpu[key]) for key, text in told.items() if isinstance(gpu.get(key), int | float)]
    return ", ".join(parts)


def peak_text() -> str:
    """Returns the most that a device of this process has used so far; "" where it does not tell."""
    used = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if not used:
        return ""
    peak = max(used, key=lambda stats: stats["peak_bytes_in_use"])
    return f"{size_text(peak['peak_bytes_in_use'])} of {size_text(peak['bytes_limit'])} device memory at most"
