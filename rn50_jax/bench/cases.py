"""One case of a benchmark: a mode, a precision, a batch size and a number of devices."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rn50_jax.bench import profile
from rn50_jax.bench.compiled import make_program, num_classes
from rn50_jax.bench.cpu_time import time_steps
from rn50_jax.bench.device import sheet_tflops
from rn50_jax.bench.flops import count_flops
from rn50_jax.bench.roofline import Ceiling
from rn50_jax.config import loading as configs
from rn50_jax.config.model import build_model
from rn50_jax.config.schema import Config
from rn50_jax.distributed.devices import find_devices
from rn50_jax.errors import RunStopped, UserError
from rn50_jax.io.text import counted
from rn50_jax.runtime.run_folder import describe_devices
from rn50_jax.training.divergence import explaining_memory


class Case(NamedTuple):
    """A case.

    batch_size: per device. global_batch: with strong scaling, what the devices share, else 0. variant: KEY=VALUE that
    differs from the config, "" for the config as it is.
    """

    mode: str
    precision: str
    batch_size: int
    devices: int
    global_batch: int = 0
    variant: str = ""

    def __str__(self) -> str:
        devices = "1 device" if self.devices == 1 else f"each of {self.devices} devices"
        text = f"{self.mode}, {self.precision}, {counted(self.batch_size, 'image')} on {devices}"
        return f"{text}, {self.variant}" if self.variant else text


def case_config(config: Config, case: Case) -> Config:
    """Returns the config of one case, on synthetic data.

    Raises:
      UserError: the case's values do not fit the config.
    """
    changes = [("data.backend", "synthetic"), ("precision", case.precision), ("batch_size", str(case.batch_size))]
    if case.variant:
        key, _, value = case.variant.partition("=")
        changes.append((key, value))
    return configs.override(config, changes)


def measure(
    config: Config,
    case: Case,
    *,
    steps: int,
    warmup: int,
    ceiling: Ceiling | None = None,
    trace: Path | None = None,
    timed: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Times `steps` steps after a first call and `warmup` further ones; the batch stays on the devices.

    Args:
      config: as `case_config` makes it.
      trace: a folder for a trace of ten further steps, which "profile" then sums up, see `profile.profile`.
      timed: called with the result before it is traced.

    Returns:
      The case; images_per_second at the median step; step_seconds, see `stats.summarize`; what compiling cost;
      memory; how far the devices were used, see `usage`; and "seconds" that it all took. If the device lacks memory
      or the precision: what was to be timed, and "error"; if it cannot be traced, "profile_error".
    """
    start = time.perf_counter()
    devices = jax.local_devices()[: case.devices]
    platform = devices[0].platform
    result: dict[str, Any] = {
        "mode": case.mode,
        "arch": config.model.arch,
        "image_size": config.data.image_size,
        "precision": config.precision,
        "parallel": config.compute.parallel,
        "devices": describe_devices(devices),
        "platform": platform,
        "num_devices": case.devices,
        "batch_size_per_device": config.batch_size,
        "batch_norm": "folded" if case.mode == "infer" and config.compute.fold_batch_norm != "off" else "computed",
        "scaling": "strong" if case.global_batch else "weak",
        "variant": case.variant,
        "steps": steps,
        "warmup": warmup,
    }

    def after(**more: Any) -> dict[str, Any]:
        return result | more | {"seconds": time.perf_counter() - start}

    try:
        find_devices(backend="synthetic", precision=config.precision)
    except UserError as error:
        return after(error=str(error))
    try:
        with explaining_memory(config.batch_size, config.data.image_size, config.precision):
            before = _peak(devices[0])
            program = make_program(config, case.mode, devices)
            result |= time_steps(program.run, steps=steps, warmup=warmup, began=start)
    except RunStopped as error:
        return after(error="out of memory", error_detail=str(error))
    made = program.compilation
    result |= {
        "images_per_step": program.images,
        "images_per_second": program.images / result["step_seconds"]["median"],
        "images_per_second_mean": program.images / result["step_seconds"]["mean"],
        "impl": config.compute.impl,
        "trace_seconds": made.trace_seconds,
        "compile_seconds": made.compile_seconds,
        "compiled_from_cache": made.cached,
        "first_call_seconds": made.trace_seconds + made.compile_seconds + result["first_step_seconds"],
    }
    result |= peak_memory(case.mode, platform, before, _peak(devices[0]), made.memory_bytes)
    model = build_model(config, num_classes=num_classes(config), platform=platform)
    flops = count_flops(model, config.data.image_size, case.mode)
    result |= usage(result, flops, made.bytes_accessed, ceiling, devices[0].device_kind)
    if trace is None:
        return after()
    timed(after())
    try:
        with explaining_memory(config.batch_size, config.data.image_size, config.precision):
            found = profile.profile(
                program,
                trace,
                steps=steps,
                mode=case.mode,
                images_per_second=result["images_per_second"],
                copy_gbytes_per_second=ceiling.gbytes_per_second if ceiling else None,
                command_buffers=profile.has_command_buffers(platform, os.environ.get("XLA_FLAGS", "")),
            )
    except (RunStopped, UserError) as error:
        return after(profile_error=str(error))
    return after(**found)


def _peak(device: jax.Device) -> int:
    return int((device.memory_stats() or {}).get("peak_bytes_in_use", 0))


def peak_memory(mode: str, platform: str, before: int, after: int, program: int) -> dict[str, Any]:
    """Returns the bytes of one device that a case needed, and who counted them.

    On a GPU the device's own count of inference is mostly room that XLA took to try convolutions out in, which it has
    given back: there, and where the device does not count, the program's own memory counts.

    Args:
      before, after: the device's peaks before and after the case; a peak that did not rise is another case's.
      program: bytes that the program needs, see `timing.Compilation`.
    """
    measured = after > before and not (mode == "infer" and platform == "gpu")
    return {
        "peak_memory_bytes": after if measured else program,
        "peak_memory_source": "device" if measured else "XLA's analysis of the program",
        "program_memory_bytes": program,
    }


def usage(
    result: dict[str, Any], flops: float, bytes_accessed: float, ceiling: Ceiling | None, device_kind: str
) -> dict[str, Any]:
    """Returns how far one device was used at the median step.

    Args:
      flops: of the network, per image. bytes_accessed: in one step by one device, as XLA estimates.

    Returns:
      tflops and gbytes_per_second achieved; megabytes_per_image; flops_of_ceiling and bandwidth_of_ceiling, shares of
      what the ceiling's matrix product and copy reached; and for known GPUs mfu, the share of the data sheet's TFLOP/s
      (model FLOP utilization, Chowdhery et al. 2022, arXiv:2204.02311).
    """
    median = result["step_seconds"]["median"]
    images = result["images_per_step"] / result["num_devices"]
    tflops, gbytes = flops * images / median / 1e12, bytes_accessed / median / 1e9
    used = {
        "gflop_per_image": flops / 1e9,
        "tflops": tflops,
        "megabytes_per_image": bytes_accessed / images / 1e6,
        "gbytes_per_second": gbytes,
    }
    if ceiling:
        used["flops_of_ceiling"] = tflops / ceiling.tflops
        used["bandwidth_of_ceiling"] = gbytes / ceiling.gbytes_per_second
    known = sheet_tflops(device_kind, result["precision"])
    return used | ({"mfu": tflops / known} if known else {})
