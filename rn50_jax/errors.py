"""Mistakes that a user can mend, and how every command ends."""


class UserError(Exception):
    """A mistake in a command, config, data folder or checkpoint.

    The message is one line that names the thing and the fix. Commands print it, without a traceback.
    """


class RunStopped(Exception):
    """A run that must not go on: its training diverges, or its processes do.

    The message is one line that says what was seen and what to try. Commands print it and exit with `EXIT_STOPPED`.
    """


EXIT_STOPPED = 3  # `cli.EXIT_CODES` has them all


class Interrupted(Exception):
    """A run that a signal has ended in good order; the exit code is 128 + `number`."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
