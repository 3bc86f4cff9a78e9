"""Classifies images: `python -m rn50_jax.predict --workdir W IMAGE [IMAGE ...]`, or `--weights FILE`."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path

import jax
import numpy as np

from rn50_jax import cli
from rn50_jax.config import loading as configs
from rn50_jax.data.dali_errors import need_dali
from rn50_jax.data.formats.imagenet_names import human_names, likely_names
from rn50_jax.data.normalize import pixel_normalization
from rn50_jax.distributed.devices import AXIS, make_mesh, map_over_devices, place, shard
from rn50_jax.errors import UserError
from rn50_jax.inference.image_files import Decoded, Found, batched, decode_files, find_images
from rn50_jax.inference.output_formats import FOR_PEOPLE, FORMATS, Answer
from rn50_jax.inference.predict_step import predict_step
from rn50_jax.inference.trained_model import TrainedModel, load_for_inference, load_model, warn_assumed
from rn50_jax.io.files import written_whole
from rn50_jax.io.messages import tell_end
from rn50_jax.io.text import counted
from rn50_jax.runtime.progress_bar import progress
from rn50_jax.runtime.run_folder import describe_devices

BATCH_SIZES = {"cpu": 32, "gpu": 256}  # images per device: enough to fill one

Classify = Callable[[Sequence[np.ndarray]], jax.Array]


def make_classifier(trained: TrainedModel, *, batch_size: int, devices: Sequence[jax.Device]) -> Classify:
    """Loads the weights; compiles at the first call.

    Returns:
      A function from up to `batch_size` images per device, uint8 [S, S, 3], to their class probabilities: float32
      [D, batch_size, K], the images in their order and nonsense behind them, perhaps still being computed.
    """
    mesh = make_mesh(devices)
    model, loaded = load_for_inference(trained)
    normalization = pixel_normalization(trained.config.data.mean, trained.config.data.std)
    step = partial(predict_step, model=model, axis_name=AXIS, normalization=normalization)
    compiled = map_over_devices(step, mesh, mode=trained.config.compute.parallel, stacked=True)
    variables = place(loaded, mesh)
    size = trained.config.data.image_size
    shape = (len(devices), batch_size, size, size, 3)

    def classify(images: Sequence[np.ndarray]) -> jax.Array:
        batch = np.zeros(shape, np.uint8)  # a new one: the device may still read the last
        batch.reshape(-1, *shape[2:])[: len(images)] = images
        probabilities: jax.Array = compiled(variables, {"image": shard(batch, mesh)})
        return probabilities

    return classify


def answers(
    trained: TrainedModel, files: Iterable[Found], *, top_k: int, batch_size: int, by_pillow: bool = False
) -> Iterator[Answer]:
    """Classifies files on all devices, decoding the next ones meanwhile; holds a few batches at a time.

    Args:
      batch_size: images per device.
      by_pillow: as in `decode_files`.

    Yields:
      For each file, in order, {"file", "predictions": [{"class", "index", "probability"}]}, best first, or
      {"file", "error"}.
    """
    names = human_names(trained.class_names or likely_names(trained.model.num_classes))
    decoded = decode_files(files, trained.config.data, by_pillow=by_pillow)
    batches = batched(decoded, batch_size * len(trained.devices))
    first = next(batches, [])
    devices = trained.devices if len(first) > batch_size else trained.devices[:1]  # one has room for all
    classify = make_classifier(trained, batch_size=min(batch_size, len(first)), devices=devices)
    waiting: Iterator[Answer] = iter(())
    for batch in chain([first], batches):
        images = [item.image for item in batch if item.image is not None]
        probabilities = classify(images) if images else None
        yield from waiting  # the answers before are given while this batch is on the device
        waiting = _tell(batch, probabilities, names, top_k)
    yield from waiting


def _tell(batch: list[Decoded], probabilities: jax.Array | None, names: Sequence[str], top_k: int) -> Iterator[Answer]:
    rows = iter(() if probabilities is None else np.asarray(probabilities).reshape(-1, len(names)))
    for decoded in batch:
        if decoded.image is None:
            yield {"file": decoded.file, "error": decoded.problem}
            continue
        p = next(rows)
        best = np.argsort(-p, kind="stable")[:top_k]
        predictions = [{"class": names[i], "index": int(i), "probability": float(p[i])} for i in best]
        yield {"file": decoded.file, "predictions": predictions}


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code: 1 if an image could not be classified."""
    parser = cli.CommandLine(
        prog="rn50_jax.predict",
        description="Name the classes of images, seen through the transform of evaluation.",
        epilog="Exit code 1: some files could not be classified; the others have their answers. "
        "--config.data.workers=N decodes with N threads instead of one per core.",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="JPEG, PNG, WebP, BMP, TIFF, ...; a folder, for all in it; a 'pattern*'; or -, names on standard input",
    )
    cli.add_model_arguments(parser)
    parser.add_argument("--top_k", type=int, default=5, help="how many classes to name (default: 5)")
    parser.add_argument(
        "--resize",
        choices=("dali", "pillow"),
        default="dali",
        help="what decodes and resizes: DALI, as in evaluation (default), or Pillow, as in NVIDIA's classify.py",
    )
    parser.add_argument("--format", choices=tuple(FORMATS), help="default: by the name of FILE, else table")
    parser.add_argument("--json", action="store_const", dest="format", const="json", help="the same as --format json")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the answers there, not to standard output")
    parser.add_argument("--batch_size", type=int, help="images per device (default: 32 on a CPU, 256 on a GPU)")
    parser.add_argument("-0", "--null", action="store_true", help="names on standard input end in NUL characters")
    args, overrides = configs.parse_args(parser, argv)
    for name in ("top_k", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} must be at least 1")
    if args.resize == "dali":
        need_dali("--resize pillow")
    # Files are decoded on the CPU, also for a run that was trained with dali-gpu, and here all its cores are free.
    cores = len(os.sched_getaffinity(0))
    trained = load_model(args, [("data.backend", "dali-cpu"), ("data.workers", str(cores)), *overrides])
    if sys.stderr.isatty():  # a script gets the answers alone
        tell_end(f"{trained.name}, on {describe_devices(trained.devices)}")
    batch_size = args.batch_size or BATCH_SIZES.get(trained.devices[0].platform, 32)
    files = find_images(args.images, null=args.null, notes=True)
    by_pillow = args.resize == "pillow"
    result = answers(trained, files, top_k=args.top_k, batch_size=batch_size, by_pillow=by_pillow)
    code = _write(result, args.images, args.out, args.format)
    warn_assumed(trained)
    return code


def _write(result: Iterator[Answer], words: Sequence[str], out: Path | None, form: str | None) -> int:
    suffix = out.suffix.lower().removeprefix(".") if out else ""
    form = form or (suffix if suffix in FORMATS else "table")
    failed: list[bool] = []
    total = None if "-" in words else (lambda: sum(1 for _ in find_images(words)))

    def counting(answers: Iterator[Answer], advance: Callable[[int], None]) -> Iterator[Answer]:
        for answer in answers:
            failed.append("error" in answer)
            advance(1)
            yield answer

    # Where the answers go to the terminal, they are the progress.
    shown = out is not None or not sys.stdout.isatty()
    people = form in FOR_PEOPLE and not out
    try:
        # Names of files may be any bytes; in CSV they leave as they came.
        with (
            written_whole(out) if out else nullcontext(sys.stdout.fileno()) as target,
            nullcontext(sys.stdout)
            if people
            else open(target, "w", encoding="utf-8", errors="surrogateescape", newline="", closefd=bool(out)) as file,
            progress("classified", total, unit="img") if shown else nullcontext(lambda _: None) as advance,
        ):
            FORMATS[form](counting(result, advance), file)
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.filename not in (None, str(out)):
            raise
        raise UserError(f"cannot write {out or 'standard output'}: {error.strerror}") from error
    # JSON in a terminal may be copied from there.
    if out or (len(failed) > 1 and not (sys.stdout.isatty() and form in ("json", "jsonl"))):
        failures = f", {sum(failed):,} failed" if any(failed) else ""
        where = f"; the answers are in {out}" if out else ""
        tell_end(f"{counted(failed.count(False), 'image')} classified{failures}{where}")
    return int(any(failed))


if __name__ == "__main__":
    cli.run(main)
