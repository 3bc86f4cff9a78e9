"""What a process prints for its user, kept in the folder of a run too: `console.log`."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from rn50_jax.io.lines import Appended
from rn50_jax.io.terminal import fit
from rn50_jax.io.text import in_utf8, printable, shell

LOG = "console.log"
_MOST = 1000  # lines that are kept for a log that is yet to be opened


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
    """Keeps text that was printed elsewhere in the log; warns once if that fails, which ends no run."""
    _warn_of(_log.add(text))


def open_log(workdir: Path, command: Sequence[str]) -> None:
    """Goes on with the log of a run's folder: a line with time and command, what was said before, and what follows."""
    if _log.listening:
        _warn_of(_log.open(workdir / LOG, f"[{time.strftime('%Y-%m-%d %H:%M:%S %z')}] {shell(command)}"))


@contextmanager
def listening() -> Iterator[None]:
    """Keeps what is said within, for a file that `open_log` may open; it is closed at the end."""
    _log.close()
    _log.listening = True
    try:
        yield
    finally:
        _log.close()


def _write(line: str, file: TextIO) -> None:
    print(fit(line, file), file=file, flush=True)
    keep(line)


def _warn_of(error: OSError | None) -> None:
    if error:
        name = f" {error.filename}" if error.filename else ""
        warn(f"{LOG} cannot be written ({error.strerror}{name}); the run goes on")


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
