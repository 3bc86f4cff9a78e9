"""Figures, tables and a page of runs: `python -m rn50_jax.plot RUN [RUN ...]`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rn50_jax import cli
from rn50_jax.analysis.curves import VALIDATION_FIGURES, Run, look, overview, save, single
from rn50_jax.config import loading as configs
from rn50_jax.errors import UserError
from rn50_jax.io.files import write_whole
from rn50_jax.io.messages import say, warn
from rn50_jax.io.text import counted
from rn50_jax.loggers.history import History, metrics_file, read_history, to_csv


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.CommandLine(
        prog="rn50_jax.plot",
        description="Draw loss, top-1, top-5, learning rate, throughput and loss scale of runs over their epochs, as "
        "RUN/curves.png and .svg, of several runs as curves.png and .svg here. With --figures, --csv or --html only "
        "what they say is written, unless --out is given too.",
        epilog="--html looks at val/ with the best checkpoint; --config.data.dir=DIR says where that is.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="work folder of a run, or its metrics.jsonl")
    curves = parser.add_argument_group("curves")
    curves.add_argument("--out", type=Path, metavar="FILE", help=".png, .svg or .pdf; without an end, .png and .svg")
    curves.add_argument("--figures", type=Path, metavar="DIR", help="ValidationLoss, -Top1 and -Top5 as single figures")
    curves.add_argument("--labels", metavar="A,B,...", help="what to call the runs (default: their folders)")
    curves.add_argument("--smooth", type=int, default=1, metavar="N", help="means of N lines of training (default: 1)")
    others = parser.add_argument_group("of one run")
    others.add_argument("--csv", metavar="FILE", help="the metrics as a table; - for standard output")
    others.add_argument("--html", type=Path, metavar="FILE", help="all about the run as one page without other files")
    args, overrides = configs.parse_args(parser, argv)
    if args.smooth < 1:
        raise UserError(f"--smooth {args.smooth} must be at least 1")
    if len(args.runs) > 1 and (args.csv or args.html):
        raise UserError("--csv and --html are of one run; name one")
    if overrides and not args.html:
        raise UserError(f"--config.{overrides[0][0]} is of use with --html alone")

    histories = [_read(run) for run in args.runs]
    try:
        if args.csv:
            if args.csv == "-":
                sys.stdout.write(to_csv(histories[0]))
            else:
                write_whole(Path(args.csv), to_csv(histories[0]))
                say(args.csv)
        if args.html:
            from rn50_jax.analysis.page import write_page  # looks at the model and its data

            write_page(args.runs[0], args.html, overrides)
            say(str(args.html))
        if args.out or args.figures or not (args.csv or args.html):
            _draw([Run(*pair) for pair in zip(_labels(args.runs, args.labels), histories, strict=True)], args)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write {error.filename or 'standard output'}: {error.strerror}") from error
    return 0


def _read(run: Path) -> History:
    path = metrics_file(run)
    history = read_history(path)
    if history.unread and not history.lines and not run.is_dir():
        raise UserError(f"{path} holds no line of metrics; name the work folder of a run, or its metrics.jsonl")
    if history.unread:
        warn(f"{path} has {counted(history.unread, 'line')} without metrics, passed over")
    return history


def _draw(runs: Sequence[Run], args: argparse.Namespace) -> None:
    written: list[Path] = []
    with look():
        if args.figures:
            args.figures.mkdir(parents=True, exist_ok=True)
            for panel in VALIDATION_FIGURES:
                written += save(single(panel, runs), args.figures / panel.name)
        if args.out or not args.figures:
            run = args.runs[0]
            folder = Path() if len(runs) > 1 else run if run.is_dir() else run.parent
            written += save(overview(runs, args.smooth), args.out or folder / "curves", own=not args.out)
    for path in written:
        say(str(path))


def _labels(runs: Sequence[Path], given: str | None) -> list[str]:
    """Names of the runs: given, their folders', or their paths where folders have the same name."""
    if given is not None:
        labels = given.split(",")
        if len(labels) != len(runs):
            raise UserError(
                f"--labels has {counted(len(labels), 'name')} for {counted(len(runs), 'run')}; separate them by commas"
            )
        return labels
    folders = [run.resolve() if run.is_dir() else run.resolve().parent for run in runs]
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


if __name__ == "__main__":
    cli.run(main)
