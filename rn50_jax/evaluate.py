"""Evaluates a model on every image of `val/`: `python -m rn50_jax.evaluate --workdir W`, or `--weights FILE`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rn50_jax import cli
from rn50_jax.analysis.evaluation import evaluate_model
from rn50_jax.analysis.predictions import BINS
from rn50_jax.analysis.tables import check_target, tell_mistakes, write_analysis, write_predictions
from rn50_jax.config import loading as configs
from rn50_jax.errors import UserError
from rn50_jax.inference.trained_model import load_model, warn_assumed
from rn50_jax.io.files import telling_of_writes
from rn50_jax.io.json_files import write_json
from rn50_jax.io.messages import say
from rn50_jax.io.terminal import columns
from rn50_jax.loggers.console import validation_text
from rn50_jax.runtime.run_folder import describe_devices

_TTA = ", test-time augmentation: mean of each image and its mirror image"


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.CommandLine(
        prog="rn50_jax.evaluate",
        description="Top-1, top-5 and loss of a model over exactly every image of val/.",
        epilog="Any key of its config can be changed with --config.key=value, e.g. --config.data.dir=DIR.",
    )
    cli.add_model_arguments(parser)
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
    trained = load_model(args, overrides)
    wanted = args.per_class or bool(args.predictions)
    result, predictions = evaluate_model(trained, flip_tta=args.flip_tta, predictions=wanted)
    warn_assumed(trained)
    say(f"{trained.name}, on {describe_devices(trained.devices)}{_TTA if args.flip_tta else ''}")
    say(validation_text(result, classes=trained.model.num_classes))
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
        with telling_of_writes():
            write_json(args.json, result)
    return 0


if __name__ == "__main__":
    cli.run(main)
