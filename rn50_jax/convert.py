"""Weights in and out: `python -m rn50_jax.convert SOURCE TARGET`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from rn50_jax import cli
from rn50_jax.config import loading as configs
from rn50_jax.inference.trained_model import StoredModel, add_run_arguments, describe_model, load_run, load_weights
from rn50_jax.io.messages import say
from rn50_jax.io.text import counted
from rn50_jax.weights.files import SUFFIXES, WeightFile, write_weights
from rn50_jax.weights.metadata import beside
from rn50_jax.weights.torch_names import to_torch


def save_weights(stored: StoredModel, target: Path) -> dict[str, Any]:
    """Writes a model's weights in the format of the file's suffix.

    Returns:
      What the file says about itself: inside it, or of `.pth` in `FILE.json` beside it. What neither the source nor the
      command line tells is left out.

    Raises:
      UserError: unknown suffix, the weights cannot be read or the file not be written.
    """
    meta = {key: value for key, value in describe_model(stored).items() if key not in stored.assumed}
    write_weights(target, WeightFile(to_torch(**stored.load()), meta))
    return meta


def summary(stored: StoredModel) -> str:
    """For example "resnet50, 25,557,032 parameters, 1000 classes"."""
    shapes = jax.eval_shape(
        partial(stored.model.init, train=False), jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    )
    parameters = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    return f"{stored.config.model.arch}, {parameters:,} parameters, {counted(stored.model.num_classes, 'class')}"


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = cli.CommandLine(
        prog="rn50_jax.convert",
        description="Write the weights of a run's checkpoint, or of a weight file of torchvision, timm, NVIDIA or this "
        "project, to a weight file. The architecture is read off the tensors; all of them must fit.",
        epilog="With --config.model.arch=NAME a weight file must be of that architecture.",
    )
    parser.add_argument("source", type=Path, help="work folder of a run, or a weight file")
    parser.add_argument("target", type=Path, help=f"file to write: {', '.join(SUFFIXES)}")
    add_run_arguments(parser)
    args, overrides = configs.parse_args(parser, argv)

    # Nothing is computed here: any machine and precision will do.
    overrides = [("data.backend", "synthetic"), ("precision", "fp32"), *overrides]
    if args.source.is_dir():
        stored = load_run(args.source, args.checkpoint, overrides, ema=args.ema)
    else:
        stored = load_weights(args.source, overrides)
    save_weights(stored, args.target)
    say(f"{stored.name}: {summary(stored)}")
    aside = "" if args.target.name.lower().endswith((".npz", ".safetensors")) else f" and {beside(args.target)}"
    say(f"written to {args.target}{aside}")
    return 0


if __name__ == "__main__":
    cli.run(main)
