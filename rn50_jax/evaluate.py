"""Evaluates a checkpoint on every image of `val/`: `python -m rn50_jax.evaluate --workdir W`."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rn50_jax import config as configs
from rn50_jax import errors, parallel
from rn50_jax.data.dataset import open_dataset
from rn50_jax.data.feed import eval_batches
from rn50_jax.data.folder import check_class_names
from rn50_jax.report import validation_text, write_json
from rn50_jax.state import TrainState
from rn50_jax.step import Batch, Metrics, eval_step
from rn50_jax.stored import load_run, restore_state


def evaluate(
    step: Callable[[TrainState, Batch], Metrics], state: TrainState, batches: Iterator[Batch]
) -> dict[str, float]:
    """Runs the compiled `eval_step` over all batches and divides the exact sums once, at the end.

    Returns:
      val.top1 and val.top5 in per cent, val.loss (plain cross-entropy), val.images; val.total_ips and val.compute_ips
      in images per second, with and without the time spent waiting for data; val.data_time and val.compute_latency in
      seconds per batch. The first batch, which may have to compile, does not count in the speeds unless it is alone.
    """
    sums: list[Metrics] = []
    waited = 0.0
    start = before = time.perf_counter()
    for batch in batches:
        waited += time.perf_counter() - before
        sums.append(step(state, batch))
        if len(sums) == 1:
            jax.block_until_ready(sums)
            first = time.perf_counter() - start, waited
        before = time.perf_counter()
    host = jax.device_get(sums)
    seconds = time.perf_counter() - start
    total = {key: float(np.sum([s[key] for s in host], dtype=np.float64)) for key in host[0]}
    images, counted, timed = total["images"], total["images"], len(host)
    if timed > 1:
        seconds, waited = seconds - first[0], waited - first[1]
        counted, timed = counted - float(host[0]["images"]), timed - 1
    computing = max(seconds - waited, 1e-9)
    return {
        "val.top1": 100 * total["top1"] / images,
        "val.top5": 100 * total["top5"] / images,
        "val.loss": total["loss"] / images,
        "val.images": int(images),
        "val.total_ips": counted / seconds,
        "val.compute_ips": counted / computing,
        "val.data_time": waited / timed,
        "val.compute_latency": computing / timed,
    }


def evaluate_checkpoint(workdir: Path, which: str, overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Evaluates checkpoint `which` ("best", "latest" or a step) with its own config and the given overrides.

    Returns:
      The metrics of `evaluate`, and checkpoint, step and epoch.
    """
    run = load_run(workdir, which, overrides)
    dataset = open_dataset(run.config, need_train=False)
    check_class_names(dataset.class_names, run.class_names, run.config.data.dir)
    mesh = parallel.make_mesh(run.devices)
    state = parallel.replicate(restore_state(run), mesh)
    step = partial(eval_step, model=run.model, axis_name=parallel.AXIS)
    compiled = parallel.spread(step, mesh, mode=run.config.parallel)
    metrics = evaluate(compiled, state, eval_batches(run.config, dataset.val, mesh))
    return metrics | {"checkpoint": which, "step": run.meta["step"], "epoch": run.meta["epoch"]}


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = errors.CommandLine(
        prog="rn50_jax.evaluate",
        description="Top-1, top-5 and loss of a checkpoint over exactly every image of val/.",
        epilog="Any key of the run's config can be changed with --config.key=value, e.g. --config.data.dir=DIR.",
    )
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the training run")
    parser.add_argument("--checkpoint", default="best", help="best (default), latest or a step number")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    args, overrides = configs.parse_args(parser, argv)
    result = evaluate_checkpoint(args.workdir, args.checkpoint, overrides)
    print(f"checkpoint {args.checkpoint}: step {result['step']}, epoch {result['epoch']}")
    print(validation_text(result))
    if args.json:
        write_json(args.json, result)
    return 0


if __name__ == "__main__":
    errors.run(main)
