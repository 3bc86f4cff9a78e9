"""The console's text, kept in the folder of a run: `console.log`."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rn50_jax.io.lines import Appended
from rn50_jax.io.text import in_utf8, shell

FILE = "console.log"
_MOST = 1000  # lines that are held for a file that is yet to be opened


class _Log:
    """What this process's command has said: in memory, and from `open` on in a file."""

    def __init__(self) -> None:
        self.listening, self._failed = False, False
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._file: Appended | None = None

    def add(self, text: str) -> OSError | None:
        """Returns the first error; what could not be written then is tried again with the next lines."""
        if not self.listening or len(self._lines) >= _MOST:
            return None
        if not self._lock.acquire(timeout=1):  # another thread's disk hangs
            return None
        try:
            self._lines.append(in_utf8(text))
            return self._write()
        finally:
            self._lock.release()

    def _write(self) -> OSError | None:
        if not self._file:
            return None
        try:
            self._file.write("".join(f"{line}\n" for line in self._lines).encode())
        except OSError as error:
            first, self._failed = not self._failed, True
            return error if first else None
        self._lines = []
        return None

    def open(self, path: Path, header: str) -> OSError | None:
        try:
            self._file = Appended(path)
        except OSError as error:
            self.close()
            return error
        self._lines.insert(0, header)
        return self._write()

    def close(self) -> None:
        if self._file:
            with suppress(OSError):
                self._file.close()
        self.__init__()  # type: ignore[misc]


_log = _Log()


@contextmanager
def listening() -> Iterator[None]:
    """Keeps what is said within, for a file that `open_log` may open; it is closed at the end."""
    _log.close()
    _log.listening = True
    try:
        yield
    finally:
        _log.close()


def keep(text: str) -> OSError | None:
    """Adds lines to the log, without escape codes; returns the error if they are the first that cannot be written."""
    return _log.add(text)


def open_log(workdir: Path, command: Sequence[str]) -> OSError | None:
    """Goes on with the log of a run's folder: a line with time and command, what was said before, and what follows.

    Returns:
      The error if it cannot be written, which ends no run.
    """
    if not _log.listening:
        return None
    return _log.open(workdir / FILE, f"[{time.strftime('%Y-%m-%d %H:%M:%S %z')}] {shell(command)}")
