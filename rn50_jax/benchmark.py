"""Times the compiled step on synthetic data: `python -m rn50_jax.benchmark --config C --mode train|infer`."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax import config as configs
from rn50_jax import errors, parallel
from rn50_jax.build import build_model, build_state
from rn50_jax.data.synthetic import synthetic_batch, synthetic_dataset
from rn50_jax.errors import UserError
from rn50_jax.models.resnet import ResNet
from rn50_jax.plan import Plan, make_plan
from rn50_jax.state import variables_of
from rn50_jax.step import predict_step
from rn50_jax.train import compile_steps
from rn50_jax.workdir import describe_devices, versions, write_json


def benchmark(config: ConfigDict, mode: str, *, steps: int, warmup: int) -> dict[str, Any]:
    """Times `steps` steps after one compiling and `warmup` further ones; the batch stays on the devices.

    Args:
      mode: "train" times updates with two steps queued, as training runs them; "infer" the latency of
        single batches, one after the other.

    Returns:
      The setting, images_per_second at the median step, and step_seconds: median, mean, min, max and percentiles.
    """
    devices = parallel.find_devices(backend="synthetic", precision=config.precision)
    mesh = parallel.make_mesh(devices)
    dataset = synthetic_dataset(config)
    model = build_model(config, num_classes=len(dataset.class_names), platform=devices[0].platform)
    plan = make_plan(config, num_images=len(dataset.train.labels), num_devices=len(devices))
    make_timer = _train_timer if mode == "train" else _infer_timer
    run, images = make_timer(config, model, plan, mesh)
    start = time.perf_counter()
    run(1)
    first_call = time.perf_counter() - start
    run(warmup)
    seconds = run(steps)
    median = float(np.median(seconds))
    return {
        "mode": mode,
        "arch": config.model.arch,
        "image_size": config.data.image_size,
        "precision": config.precision,
        "parallel": config.parallel,
        "conv_lowering": model.lowering,
        "devices": describe_devices(devices),
        "batch_size_per_device": config.batch_size,
        "images_per_step": images,
        "steps": steps,
        "warmup": warmup,
        "first_call_seconds": first_call,
        "images_per_second": images / median,
        "step_seconds": {
            "median": median,
            "mean": float(np.mean(seconds)),
            "min": min(seconds),
            "max": max(seconds),
            **{f"p{q}": float(np.percentile(seconds, q)) for q in (90, 95, 99)},
        },
        "versions": versions(),
    }


Timer = Callable[[int], list[float]]


def _train_timer(config: ConfigDict, model: ResNet, plan: Plan, mesh: Mesh) -> tuple[Timer, int]:
    step, _ = compile_steps(config, model, plan, mesh)
    batch = synthetic_batch(config, plan.device_batch, mesh)
    state = parallel.replicate(build_state(config, model), mesh)

    def run(count: int) -> list[float]:
        nonlocal state
        ready, previous = [time.perf_counter()], None
        for _ in range(count):
            state, metrics = step(state, batch)
            if previous is not None:
                jax.block_until_ready(previous)
                ready.append(time.perf_counter())
            previous = metrics
        jax.block_until_ready((previous, state))
        ready.append(time.perf_counter())
        return list(np.diff(ready))

    return run, plan.global_batch


def _infer_timer(config: ConfigDict, model: ResNet, plan: Plan, mesh: Mesh) -> tuple[Timer, int]:
    one_step = partial(predict_step, model=model, axis_name=parallel.AXIS)
    step = parallel.spread(one_step, mesh, mode=config.parallel, stacked=True)
    batch = synthetic_batch(config, config.batch_size, mesh)
    variables = parallel.replicate(variables_of(build_state(config, model))["val"], mesh)

    def run(count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            jax.block_until_ready(step(variables, batch))
            seconds.append(time.perf_counter() - start)
        return seconds

    return run, config.batch_size * plan.num_devices


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = errors.CommandLine(
        prog="rn50_jax.benchmark",
        description="Images per second and latency of the compiled step, without any input pipeline.",
        epilog="Any key of configs/default.py can be changed with --config.key=value, e.g. --config.batch_size=64.",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="a file of configs/")
    parser.add_argument("--mode", choices=("train", "infer"), default="train", help="default: train")
    parser.add_argument("--steps", type=int, default=100, help="steps that are timed (default: 100)")
    parser.add_argument("--warmup", type=int, default=10, help="steps before them (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    args, overrides = configs.parse_args(parser, argv)
    if args.steps < 1 or args.warmup < 0:
        raise UserError("--steps must be at least 1 and --warmup at least 0")
    config, _ = configs.load(args.config)
    config = configs.override(config, [*overrides, ("data.backend", "synthetic")])
    configs.validate(config)
    result = benchmark(config, args.mode, steps=args.steps, warmup=args.warmup)
    times = {name: f"{1000 * value:.2f}" for name, value in result["step_seconds"].items()}
    print(
        f"{result['arch']} {args.mode}, {result['precision']}, {result['image_size']} px, {result['devices']}, "
        f"{result['images_per_step']} images a step"
    )
    print(f"{result['images_per_second']:.1f} images per second at the median step")
    print("step, ms: " + ", ".join(f"{name} {value}" for name, value in times.items()))
    print(f"first call, compilation included: {result['first_call_seconds']:.1f} s")
    if args.json:
        write_json(args.json, result)
    return 0


if __name__ == "__main__":
    errors.run(main)
