"""Mistakes that a user can mend, and how every command ends."""

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


class UserError(Exception):
    """A mistake in a command, config, data folder or checkpoint.

    The message is one line that names the thing and the fix. Commands print it, no traceback, and exit with code 2.
    """


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
