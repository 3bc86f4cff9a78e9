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
    """Keeps text that was printed elsewhere in the log."""
    _log.add(text)


def open_log(workdir: Path, command: Sequence[str]) -> None:
    """Goes on with the log of a run's folder: a line with time and command, what was said before, and what follows."""
    if _log.listening:
        _log.open(workdir / LOG, f"[{time.strftime('%Y-%m-%d %H:%M:%S %z')}] {shell(command)}")


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


class _Log:
    """What this process's command has said: in memory, and from `open` on in a file. It warns once if that fails."""

    def __init__(self) -> None:
        self.listening, self._failed = False, False
        self._lines: list[str] = []
        self._lock = threading.RLock()  # its own warnings are kept too
        self._file: Appended | None = None

    def add(self, text: str) -> None:
        if not self.listening or len(self._lines) >= _MOST:
            return
        if not self._lock.acquire(timeout=1):  # another thread's disk hangs
            return
        try:
            self._lines.append(in_utf8(text))
            self._write()
        finally:
            self._lock.release()

    def _write(self) -> None:
        """What cannot be written is tried again with the next lines."""
        if not self._file:
            return
        try:
            self._file.write("".join(f"{line}\n" for line in self._lines).encode())
            self._lines = []
        except OSError as error:
            if not self._failed:
                self._failed = True
                _warn_of(error)

    def open(self, path: Path, header: str) -> None:
        try:
            self._file = Appended(path)
            self._lines.insert(0, header)
            self._write()
        except OSError as error:
            self.close()
            _warn_of(error)

    def close(self) -> None:
        if self._file:
            with suppress(OSError):
                self._file.close()
        self.__init__()  # type: ignore[misc]


def _warn_of(error: OSError) -> None:
    name = f" {error.filename}" if error.filename else ""
    warn(f"{LOG} cannot be written ({error.strerror}{name}); the run goes on")


_log = _Log()
