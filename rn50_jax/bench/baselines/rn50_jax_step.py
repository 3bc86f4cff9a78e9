"""Our own step as a program."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rn50_jax.bench.cases import Case, case_config, measure
from rn50_jax.bench.device import describe_hardware, find_local_devices
from rn50_jax.bench.report import make_header
from rn50_jax.bench.roofline import Ceiling, measure_ceiling
from rn50_jax.config.loading import from_saved
from rn50_jax.runtime import jax_setup
from rn50_jax.runtime.machine import versions

_SAME = ("platform", "precision", "images_per_step", "peak_memory_bytes")
_TIMES = ("step_seconds", "cpu_seconds_per_step", "start_seconds")


def run(spec: dict[str, Any], keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Runs one trial, see `bench.trials`; the first one also reports the whole result, the ceiling and the header.

    Args:
      keep: called with what there is before the profile is made.
    """
    config = from_saved(spec["config"], source="the trial").config
    jax_setup.prepare_runtime("synthetic", config.compute.xla_flags)
    devices = find_local_devices(spec["device"])
    case = Case(spec["mode"], config.precision, config.batch_size, devices=1)
    options: dict[str, Any] = {"steps": spec["steps"], "warmup": spec["warmup"]}
    if spec["trial"] > 1:
        return _report(measure(case_config(config, case), case, **options), devices)
    ceiling = Ceiling(**spec["ceiling"]) if spec["ceiling"] else measure_ceiling(devices[0], config.precision)
    whole = {"ceiling": ceiling._asdict(), "header": make_header(spec["command"], devices)}

    def timed(result: dict[str, Any]) -> None:
        keep(_report(result, devices) | whole)

    trace = Path(spec["profile"]) if spec["profile"] else None
    result = measure(case_config(config, case), case, ceiling=ceiling, trace=trace, timed=timed, **options)
    return _report(result, devices) | whole


def _report(result: dict[str, Any], devices: list[Any]) -> dict[str, Any]:
    if "error" in result:
        return {"error": result["error"], "result": result}
    found = versions()
    return {key: result[key] for key in (*_SAME, *_TIMES)} | {
        "device": describe_hardware(devices)["device"],
        "start": "warm" if result["compiled_from_cache"] else "cold",
        "about": f"jax {found['jax']}, flax {found['flax']}",
        "result": result,
    }
