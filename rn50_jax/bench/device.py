"""The devices that are timed, and what is written down about them."""

import os
from typing import Any

import jax

from rn50_jax.errors import UserError
from rn50_jax.io.text import first_line
from rn50_jax.runtime.jax_setup import cuda_plugins, nvidia_hardware
from rn50_jax.runtime.machine import describe_host

# Vendors' data sheets, dense TFLOP/s of float16 and bfloat16, of TF32, and of float32 without tensor cores.
_SHEETS = {
    "H200": (989.4, 494.7, 66.9),
    "H100 PCIe": (756.0, 378.0, 51.2),
    "H100 80GB HBM3": (989.4, 494.7, 66.9),
    "A100": (312.0, 156.0, 19.5),
    "V100": (125.0, 15.7, 15.7),
}


def find_local_devices(wanted: str) -> list[jax.Device]:
    """Returns this process's devices.

    Args:
      wanted: "gpu"; "cpu"; or "auto": what JAX finds, but no CPU that JAX fell back to.

    Raises:
      UserError: no such device, or a CPU where a GPU was to be expected and nobody asked for the CPU.
    """
    if wanted == "cpu":
        jax.config.update("jax_platforms", "cpu")
    chosen = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        raise UserError(f"JAX cannot start: {first_line(error)}; {_HOW_TO_GPU}") from error
    if devices[0].platform != "cpu":
        return devices
    if wanted == "gpu":
        raise UserError(f"--device gpu, but JAX found only a CPU; {_HOW_TO_GPU}")
    signs = cuda_plugins() + nvidia_hardware()
    if wanted == "auto" and chosen != "cpu" and signs:
        raise UserError(
            f"JAX fell back to the CPU where there seems to be a GPU ({', '.join(signs)}), and a CPU's times would "
            f"pass for the GPU's; {_HOW_TO_GPU}; or ask for the CPU with --device cpu"
        )
    return devices


_HOW_TO_GPU = "check nvidia-smi, and that requirements-cuda13.txt (or requirements-cuda12.txt) is installed"


def describe_hardware(devices: list[jax.Device]) -> dict[str, Any]:
    """Returns what a reader needs to know of the devices that are timed, and of the processor and its cores."""
    processor = describe_host().get("cpu", "unknown")
    return {
        "platform": devices[0].platform,
        "device": devices[0].device_kind if devices[0].platform == "gpu" else f"CPU ({processor})",
        "devices": len(devices),
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
    }


def sheet_tflops(device: str, precision: str) -> float | None:
    """Returns the data sheet's TFLOP/s of a known GPU in a precision, else None."""
    for name, (half, tf32, single) in _SHEETS.items():
        if all(part in device for part in name.split()):
            return {"tf32": tf32, "fp32": single}.get(precision, half)
    return None
