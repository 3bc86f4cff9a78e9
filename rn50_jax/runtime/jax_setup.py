"""What a process sets for itself before JAX first touches a device: XLA's flags, memory, kept programs."""

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import jax

from rn50_jax.errors import UserError
from rn50_jax.io.files import check_writable
from rn50_jax.io.messages import warn

_COMMAND_BUFFERS = "--xla_gpu_enable_command_buffer"
_SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_SHARE_BESIDE_DALI = "0.6"


def prepare_runtime(backend: str, xla_flags: str = "") -> None:
    """Sets what XLA must know before it first touches a device.

    DALI's GPU buffers are freed with a device synchronisation, which breaks the capture of CUDA graphs
    (command buffers), so these are off when DALI works on the GPU. JAX then takes less of the GPU's memory too, which
    by default is three quarters of it, unless the environment says how much.

    Args:
      xla_flags: of the config. What the environment's XLA_FLAGS says goes before, and both before DALI's need.

    Raises:
      UserError: XLA does not know a flag, or not with this value; it would end the process without a word of Python.
    """
    wanted = xla_flags.split()
    if wanted:
        _check_xla_flags(wanted)
    if backend == "dali-gpu":
        wanted.append(f"{_COMMAND_BUFFERS}=")
        if _is_memory_left_to_jax():
            os.environ[_SHARE] = _SHARE_BESIDE_DALI
    flags = os.environ.get("XLA_FLAGS", "").split()
    for flag in wanted:
        if flag.partition("=")[0] not in {given.partition("=")[0] for given in flags}:
            flags.append(flag)
    if wanted:
        os.environ["XLA_FLAGS"] = " ".join(flags)


def _is_memory_left_to_jax() -> bool:
    """Whether nothing in the environment says how much of a GPU's memory JAX takes, and how."""
    said = (_SHARE, "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_ALLOCATOR")
    grows = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE") in ("false", "False", "0")
    return not grows and not any(os.environ.get(name) for name in said)


def share_beside_dali(backend: str, platform: str) -> str | None:
    """Returns what to tell of the part of a GPU's memory that `prepare_runtime` gives to JAX beside DALI, if it does.

    Args:
      backend: of the config's data.
      platform: of the devices that JAX found.
    """
    if backend != "dali-gpu" or platform != "gpu" or os.environ.get(_SHARE) != _SHARE_BESIDE_DALI:
        return None
    return (
        f"JAX takes {_SHARE_BESIDE_DALI} of the GPU's memory, DALI needs of the rest to decode in; the environment "
        f"variable {_SHARE} sets another share"
    )


def _check_xla_flags(flags: Sequence[str]) -> None:
    # Only XLA knows its flags, and looks at them once in a process.
    env = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        unknown = re.search(r"Unknown flags? in XLA_FLAGS: (.*)", done.stderr)
        problem = f"holds what XLA does not know: {unknown[1].strip()}" if unknown else "is not understood by XLA"
        raise UserError(f"config.compute.xla_flags={' '.join(flags)!r} {problem}; flags look like --xla_name=value")


def use_compile_cache(setting: str) -> None:
    """Keeps compiled programs over runs, on GPUs the results of autotuning too.

    Args:
      setting: a folder; "auto" for one in the user's cache, a different one for each kind of CPU; "" for none. The
        environment's JAX_COMPILATION_CACHE_DIR goes before.
    """
    if not setting or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = user_cache() if setting == "auto" else Path(setting)
    if folder is None:
        warn("compiled programs are not kept: there is no home folder; set HOME, or config.compute.compile_cache=DIR")
        return
    if setting == "auto":
        folder /= f"compiled-{cpu_kind()}"
    try:
        check_writable(folder)
    except OSError as error:
        warn(f"compiled programs are not kept: {folder} cannot be written ({error.strerror})")
        return
    _remove_torn(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "xla_gpu_per_fusion_autotune_cache_dir")


def user_cache() -> Path | None:
    """Returns this package's folder in the user's cache, made or not; None for a user without a home folder."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "rn50-jax"
    try:
        return Path.home() / ".cache" / "rn50-jax"
    except RuntimeError:  # neither HOME nor an entry in passwd
        return None


def _remove_torn(folder: Path) -> None:
    """Removes programs that a killed process left half-written, which JAX would warn of for ever and never replace."""
    checked = folder / ".checked"
    with suppress(OSError):
        since = checked.stat().st_mtime if checked.exists() else 0.0
        checked.touch()
        for path in folder.glob("*-cache"):
            # Those packed with zstd are left alone: not every Python can read it.
            if path.stat().st_mtime >= since and not (program := path.read_bytes()).startswith(b"\x28\xb5\x2f\xfd"):
                try:
                    zlib.decompress(program)
                except zlib.error:
                    path.unlink()


def cpu_kind() -> str:
    """Returns a name for the instructions that this CPU has.

    A program that was compiled for one CPU may hold some that another one, with the same home folder, does not have.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]


HOW_TO_GPU = (
    "bash scripts/setup.sh requirements-cuda13.txt (requirements-cuda12.txt for an older driver), or with pip: "
    "pip install 'jax[cuda13]' (or 'jax[cuda12]')"
)


def cuda_plugins() -> list[str]:
    """Returns the packages by which JAX uses a GPU that are installed."""
    return [name for name in ("jax_cuda12_plugin", "jax_cuda13_plugin") if importlib.util.find_spec(name)]


def nvidia_hardware(root: Path = Path("/")) -> list[str]:
    """Returns what shows that this machine has an NVIDIA GPU; [] if nothing does. Nothing of CUDA is loaded.

    Args:
      root: of the file system whose devices are looked for.
    """
    signs = ["nvidia-smi"] if shutil.which("nvidia-smi") else []
    with suppress(OSError):
        signs += ["/dev/nvidia0"] if (root / "dev/nvidia0").exists() else []
        signs += ["/proc/driver/nvidia/gpus"] if any((root / "proc/driver/nvidia/gpus").iterdir()) else []
    return signs


def unused_gpu(platform: str, platforms: str = "", root: Path = Path("/")) -> str | None:
    """Returns a warning if this process computes on the CPU of a machine with an NVIDIA GPU, and nobody asked for that.

    Args:
      platform: of the devices that JAX found.
      platforms: what JAX was told to use, such as its option jax_platforms; "" if nothing.
      root: as in `nvidia_hardware`.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles")
    if platform != "cpu" or platforms.split(",")[0] == "cpu" or hidden:
        return None
    signs = nvidia_hardware(root)
    if not signs:
        return None
    found = f"this machine has an NVIDIA GPU ({', '.join(signs)}), but everything runs on the CPU, which is slow"
    silence = "JAX_PLATFORMS=cpu asks for the CPU and silences this"
    if plugins := cuda_plugins():
        return f"{found}: {', '.join(plugins)} is installed, but JAX cannot use the GPU; check nvidia-smi; {silence}"
    return f"{found}: JAX is installed for the CPU only; install it for CUDA: {HOW_TO_GPU}; {silence}"
