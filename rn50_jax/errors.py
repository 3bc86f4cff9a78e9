"""Mistakes that a user can mend, and how every command ends."""

import argparse
import gc
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rn50_jax.config import hints
from rn50_jax.io import console_log
from rn50_jax.io.terminal import fit
from rn50_jax.io.text import printable
from rn50_jax.runtime import streams
from rn50_jax.runtime.restart import is_command, use_utf8


class UserError(Exception):
    """A mistake in a command, config, data folder or checkpoint.

    The message is one line that names the thing and the fix. Commands print it, no traceback, and exit with code 2.
    """


class RunStopped(Exception):
    """A run that must not go on: its training diverges, or its processes do.

    The message is one line that says what was seen and what to try. Commands print it and exit with `EXIT_STOPPED`.
    """


EXIT_STOPPED = 3


class Interrupted(Exception):
    """A run that a signal has ended in good order; the exit code is 128 + `number`."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def say(line: str) -> None:
    """Prints a line of what a command has to tell, whatever names are in it; broken at blanks in a narrow terminal."""
    _write(printable(line), sys.stdout)


def warn(text: str) -> None:
    """Prints, once for all processes, what the user should know but need not mend."""
    if "jax" not in sys.modules or sys.modules["jax"].process_index() == 0:
        _write(f"note: {printable(text)}", sys.stderr)


def tell_end(text: str) -> None:
    """Prints on standard error what a command has to say whose results go to standard output."""
    _write(printable(text), sys.stderr)


def keep(text: str) -> None:
    """Keeps text that was printed elsewhere in the console's log, see `console_log`; warns once if that fails."""
    if error := console_log.keep(text):
        warn_of_log(error)


def warn_of_log(error: OSError) -> None:
    """Warns that the console's log cannot be written."""
    name = f" {error.filename}" if error.filename else ""
    warn(f"{console_log.FILE} cannot be written ({error.strerror}{name}); the run goes on")


def _write(line: str, file: TextIO) -> None:
    print(fit(line, file), file=file, flush=True)
    keep(line)


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
        """Called by argparse for --help."""
        file = file or sys.stdout
        file.write(fit(self.format_help(), file))

    def error(self, message: str) -> NoReturn:
        """Called by argparse for a wrong command line."""
        hint = hints.for_complaint(message, self._words, self)
        raise UserError(f"{message}; {hint or f'see {self.prog} --help'}")


def tell(error: BaseException) -> int:
    """Prints what ended a command, in one line unless it was unexpected, and returns the exit code.

    Exit codes: 0 done, 1 some inputs failed or an unexpected error, 2 a mistake in the call or its inputs, 3 the run
    stopped itself, 129 (SIGHUP), 130 (SIGINT) and 143 (SIGTERM) interrupted, 141 (SIGPIPE) nobody reads on.
    """
    if isinstance(error, Interrupted):
        _write(printable(str(error)), sys.stderr)
        return 128 + error.number
    if isinstance(error, UserError | RunStopped | streams.Unwritable):
        _write(f"error: {printable(str(error))}", sys.stderr)
        return EXIT_STOPPED if isinstance(error, RunStopped) else 2
    if isinstance(error, BrokenPipeError):  # who reads standard output, `head` for one, has seen enough
        return 128 + signal.SIGPIPE
    if isinstance(error, KeyboardInterrupt):
        _write("interrupted", sys.stderr)
        return 130
    traceback.print_exception(error)
    keep("".join(traceback.format_exception(error)).rstrip())
    sys.stderr.flush()
    return 1


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a command's `main(argv) -> exit code` and ends the process, see `tell`."""
    use_utf8()
    if is_command():
        gc.freeze()  # what the imports made stays: garbage collections need not look at it again and again
    with streams.guarded(), console_log.listening():
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
