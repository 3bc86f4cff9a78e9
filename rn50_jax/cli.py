"""The command line of every command: its options, its errors in one line, its exit code."""

import argparse
import gc
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from rn50_jax.config import hints
from rn50_jax.errors import EXIT_STOPPED, Interrupted, RunStopped, UserError
from rn50_jax.io import messages
from rn50_jax.io.terminal import fit
from rn50_jax.runtime import streams

EXIT_CODES = (
    "exit codes: 0 done; 1 some inputs failed, or an unexpected error; 2 a mistake in the call or its inputs; "
    "3 the run stopped itself; 128 + N ended by signal N"
)


class _Paragraphs(argparse.HelpFormatter):
    """Fills each paragraph of the description and the epilog for itself, and breaks no word."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = (self._split_lines(paragraph, width - len(indent)) for paragraph in text.split("\n\n"))
        return "\n\n".join("\n".join(indent + line for line in lines) for lines in paragraphs)


class CommandLine(argparse.ArgumentParser):
    """An argument parser whose complaints are `UserError`s, and that takes no abbreviations.

    Its help ends with the exit codes.
    """

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        # As it was called: rn50-jax train, python -m rn50_jax train, or python -m rn50_jax.train.
        package, _, name = prog.partition(".")
        program = Path(sys.argv[0])
        prog = f"python -m {prog}"
        if program.name == "rn50-jax":
            prog = f"rn50-jax {name}"
        elif program == Path(__file__).with_name("__main__.py"):
            prog = f"python -m {package} {name}"
        super().__init__(
            prog=prog,
            description=description,
            epilog="\n\n".join(filter(None, (epilog, EXIT_CODES))),
            formatter_class=_Paragraphs,
            allow_abbrev=False,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Does what argparse does, and remembers the words for `error`."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def print_help(self, file: Any = None) -> None:
        """Prints the help, for argparse."""
        file = file or sys.stdout
        file.write(fit(self.format_help(), file))

    def error(self, message: str) -> NoReturn:
        """Raises a `UserError` for a wrong command line, for argparse."""
        hint = hints.for_complaint(message, self._words, self)
        raise UserError(f"{message}; {hint or f'see {self.prog} --help'}")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--workdir`, `--weights`, `--checkpoint` and `--ema`, which say what trained model to load."""
    group = parser.add_argument_group("model")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, metavar="RUN", help="folder of a training run")
    source.add_argument("--weights", type=Path, metavar="FILE", help="or a .pth, .pth.tar, .safetensors or .npz file")
    add_run_arguments(group)


def add_run_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds `--checkpoint` and `--ema`, which say what of a run to read."""
    parser.add_argument(
        "--checkpoint", default="best", metavar="WHICH", help="of the run: best (default), latest or a step number"
    )
    parser.add_argument(
        "--ema",
        choices=("auto", "on", "off"),
        default="auto",
        help="of a run with recipe.ema_decay: averaged weights, live ones, or auto: what validated better (default)",
    )


def tell(error: BaseException) -> int:
    """Prints what ended a command, in one line unless it was unexpected, and returns the exit code.

    `EXIT_CODES` lists them; 141 (SIGPIPE) is that nobody reads standard output to its end.
    """
    if isinstance(error, Interrupted):
        messages.tell_end(str(error))
        return 128 + error.number
    if isinstance(error, UserError | RunStopped | streams.Unwritable):
        messages.tell_end(f"error: {error}")
        return EXIT_STOPPED if isinstance(error, RunStopped) else 2
    if isinstance(error, BrokenPipeError):  # who reads standard output, `head` for one, has seen enough
        return 128 + signal.SIGPIPE
    if isinstance(error, KeyboardInterrupt):
        messages.tell_end("interrupted")
        return 130
    traceback.print_exception(error)
    messages.keep("".join(traceback.format_exception(error)).rstrip())
    sys.stderr.flush()
    return 1


def is_command() -> bool:
    """Returns whether this process is a command: not a test or somebody's own program that calls a `main`."""
    program = Path(sys.argv[0])
    package = Path(__file__).parent
    return program.name == "rn50-jax" or package in (program.parent, program.parent.parent)


def use_utf8() -> None:
    """Starts this command anew in Python's UTF-8 mode where the locale has another encoding for names of files.

    A class folder would else have another name in each locale: one of ASCII characters and bytes in C, for example.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1" or not is_command():
        return
    with suppress(OSError, AttributeError):  # what was closed at the start is None
        sys.stdout.flush()
    with suppress(OSError):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a command's `main(argv) -> exit code` and ends the process, see `tell`."""
    use_utf8()
    if is_command():
        gc.freeze()  # what the imports made stays: garbage collections need not look at it again and again
    with streams.guarded(), messages.listening():
        try:
            code = _call(main)
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            code = tell(error)
    if code and "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        # An orderly exit would wait for the other processes, which may be waiting for this one.
        os._exit(code)
    sys.exit(code)


def _call(main: Callable[[Sequence[str]], int]) -> int:
    try:
        return main(sys.argv[1:])
    except SystemExit as end:  # of argparse, after --help
        return end.code if isinstance(end.code, int) else int(end.code is not None)
