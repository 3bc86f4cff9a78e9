"""An end to hangs: a process in which nothing gets finished is ended, with the stacks of all its threads."""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeVar

from rn50_jax.errors import EXIT_STOPPED

T = TypeVar("T")

_FIRST = 10  # the first step compiles, and has this many times the limit
_SPARE = 30.0  # seconds beyond the limit after which a process whose Python does not run at all is killed


class Watchdog:
    """Ends the process with the stacks of all its threads when nothing was reported for too long; used in a `with`.

    A process that waits for another one, in a collective, is ended as well: a hang of one ends all. Time in which the
    process was suspended does not count: what counts are the intervals for which the watchdog itself was asleep.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._limit = _FIRST * seconds
        self._finished = 0
        self._interval = min(seconds / 4, 5)
        self._done = threading.Event()
        self._observer = _Observer(self._interval)
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._observer.start()
        self._observer.tell(self._limit + _SPARE)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._observer.end()

    def progress(self) -> None:
        """Reports that something was finished; costs next to nothing."""
        self._finished, self._limit = self._finished + 1, self._seconds

    def watch(self, items: Iterator[T]) -> Iterator[T]:
        """Yields the same items, each of them reported as progress."""
        for item in items:
            self.progress()
            yield item

    def _run(self) -> None:
        idle, seen = 0.0, self._finished
        before = time.monotonic()
        while not self._done.wait(self._interval):
            # Should a thread hold Python's lock for ever, this one cannot speak: another process can.
            self._observer.tell(self._limit + _SPARE)
            before, slept = time.monotonic(), time.monotonic() - before
            idle += min(slept, self._interval)
            if self._finished != seen:
                idle, seen = 0.0, self._finished
            if idle > self._limit:
                self._end(idle)

    def _end(self, idle: float) -> None:
        text = f"error: no step, batch or checkpoint was finished for {idle:.0f} s (config.run.hang_timeout="
        print(f"{text}{self._seconds:g}); the stacks of all threads:", file=sys.stderr, flush=True)
        with suppress(Exception):  # standard error may be closed
            faulthandler.dump_traceback(all_threads=True)
        os._exit(EXIT_STOPPED)


# Reads lines with a limit in seconds, and kills its parent when none has come for so long, while that was running.
_OBSERVE = """
import os, select, signal, sys, time

for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
parent, interval, limit, idle = int(sys.argv[1]), float(sys.argv[2]), float("inf"), 0.0

def suspended():
    try:
        with open(f"/proc/{parent}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] in (b"T", b"t")
    except OSError:
        return False

while idle <= limit:
    before = time.monotonic()
    if select.select([0], [], [], interval)[0]:
        text = os.read(0, 65536).split()
        if not text:
            sys.exit()
        limit, idle = float(text[-1]), 0.0
    elif os.getppid() != parent:
        sys.exit()
    elif not suspended():
        idle += min(time.monotonic() - before, interval)
text = f"error: Python has not run for {idle:.0f} s (see config.run.hang_timeout); the stacks of all threads:\\n"
try:
    os.write(2, text.encode())
except OSError:
    pass
os.kill(parent, signal.SIGUSR2)
time.sleep(2)
os.kill(parent, signal.SIGKILL)
"""


class _Observer:
    """A small process that ends this one, with its stacks, once it has not been told anything for a time.

    It is told for how long that may be. faulthandler's own timer would go off after a suspension, and end a sound run.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-I", "-S", "-c", _OBSERVE, str(os.getpid()), str(self._interval)]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        with suppress(OSError, ValueError, AttributeError):  # no more processes, or no standard error
            faulthandler.register(signal.SIGUSR2, all_threads=True)
            self._process = subprocess.Popen(command, stdin=pipe, stdout=nowhere, start_new_session=True)

    def tell(self, limit: float) -> None:
        if self._process and self._process.stdin:
            with suppress(OSError):
                os.write(self._process.stdin.fileno(), f"{limit}\n".encode())

    def end(self) -> None:
        if self._process and self._process.stdin:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            faulthandler.unregister(signal.SIGUSR2)
