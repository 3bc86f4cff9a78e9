"""Prints a config and what differs from the defaults, or how two differ: `python -m rn50_jax.config FILE [FILE]`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rn50_jax import cli
from rn50_jax.config import loading as configs
from rn50_jax.config.describe import config_text, differences, show
from rn50_jax.config.schema import Config
from rn50_jax.errors import UserError
from rn50_jax.io.terminal import fit


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.CommandLine(
        prog="rn50_jax.config",
        description="Print every option of a config, with the default beside each value that differs from it; or, of "
        "two configs, the options in which they differ.",
        epilog="Any option can be changed with --config.key=value, in both of two configs.",
    )
    parser.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="FILE[:VARIANT], a recipe by name, config.json, or a run's folder"
    )
    args, overrides = configs.parse_args(parser, argv)
    if len(args.configs) > 2:
        raise UserError(f"give one config, or two to compare, not {len(args.configs)}")
    found = [_read(name, overrides) for name in args.configs]
    text = config_text(found[0]) if len(found) == 1 else _compare(args.configs, found)
    sys.stdout.write(fit(text, sys.stdout))
    return 0


def _read(name: str, overrides: configs.Overrides) -> Config:
    saved = Path(name) / "config.json"
    file = str(saved) if os.path.isfile(saved) else name  # noqa: PTH113
    return configs.load(file, overrides, to_run=False)[0]


def _compare(names: Sequence[str], found: Sequence[Config]) -> str:
    changed = differences(*found)
    if not changed:
        return f"{names[0]} and {names[1]} do not differ\n"
    rows = [(key, show(before), show(now)) for key, before, now in changed]
    table = [("key", *names), *rows]
    widths = [max(len(row[column]) for row in table) for column in (0, 1)]
    return "".join(f"{key:<{widths[0]}}  {before:<{widths[1]}}  {now}".rstrip() + "\n" for key, before, now in table)


if __name__ == "__main__":
    cli.run(main)
