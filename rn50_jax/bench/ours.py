"""Our own step as a program."""

from typing import Any

from rn50_jax import config as configs
from rn50_jax import runtime
from rn50_jax.bench.cases import Case, case_config, measure
from rn50_jax.bench.device import describe_hardware, find_local_devices
from rn50_jax.errors import UserError
from rn50_jax.workdir import versions


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """One trial, see `bench.peers`."""
    config = configs.from_tree(spec["config"])
    runtime.prepare_runtime("synthetic", config.run.xla_flags)
    devices = find_local_devices(spec["device"])
    case = Case(spec["mode"], config.precision, config.batch_size, devices=1)
    result = measure(case_config(config, case), case, steps=spec["steps"], warmup=spec["warmup"], ceiling=None)
    if "error" in result:
        raise UserError(result["error"])
    found = versions()
    return {
        "platform": devices[0].platform,
        "device": describe_hardware(devices)["device"],
        "precision": config.precision,
        "images_per_step": result["images_per_step"],
        "step_seconds": result["step_seconds"],
        "cpu_seconds_per_step": result["cpu_seconds_per_step"],
        "start_seconds": result["first_call_seconds"],
        "peak_memory_bytes": result["peak_memory_bytes"],
        "about": f"jax {found['jax']}, flax {found['flax']}",
    }
