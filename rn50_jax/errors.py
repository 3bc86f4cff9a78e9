"""Mistakes that a user can mend, and how every command ends."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


class UserError(Exception):
    """A mistake in a command, config, data folder or checkpoint.

    The message is one line that names the thing and the fix. Commands print it, no traceback, and exit with code 2.
    """


class CommandLine(argparse.ArgumentParser):
    """An argument parser whose complaints are `UserError`s, and that takes no abbreviations."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog=f"python -m {prog}", description=description, epilog=epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Called by argparse for a wrong command line."""
        raise UserError(f"{message}; see {self.prog} --help")


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a command's `main(argv) -> exit code` and ends the process.

    Exit codes: 0 done, 1 some inputs failed, 2 a mistake in the call or its inputs, 130 interrupted.
    """
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
