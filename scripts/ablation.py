#!/usr/bin/env python3
"""Trains a configuration plainly and with one option at a time, with several seeds each, and prints a table.

    python scripts/ablation.py --config configs/fashion_mnist.py:minutes --seeds 3

Without --only, all of OPTIONS below, which are written for that configuration. Seeds go round the options, so that a
table that is cut short compares equals; what has finished is kept, and the same command goes on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from seeds import Outcome, difference_text, group_text, outcome, print_table, train_command

from rn50_jax import cli
from rn50_jax.config import loading as configs
from rn50_jax.errors import UserError

PLAIN = "plain"
OPTIONS: dict[str, list[str]] = {
    PLAIN: [],
    "bf16": ["precision=bf16"],
    "fp16, dynamic scale": ["precision=fp16", "loss_scale.mode=dynamic", "loss_scale.init=65536"],
    "label smoothing 0.1": ["recipe.label_smoothing=0.1"],
    "mixup 0.2": ["recipe.mixup=0.2"],
    "CutMix 1.0": ["recipe.cutmix=1.0"],
    "random erasing 0.25": ["recipe.random_erasing=0.25"],
    "RandAugment 2, 9": ["data.augment=randaugment"],
    "averaged weights 0.99": ["recipe.ema_decay=0.99"],
    "LARS": ["recipe.optimizer=lars", "recipe.lr=4.0", "recipe.decay_mask=no_bn_bias"],
    "LAMB": ["recipe.optimizer=lamb", "recipe.lr=0.01", "recipe.decay_mask=no_bn_bias", "recipe.weight_decay=0.01"],
    "accumulation 4 x 32": ["batch_size=32", "recipe.optimizer_batch_size=128"],
    "progressive 20 to 28 px": ["data.image_sizes=((0, 20), (5, 28))"],
}


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.CommandLine(
        prog="rn50_jax.ablation",
        description="Train a configuration plainly and with one option at a time, with several seeds each.",
    )
    parser.prog = "python scripts/ablation.py"
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="as of rn50_jax.train")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each, from config.seed on (3)")
    parser.add_argument("--only", nargs="+", choices=list(OPTIONS), metavar="OPTION", help=f"of {', '.join(OPTIONS)}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keeps the runs (default: runs/ablation/<config name>)")
    args, overrides = configs.parse_args(parser, argv)
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds} must be at least 1")
    names = [name for name in OPTIONS if name == PLAIN or name in (args.only or OPTIONS)]
    given = {key for key, _ in overrides}
    for name in names:
        if clash := given & {option.partition("=")[0] for option in OPTIONS[name]}:
            raise UserError(f"--config.{min(clash)} is what {name!r} changes; leave one of them out, see --only")
    changes = {name: [*overrides, *(tuple(option.split("=", 1)) for option in OPTIONS[name])] for name in names}
    # All of them, so that what cannot be trained is refused before the first hour.
    loaded = {name: configs.load(args.config, changed) for name, changed in changes.items()}
    config, config_name = loaded[PLAIN]
    out = args.out or Path("runs/ablation") / config_name

    found: dict[str, list[Outcome]] = {name: [] for name in names}
    for seed in range(config.seed, config.seed + args.seeds):
        for name in names:
            workdir = out / f"{name.replace(' ', '-').replace(',', '')}-seed{seed}"
            options = [f"--config.{key}={text}" for key, text in changes[name] if key != "seed"]
            found[name].append(outcome(train_command(args.config, workdir, options, seed), workdir))
            print(f"seed {seed}, {name}: {found[name][-1].top1:.2f} %", file=sys.stderr, flush=True)
    print_options(found)
    return 0


def print_options(found: dict[str, list[Outcome]]) -> None:
    """Prints the table of each option's runs beside the plain ones."""
    time = sum(run.processor_seconds for run in found[PLAIN])
    rows = [
        [
            name,
            " ".join(f"{run.top1:.2f}" for run in runs),
            group_text(runs),
            difference_text(runs, found[PLAIN]) if name != PLAIN else "",
            f"{sum(run.processor_seconds for run in runs) / time:.2f}",
        ]
        for name, runs in found.items()
    ]
    head = ["option", "top-1 of each seed, %", "mean ± sd", "difference (95 % interval), p"]
    print_table([*head, "processor time"], rows)


if __name__ == "__main__":
    cli.run(main)
