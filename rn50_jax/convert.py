"""Weights in and out: `python -m rn50_jax.convert SOURCE TARGET`."""

from collections.abc import Sequence
from pathlib import Path

from rn50_jax import cli
from rn50_jax.config import loading as configs
from rn50_jax.inference.trained_model import load_run, load_weights, save_weights, summary
from rn50_jax.io.messages import say
from rn50_jax.weights.files import SUFFIXES
from rn50_jax.weights.metadata import beside


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.CommandLine(
        prog="rn50_jax.convert",
        description="Write the weights of a run's checkpoint, or of a weight file of torchvision, timm, NVIDIA or this "
        "project, to a weight file. The architecture is read off the tensors; all of them must fit.",
        epilog="With --config.model.arch=NAME a weight file must be of that architecture.",
    )
    parser.add_argument("source", type=Path, help="work folder of a run, or a weight file")
    parser.add_argument("target", type=Path, help=f"file to write: {', '.join(SUFFIXES)}")
    cli.add_run_arguments(parser)
    args, overrides = configs.parse_args(parser, argv)

    # Nothing is computed here: any machine and precision will do.
    overrides = [("data.backend", "synthetic"), ("precision", "fp32"), *overrides]
    if args.source.is_dir():
        trained = load_run(args.source, args.checkpoint, overrides, ema=args.ema)
    else:
        trained = load_weights(args.source, overrides)
    save_weights(trained, args.target)
    say(f"{trained.name}: {summary(trained)}")
    aside = "" if args.target.name.lower().endswith((".npz", ".safetensors")) else f" and {beside(args.target)}"
    say(f"written to {args.target}{aside}")
    return 0


if __name__ == "__main__":
    cli.run(main)
