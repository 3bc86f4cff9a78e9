"""Standard output and error: what cannot be written there ends no training, and is told in one line elsewhere."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any, TextIO, cast

from rn50_jax.runtime.native_errors import Filter


class Unwritable(Exception):
    """Standard output cannot be written to; the message is one line."""


class _Stream:
    """A text stream that handles what cannot be written to it; otherwise the stream itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def settle(self) -> None:
        """Lets go of what still cannot be written, at which Python would stumble when the process ends."""
        try:
            self._stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            with suppress(OSError):
                self._stream.flush()

    def _failed(self, error: OSError) -> None:
        """Nothing can be told where errors are told."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Errors(_Stream):
    """Standard error, to which C libraries may write past Python."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._before = stream
        self._filter: Filter | None = None
        self._lock = Lock()

    def keep_decoders_out(self) -> None:
        """Does what `without_decoders` says."""
        with self._lock:
            if self._filter is not None or _number(self._stream) != 2:
                return
            self.flush()
            self._filter = Filter.start()
            if self._filter is not None:
                self._stream = open(  # noqa: SIM115, it stays open
                    self._filter.direct, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
                )

    def settle(self) -> None:
        super().settle()
        if self._filter is not None:
            self._stream = self._before
            self._filter.end()
            self._filter = None


def _number(stream: TextIO) -> int:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # none, or closed
        return -1


class _Output(_Stream):
    """Standard output. enduring: whether what cannot be written is left out, and told once, instead of raised."""

    enduring = False
    _told = False

    def _failed(self, error: OSError) -> None:
        if not self.enduring:
            if isinstance(error, BrokenPipeError):
                raise
            raise Unwritable(f"standard output cannot be written: {error.strerror}") from error
        if not self._told:
            self._told = True
            print(
                f"note: standard output cannot be written ({error.strerror}); the run goes on, without what it says",
                file=sys.stderr,
                flush=True,
            )


_guarded: list[_Errors] = []  # `sys.stderr` itself may be that of a progress bar


def without_decoders() -> None:
    """Keeps what image decoders write to standard error by themselves off it, until `guarded` ends; see `Filter`.

    Does nothing outside of `guarded`: a program that calls this package has its own standard error.
    """
    if _guarded:
        _guarded[-1].keep_decoders_out()


@contextmanager
def guarded() -> Iterator[None]:
    """Sees to it that, within, writing to standard error never fails and every text can be written.

    What cannot be written to standard output raises `Unwritable`, or BrokenPipeError where nobody reads on.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):  # a name may hold what the terminal's encoding has not
            stream.reconfigure(errors="backslashreplace")
    output, errors = _Output(before[0]), _Errors(before[1])
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, errors)
    _guarded.append(errors)
    try:
        yield
    finally:
        _guarded.remove(errors)
        output.settle()
        errors.settle()
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Opens those of the first three files that were closed at the start: else the next file opened takes the place."""
    # Writing to a closed standard output still fails.
    for number, how in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, how), True)  # it gets the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115, it stays open
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115, it stays open


@contextmanager
def enduring() -> Iterator[None]:
    """Leaves out what cannot be written to standard output, and tells so once on standard error."""
    output = sys.stdout
    if not isinstance(output, _Output):
        yield
        return
    output.enduring = True
    try:
        yield
    finally:
        output.settle()
        output.enduring = False
