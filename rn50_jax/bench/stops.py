"""SIGINT, SIGTERM and SIGHUP end a benchmark with what it has measured, whatever its main thread does meanwhile."""

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_COPIES = 1.0  # seconds within which a terminal or `timeout` sends the same signal twice


class Stops:
    """Answers the signals in a thread of its own; used in a `with`, in the main thread.

    Python runs its handlers between two of its instructions, and XLA compiles a program for a minute without one.
    The first signal runs what was given to `undoing`, the last first, then `end`, and ends the process with the exit
    code 128 + N. A second one, unless it is a copy of the first, ends the process at once. Handlers that were there
    before are put back at the end. SIGHUP stays ignored under nohup.

    Args:
      end: is given the signal's number. Nothing that holds `lock` goes on from then on.
      listening: False leaves all signals as they are.
    """

    def __init__(self, end: Callable[[int], None], *, listening: bool) -> None:
        self.lock = threading.RLock()
        self._end, self._listening = end, listening
        self._undo: list[Callable[[], None]] = []
        self._over = False

    def __enter__(self) -> "Stops":
        if not self._listening:
            return self
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        numbers = [number for number in _STOPS if not (ignored and number == signal.SIGHUP)]
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # The C library's handler, which never waits for Python, writes the number of every signal that has a handler in
        # Python, which need not do anything.
        self._writer_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        self._thread = threading.Thread(target=self._listen, args=(reader,), name="stops", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._listening:
            return
        with self.lock:  # for ever, if a signal is being answered
            self._over = True
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._writer_before)
        os.close(self._writer)
        self._thread.join()

    @contextmanager
    def undoing(self, undo: Callable[[], None]) -> Iterator[None]:
        """Runs `undo` if a signal ends the process within; the caller undoes it otherwise."""
        with self.lock:
            self._undo.append(undo)
        try:
            yield
        finally:
            with self.lock:
                self._undo.remove(undo)

    @contextmanager
    def folder(self, prefix: str) -> Iterator[Path]:
        """Gives a temporary folder, which is removed even if a signal ends the process."""
        with (
            tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name,
            self.undoing(lambda: shutil.rmtree(name, ignore_errors=True)),
        ):
            yield Path(name)

    def _listen(self, reader: int) -> None:
        first: float | None = None
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number in _STOPS and first is None:
                    first = time.monotonic()
                    threading.Thread(target=self._answer, args=(number,), daemon=True).start()
                elif number in _STOPS and first is not None and time.monotonic() - first > _COPIES:
                    os._exit(128 + number)
        os.close(reader)

    def _answer(self, number: int) -> None:
        with self.lock:
            if not self._over:
                try:
                    for undo in reversed(self._undo):
                        with suppress(Exception):
                            undo()
                    self._end(number)
                finally:
                    os._exit(128 + number)
        os.kill(os.getpid(), number)  # for the handlers of before
