"""Commands that start anew, as the same process, with what Python or the C library reads when a process starts."""

import os
import sys
from contextlib import suppress
from pathlib import Path


def is_command() -> bool:
    """Returns whether this process is a command: not a test or somebody's own program that calls a `main`."""
    program = Path(sys.argv[0])
    return program.name == "rn50-jax" or program.parent == Path(__file__).parent


def restart(**variables: str) -> None:
    """Starts this command anew with more variables in its environment; returns only where that cannot be done."""
    with suppress(OSError, AttributeError):  # what was closed at the start is None
        sys.stdout.flush()
    with suppress(OSError):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | variables)


def use_utf8() -> None:
    """Starts this command anew in Python's UTF-8 mode where the locale has another encoding for names of files.

    A class folder would else have another name in each locale: one of ASCII characters and bytes in C, for example.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1" and is_command():
        restart(PYTHONUTF8="1")
