#!/usr/bin/env python3
"""Trains one configuration with this project and with plain PyTorch, on the same batches, and compares accuracies.

    python scripts/twin.py --config configs/quickstart.py --seeds 3

For each seed one run of `rn50_jax.train` and one of `torch_train.py`, both on the CPU in float32, one after the other.
Prints a Markdown table and what it says. What has finished is kept: the same command goes on, also with more seeds.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from seeds import (  # noqa: E402, after the path
    Outcome,
    difference,
    difference_text,
    group_text,
    outcome,
    print_table,
    train_command,
)
from torch_train import refuse_unread  # noqa: E402

from rn50_jax import cli  # noqa: E402
from rn50_jax.config import loading as configs  # noqa: E402
from rn50_jax.errors import UserError  # noqa: E402

CHANCE = 0.05
PROGRAMS = ("PyTorch", "rn50-jax")  # in this order: PyTorch refuses what is not alike before an hour is spent


def verdict(theirs: Sequence[Outcome], ours: Sequence[Outcome]) -> str:
    """Returns in a sentence whether the accuracies of two groups differ by more than chance."""
    found = difference(ours, theirs)
    if not found:
        why = "one seed has" if len(ours) == 1 else "runs that all end alike have"
        return f"Whether they differ by more than chance cannot be said: {why} no spread."
    often = f"if both train equally well, means differ as much with a probability of {found.p:.2g}"
    if found.p < CHANCE:
        return f"They differ by more than chance, and {PROGRAMS[found.points > 0]} is better: {often}."
    return f"They do not differ by more than chance: {often}."


def print_comparison(theirs: Sequence[Outcome], ours: Sequence[Outcome]) -> None:
    """Prints the table, an empty line and the verdict."""
    rows = [
        [
            name,
            " ".join(f"{run.top1:.2f}" for run in group),
            group_text(group),
            text,
            f"{mean(run.seconds for run in group):.0f} ({mean(run.processor_seconds for run in group):.0f})",
        ]
        for name, group, text in zip(PROGRAMS, (theirs, ours), ("", difference_text(ours, theirs)), strict=True)
    ]
    head = ["program", "top-1 of each seed, %", "mean ± sd", "difference (95 % interval), p"]
    print_table([*head, "seconds per run (of processors)"], rows)
    print(f"\n{verdict(theirs, ours)}")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.CommandLine(
        prog="rn50_jax.twin",
        description="Train one configuration with this project and with plain PyTorch, on the same batches, and "
        "compare their accuracies.",
    )
    parser.prog = "python scripts/twin.py"
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="as of rn50_jax.train")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each, from config.seed on (3)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keeps the runs (default: runs/twin/<config name>)")
    args, overrides = configs.parse_args(parser, argv)
    config, name = configs.load(args.config, overrides)
    refuse_unread(config)
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds} must be at least 1")
    out = args.out or Path("runs/twin") / name
    os.environ["JAX_PLATFORMS"] = "cpu"  # of both

    groups: tuple[list[Outcome], list[Outcome]] = ([], [])
    given = [f"--config.{key}={text}" for key, text in overrides if key != "seed"]
    for seed in range(config.seed, config.seed + args.seeds):
        theirs, ours = (out / f"{program}-seed{seed}" for program in ("torch", "jax"))
        script = [sys.executable, str(REPO / "scripts/torch_train.py"), "--config", args.config]
        commands = (
            (theirs, [*script, "--workdir", str(theirs), f"--config.seed={seed}", *given]),
            (ours, train_command(args.config, ours, given, seed)),
        )
        for program, group, (workdir, command) in zip(PROGRAMS, groups, commands, strict=True):
            group.append(outcome(command, workdir))
            print(f"seed {seed}, {program}: {group[-1].top1:.2f} %", file=sys.stderr, flush=True)
    print_comparison(*groups)
    return 0


if __name__ == "__main__":
    cli.run(main)
