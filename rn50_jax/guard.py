"""Ends a run that hangs, and shows where it hung."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

from rn50_jax.errors import EXIT_STOPPED

T = TypeVar("T")

_FIRST = 10  # the first step compiles, and has this many times the limit


class Watchdog:
    """Ends the process with the stacks of all its threads when nothing was reported for too long; used in a `with`.

    A process that waits for another one, in a collective, is ended as well: a hang of one ends all.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._limit = _FIRST * seconds
        self._last = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def progress(self) -> None:
        """Reports that something was finished; costs next to nothing."""
        self._last, self._limit = time.monotonic(), self._seconds

    def watch(self, items: Iterator[T]) -> Iterator[T]:
        """The same items, each of them reported as progress."""
        for item in items:
            self.progress()
            yield item

    def _run(self) -> None:
        while not self._done.wait(min(self._seconds / 4, 5)):
            # Should a thread hold Python's lock for ever, this one cannot speak: faulthandler can.
            faulthandler.dump_traceback_later(self._limit + 30, exit=True)
            idle = time.monotonic() - self._last
            if idle > self._limit:
                print(
                    f"error: no step, batch or checkpoint was finished for {idle:.0f} s (config.run.hang_timeout="
                    f"{self._seconds:g}); the stacks of all threads:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(EXIT_STOPPED)
