"""What shows that there is an NVIDIA GPU; nothing of CUDA or JAX is loaded."""

import importlib.util
import shutil
from contextlib import suppress
from pathlib import Path


def signs_of_gpu() -> list[str]:
    """Returns what lets one expect that JAX computes on a GPU here."""
    return cuda_plugins() + nvidia_hardware()


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
