"""What a process prints for its user: results, notes, and the console log that keeps them."""

import sys
from typing import TextIO

from rn50_jax.io import console_log
from rn50_jax.io.terminal import fit
from rn50_jax.io.text import printable


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
