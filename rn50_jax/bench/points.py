"""One point of a benchmark: a mode, a precision, a batch size and a number of devices."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax import config as configs
from rn50_jax import parallel
from rn50_jax.bench import stats, timing
from rn50_jax.bench.ceiling import Ceiling
from rn50_jax.bench.cpu_time import TreeClock
from rn50_jax.bench.device import sheet
from rn50_jax.bench.flops import count_flops
from rn50_jax.bench.profile import profile
from rn50_jax.build import build_model, build_normalisation, build_state
from rn50_jax.data.synthetic import synthetic_batch, synthetic_dataset
from rn50_jax.diagnosis import telling_of_memory
from rn50_jax.errors import RunStopped, UserError
from rn50_jax.models.fold import inference_form
from rn50_jax.plan import make_plan
from rn50_jax.state import variables_of
from rn50_jax.step import predict_step
from rn50_jax.train import compile_steps
from rn50_jax.workdir import describe_devices


class Point(NamedTuple):
    """What is timed. batch_size: per device; global_batch: with strong scaling, what the devices share, else 0."""

    mode: str
    precision: str
    batch_size: int
    devices: int
    global_batch: int = 0


class Program(NamedTuple):
    """A compiled step with its data on the devices.

    run: seconds of each of so many steps. images: per step, over all devices.
    """

    run: Callable[[int], list[float]]
    images: int
    compilation: timing.Compilation
    compiled: Any
    lowering: str


def point_config(config: ConfigDict, point: Point) -> ConfigDict:
    """The config of one point, on synthetic data.

    Raises:
      UserError: the point's values do not fit the config.
    """
    changes = [("data.backend", "synthetic"), ("precision", point.precision), ("batch_size", str(point.batch_size))]
    changed = configs.override(config, changes)
    configs.validate(changed)
    return changed


def make_program(config: ConfigDict, mode: str, devices: list[jax.Device]) -> Program:
    """Compiles the step of training ("train", two steps queued) or prediction ("infer", one after the other)."""
    mesh = parallel.make_mesh(devices)
    model = build_model(config, num_classes=num_classes(config), platform=devices[0].platform)
    make = _train_program if mode == "train" else _infer_program
    return make(config, model, mesh)


def num_classes(config: ConfigDict) -> int:
    """Of synthetic data."""
    return len(synthetic_dataset(config).class_names)


def _train_program(config: ConfigDict, model: Any, mesh: Mesh) -> Program:
    plan = make_plan(config, num_images=config.data.synthetic_images[0], num_devices=mesh.devices.size)
    step, _ = compile_steps(config, model, plan, mesh)
    batch = synthetic_batch(config, plan.device_batch, mesh)
    state = parallel.replicate(build_state(config, model), mesh)
    compilation, compiled = timing.compile_program(step, state, batch)

    def one_step() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    def run(count: int) -> list[float]:
        return timing.time_queued(one_step, count)

    return Program(run, plan.global_batch, compilation, compiled, model.lowering)


def _infer_program(config: ConfigDict, model: Any, mesh: Mesh) -> Program:
    variables = variables_of(build_state(config, model))["val"]
    platform = mesh.devices.flat[0].platform
    model, variables = inference_form(model, variables, config.model.fold_batch_norm, platform=platform)
    normalisation = build_normalisation(config)
    one_step = partial(predict_step, model=model, axis_name=parallel.AXIS, normalisation=normalisation)
    step = parallel.spread(one_step, mesh, mode=config.parallel, stacked=True)
    batch = synthetic_batch(config, config.batch_size, mesh)
    variables = parallel.replicate(variables, mesh)
    compilation, compiled = timing.compile_program(step, variables, batch)
    run = partial(timing.time_single, lambda: step(variables, batch))
    return Program(run, config.batch_size * mesh.devices.size, compilation, compiled, model.lowering)


def measure(
    config: ConfigDict,
    point: Point,
    *,
    steps: int,
    warmup: int,
    ceiling: Ceiling | None = None,
    trace: Path | None = None,
) -> dict[str, Any]:
    """Times `steps` steps after a first call and `warmup` further ones; the batch stays on the devices.

    Args:
      config: as `point_config` makes it.
      trace: a folder for a trace of ten further steps, which "profile" then sums up.

    Returns:
      What was timed; images_per_second at the median step; step_seconds, see `stats.summarise`; what compiling cost;
      memory; and how far the devices were used, see `usage`. Where the device lacks memory or the precision: what was
      to be timed, and "error".
    """
    devices = jax.local_devices()[: point.devices]
    result: dict[str, Any] = {
        "mode": point.mode,
        "arch": config.model.arch,
        "image_size": config.data.image_size,
        "precision": config.precision,
        "parallel": config.parallel,
        "devices": describe_devices(devices),
        "platform": devices[0].platform,
        "num_devices": point.devices,
        "batch_size_per_device": config.batch_size,
        "batch_norm": "folded" if point.mode == "infer" and config.model.fold_batch_norm != "off" else "computed",
        "scaling": "strong" if point.global_batch else "weak",
        "steps": steps,
        "warmup": warmup,
    }
    try:
        parallel.find_devices(backend="synthetic", precision=config.precision)
    except UserError as error:
        return result | {"error": str(error)}
    try:
        with telling_of_memory(config):
            peak_before = _peak(devices[0])
            program = make_program(config, point.mode, devices)
            result |= _time(program, steps, warmup) | _memory(devices[0], peak_before, program.compilation)
            if trace:
                text = program.compiled.as_text()
                copy = ceiling.gbytes_per_second if ceiling else None
                options: dict[str, Any] = {"mode": point.mode, "copy_gbytes_per_second": copy}
                result["profile"] = profile(program.run, text, trace, steps=min(steps, 10), **options)
    except RunStopped as error:
        return result | {"error": "out of memory", "error_detail": str(error)}
    model = build_model(config, num_classes=num_classes(config), platform=devices[0].platform)
    flops = count_flops(model, config.data.image_size).of(point.mode)
    return result | usage(result, flops, program.compilation.bytes_accessed, ceiling, devices[0].device_kind)


def _time(program: Program, steps: int, warmup: int) -> dict[str, Any]:
    start = time.perf_counter()
    program.run(1)
    first_call = time.perf_counter() - start
    if warmup:
        program.run(warmup)
    clock = TreeClock()
    seconds = program.run(steps)
    _, cpu = clock.stop()
    compilation = program.compilation
    return {
        "conv_lowering": program.lowering,
        "images_per_step": program.images,
        "trace_seconds": compilation.trace_seconds,
        "compile_seconds": compilation.compile_seconds,
        "compiled_from_cache": compilation.cached,
        "first_call_seconds": compilation.trace_seconds + compilation.compile_seconds + first_call,
        "first_step_seconds": first_call,
        "images_per_second": program.images / float(np.median(seconds)),
        "images_per_second_mean": program.images * steps / sum(seconds),
        "cpu_seconds_per_step": cpu / steps,
        "step_seconds": stats.summarise(seconds),
    }


def _peak(device: jax.Device) -> int:
    return int((device.memory_stats() or {}).get("peak_bytes_in_use", 0))


def _memory(device: jax.Device, before: int, compilation: timing.Compilation) -> dict[str, Any]:
    """Per device: the device's own count, if this point is what it is due to, else XLA's analysis of the program."""
    after = _peak(device)
    measured = after > before
    return {
        "peak_memory_bytes": after if measured else compilation.memory_bytes,
        "peak_memory_source": "device" if measured else "XLA's analysis of the program",
        "program_memory_bytes": compilation.memory_bytes,
    }


def usage(
    result: dict[str, Any], flops: float, bytes_accessed: float, ceiling: Ceiling | None, device_kind: str
) -> dict[str, Any]:
    """How far one device was used at the median step.

    Args:
      flops: of the network, per image. bytes_accessed: in one step by one device, as XLA estimates.

    Returns:
      tflops and gbytes_per_second achieved; megabytes_per_image; flops_of_ceiling and bandwidth_of_ceiling, shares of
      what the ceiling's matrix product and copy reached; and for known GPUs mfu, the share of the data sheet's TFLOP/s
      (model FLOP utilisation, Chowdhery et al. 2022, arXiv:2204.02311).
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
    known = sheet(device_kind, result["precision"])
    return used | ({"mfu": tflops / known[0]} if known else {})
