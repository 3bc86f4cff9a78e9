"""Evaluates a model on every image of `val/`: `python -m rn50_jax.evaluate --workdir W`, or `--weights FILE`."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax import cli
from rn50_jax.analysis.predictions import BINS, Predictions
from rn50_jax.analysis.tables import check_target, tell_mistakes, write_analysis, write_predictions
from rn50_jax.config import loading as configs
from rn50_jax.data.dali_errors import need_dali
from rn50_jax.data.dataset import open_dataset
from rn50_jax.data.formats.class_folders import Dataset, with_classes
from rn50_jax.data.images.transform import rendering_of
from rn50_jax.data.loader import eval_batches
from rn50_jax.data.sampler import eval_order
from rn50_jax.distributed.devices import AXIS, make_mesh, place, spread
from rn50_jax.errors import UserError
from rn50_jax.inference.trained_model import (
    StoredModel,
    add_source_arguments,
    load_for_inference,
    load_model,
    warn_assumed,
)
from rn50_jax.io.messages import say
from rn50_jax.io.terminal import columns
from rn50_jax.io.text import counted
from rn50_jax.loggers.console import validation_text
from rn50_jax.models.resnet import ResNet, Variables
from rn50_jax.runtime.run_folder import describe_devices, write_json
from rn50_jax.training.build import build_normalisation
from rn50_jax.training.step import Batch, Metrics, eval_step, examine_step

EvalStep = Callable[[Variables, Batch], Metrics]


def evaluate(step: EvalStep, variables: dict[str, Variables], batches: Iterator[Batch]) -> dict[str, float]:
    """Runs the compiled `eval_step` over all batches and divides the exact sums once, at the end.

    Args:
      variables: what to evaluate by the prefix of its metrics, see `state.variables_of`; all see the same batches.

    Returns:
      For each prefix, "val" as an example: val.top1 and val.top5 in per cent, val.loss (plain cross-entropy) and
      val.loss_smoothed if the step has it. Then val.images; val.total_ips and val.compute_ips in images per second,
      with and without the time spent waiting for data; val.data_time and val.compute_latency in seconds per batch,
      the latter also at quantiles (_at90, _at95, _at99, _at100). The first batch, which may have to compile, does not
      count in the times unless it is alone.
    """
    sums: list[dict[str, Metrics]] = []
    waited: list[float] = []
    ready = [time.perf_counter()]
    before = ready[0]
    for batch in batches:
        waited.append(time.perf_counter() - before)
        sums.append({prefix: step(weights, batch) for prefix, weights in variables.items()})
        if len(sums) > 1:
            # One batch stays queued: the device never idles, and batches cannot pile up in its memory.
            jax.block_until_ready(sums[-2])
            ready.append(time.perf_counter())
        before = time.perf_counter()
    host = jax.device_get(sums)
    ready.append(time.perf_counter())
    result: dict[str, float] = {}
    for prefix in variables:
        part = [batch_sums[prefix] for batch_sums in host]
        total = {key: float(np.sum([s[key] for s in part], dtype=np.float64)) for key in part[0]}
        images = total.pop("images")
        for key, value in total.items():
            result[f"{prefix}.{key}"] = (100 if key.startswith("top") else 1) * value / images
    per_batch = np.array([next(iter(batch_sums.values()))["images"] for batch_sums in host], np.float64)
    return result | {"val.images": int(images)} | _times(per_batch, np.array(waited), np.array(ready))


def _times(images: np.ndarray, waited: np.ndarray, ready: np.ndarray) -> dict[str, float]:
    """Speeds and latencies from when each batch had arrived and was ready, and how long each was waited for."""
    intervals, waits = np.diff(ready), np.append(waited[1:], 0.0)  # while a batch runs, the next one is waited for
    waits[0] += waited[0]
    if len(images) > 1:
        intervals, waits, images = intervals[1:], waits[1:], images[1:]
    latencies = np.maximum(intervals - waits, 1e-9)
    result = {
        "val.total_ips": float(np.sum(images) / np.sum(intervals)),
        "val.compute_ips": float(np.sum(images) / np.sum(latencies)),
        "val.data_time": float(np.mean(waits)),
        "val.compute_latency": float(np.mean(latencies)),
    }
    for percent in (90, 95, 99, 100):
        at = np.quantile(latencies, percent / 100, method="nearest")
        result[f"val.compute_latency_at{percent}"] = float(at)
    return result


def evaluate_stored(stored: StoredModel, *, flip_tta: bool = False) -> dict[str, Any]:
    """Evaluates a run's checkpoint or a weight file on `val/` of its config's data, or on `run.prof` batches of it.

    Args:
      flip_tta: see `step.eval_step`; the result then says so.

    Returns:
      The metrics of `evaluate`, named val.* for averaged weights too, and `stored.facts`.

    Raises:
      UserError: the data's classes are not those of the model, or the state cannot be read.
    """
    config, dataset = stored.config, _open_dataset(stored)
    mesh = make_mesh(stored.devices)
    model, loaded = load_for_inference(stored, exact=True)
    variables = place(loaded, mesh)
    compiled = spread(make_eval_step(config, model, flip_tta=flip_tta), mesh, mode=config.parallel)
    result = evaluate(compiled, {"val": variables}, _batches(config, dataset, mesh))
    return result | stored.facts | ({"flip_tta": True} if flip_tta else {})


def examine_stored(stored: StoredModel, *, flip_tta: bool = False) -> tuple[dict[str, Any], Predictions]:
    """`evaluate_stored`, and what the model said about each image.

    Returns:
      The same metrics, with val.ece of `analysis.calibration`, and the predictions for all images that were evaluated.
    """
    config, dataset = stored.config, _open_dataset(stored)
    mesh = make_mesh(stored.devices)
    model, loaded = load_for_inference(stored, exact=True)
    variables = place(loaded, mesh)
    step = partial(examine_step, model=model, axis_name=AXIS, **_options(config, flip_tta))
    compiled = spread(step, mesh, mode=config.parallel)
    ranked: list[Metrics] = []

    def remembering(weights: Variables, batch: Batch) -> Metrics:
        sums, found = compiled(weights, batch)
        ranked.append(found)
        return sums

    result = evaluate(remembering, {"val": variables}, _batches(config, dataset, mesh))
    arrays = [jax.device_get(found) for found in ranked]
    order, _ = eval_order(len(dataset.val.labels), num_devices=mesh.devices.size, device_batch=config.batch_size)
    weights, classes, probabilities = (
        np.concatenate([found[key].reshape(-1, *found[key].shape[2:]) for found in arrays])
        for key in ("weight", "class", "probability")
    )
    kept = np.flatnonzero(weights)  # neither padding nor images that could not be decoded
    index = order.reshape(-1)[kept]
    labels = dataset.val.labels[index]
    found = classes[kept], probabilities[kept]
    predictions = Predictions(dataset.val, index, labels, *found, dataset.class_names, rendering_of(config))
    named = {"flip_tta": True} if flip_tta else {}
    return result | {"val.ece": predictions.calibration().error} | stored.facts | named, predictions


def _batches(config: ConfigDict, dataset: Dataset, mesh: Mesh) -> Iterator[Batch]:
    return islice(eval_batches(config, dataset.val, mesh), config.run.prof or None)


def _open_dataset(stored: StoredModel) -> Dataset:
    """The data set of a model's config, whose classes must be the model's."""
    config = stored.config
    if config.data.backend != "synthetic":
        need_dali()
    dataset = open_dataset(config, need_train=False, val_images=stored.val_images)
    if config.data.val_share:
        say(
            f"on the {config.data.val_share:.3g} of each class of {config.data.dir} that training set apart (for all "
            "images: --config.data.val_share=0)"
        )
    if stored.class_names:
        return with_classes(dataset, stored.class_names, config.data.dir)
    if len(dataset.class_names) != stored.model.num_classes:
        raise UserError(
            f"{config.data.dir} has {counted(len(dataset.class_names), 'class folder')}, and {stored.name} is "
            f"of a model with {counted(stored.model.num_classes, 'class')}; pass --config.data.dir=DIR"
        )
    return dataset


def make_eval_step(config: ConfigDict, model: ResNet, *, flip_tta: bool = False) -> EvalStep:
    """The evaluation step of one device, the same in training and afterwards."""
    return partial(eval_step, model=model, axis_name=AXIS, **_options(config, flip_tta))


def _options(config: ConfigDict, flip_tta: bool) -> dict[str, Any]:
    return {
        "label_smoothing": config.recipe.label_smoothing,
        "flip_tta": flip_tta,
        "normalisation": build_normalisation(config),
    }


_TTA = ", test-time augmentation: mean of each image and its mirror image"


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = cli.CommandLine(
        prog="rn50_jax.evaluate",
        description="Top-1, top-5 and loss of a model over exactly every image of val/.",
        epilog="Any key of its config can be changed with --config.key=value, e.g. --config.data.dir=DIR.",
    )
    add_source_arguments(parser)
    group = parser.add_argument_group("what it gets wrong")
    group.add_argument(
        "--per_class",
        action="store_true",
        help="worst classes and confusions, all of them as tables in "
        "DIR, with an image sheet of the most confident mistakes and a reliability diagram",
    )
    group.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/evaluation, or evaluation here")
    group.add_argument(
        "--predictions", type=Path, metavar="FILE", help="five best classes of each image, .csv or .parquet"
    )
    parser.add_argument(
        "--flip_tta", action="store_true", help="test-time augmentation: the mean over each image and its mirror image"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    args, overrides = configs.parse_args(parser, argv)
    if args.out and not args.per_class:
        raise UserError("--out is of use with --per_class alone")
    if args.predictions:
        check_target(args.predictions)
    stored = load_model(args, overrides)
    predictions = None
    if args.per_class or args.predictions:
        result, predictions = examine_stored(stored, flip_tta=args.flip_tta)
    else:
        result = evaluate_stored(stored, flip_tta=args.flip_tta)
    warn_assumed(stored)
    say(f"{stored.name}, on {describe_devices(stored.devices)}{_TTA if args.flip_tta else ''}")
    say(validation_text(result, classes=stored.model.num_classes))
    if predictions:
        say(f"calibration  {100 * result['val.ece']:.2f} % expected calibration error over {BINS} bins")
        if args.per_class:
            folder = args.out or (args.workdir or Path()) / "evaluation"
            for line in tell_mistakes(predictions, columns(sys.stdout)):
                say(line)
            write_analysis(predictions, folder)
            say(f"written to {folder}")
        if args.predictions:
            write_predictions(predictions, args.predictions)
    if args.json:
        write_json(args.json, result)
    return 0


if __name__ == "__main__":
    cli.run(main)
