"""Weights in and out: `python -m rn50_jax.convert SOURCE TARGET`."""

from collections.abc import Sequence
from pathlib import Path

import jax

from rn50_jax import config as configs
from rn50_jax import errors
from rn50_jax.stored import add_run_arguments, load_run, load_weights
from rn50_jax.weight_files import SUFFIXES, WeightFile, write_weights
from rn50_jax.weights import to_torch


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = errors.CommandLine(
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
    from_run = args.source.is_dir()
    if from_run:
        stored = load_run(args.source, args.checkpoint, overrides, ema=args.ema)
    else:
        stored = load_weights(args.source, overrides)
    variables = stored.load()
    data = stored.config.data
    meta = {"class_names": list(stored.class_names)} if stored.class_names else {}
    if from_run or meta:
        meta |= {"image_size": data.image_size, "resize": data.resize, "transform": data.transform}
    meta |= {key: stored.facts[key] for key in ("step",) if key in stored.facts}
    write_weights(args.target, WeightFile(to_torch(**variables), meta))
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    print(f"{stored.name}: {stored.config.model.arch}, {parameters:,} parameters, {stored.model.num_classes} classes")
    print(f"written to {args.target}")
    return 0


if __name__ == "__main__":
    errors.run(main)
