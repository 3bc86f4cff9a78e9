"""What keeps a run safe from outside: signals, and an end to hangs."""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType, TracebackType
from typing import NamedTuple, TypeVar

from rn50_jax.distributed import processes
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._observer.end()

    def progress(self) -> None:
        """Reports that something was finished; costs next to nothing."""
        self._finished, self._limit = self._finished + 1, self._seconds

    def watch(self, items: Iterator[T]) -> Iterator[T]:
        """The same items, each of them reported as progress."""
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
        print(
            f"error: no step, batch or checkpoint was finished for {idle:.0f} s (config.run.hang_timeout="
            f"{self._seconds:g}); the stacks of all threads:",
            file=sys.stderr,
            flush=True,
        )
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


class Request(NamedTuple):
    """What was asked for from outside, the same on all processes. stop: number of the signal, or 0."""

    save: bool
    stop: int


_NOTHING = Request(save=False, stop=0)


_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_COPIES = 0.2  # seconds within which copies of a signal come
# Set by scripts/launch.py: an open file that has grown by a byte for each signal passed on, and its inode.
FORWARDED = "RN50_JAX_FORWARDED"


class Signals:
    """SIGTERM, SIGINT and SIGHUP ask for a save and the end of the run, SIGUSR1 for a save; used in a `with`.

    A second one that asks for the end, after the first was answered on standard error, ends the process at once.
    Copies are no second signal: where a whole group is signalled (by a terminal, systemd, SLURM or `timeout`), a
    process gets one of its own and another one from whoever started it and passes signals on. SIGHUP stays ignored
    under nohup. Also asks for a save every so many seconds.

    Args:
      save_every: seconds between saves; 0 for never.
    """

    def __init__(self, save_every: float) -> None:
        self._save_every = save_every
        self._save, self._stop = False, 0
        self._saved = time.monotonic()
        self._answered = False
        self._got = 0  # signals that ask for the end, of both kinds
        self._earlier = _forwarded()

    def __enter__(self) -> "Signals":
        numbers = [signal.SIGUSR1, *_STOPS]
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            numbers.remove(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self._save = True
            return
        self._got += 1
        if not self._stop:
            self._stop = number
            time.sleep(_COPIES)  # copies are handled meanwhile, and only counted
            passed_on, direct = self._count()
            self._earlier += max(passed_on - 1, 0)
            self._got = min(passed_on, 1) + min(max(direct, 0), 1)
            self._answered = True
            _say("finishing the step and saving; a second signal ends at once")
        elif self._answered and max(self._count()) > 1:
            _say("second signal: ending at once, without saving")
            os._exit(128 + number)

    def _count(self) -> tuple[int, int]:
        """Signals that the launcher passed on, and others."""
        passed_on = _forwarded() - self._earlier
        return passed_on, self._got - passed_on

    def poll(self, *, together: bool) -> Request:
        """What has been asked for since the last save.

        Several processes must answer alike, which costs a message: they are asked only when all of them call this
        with `together`, at the same point of their work.
        """
        due = 0 < self._save_every < time.monotonic() - self._saved
        mine = Request(self._save or due, self._stop)
        if processes.count() == 1:
            return mine
        if not together:
            return _NOTHING
        every = [Request(*request) for request in processes.gather(list(mine))]
        return Request(any(request.save for request in every), max(request.stop for request in every))

    def saved(self) -> None:
        """Notes that a save was started."""
        self._save, self._saved = False, time.monotonic()


def _forwarded() -> int:
    """How many signals the launcher has passed on to all its processes."""
    file, _, inode = os.environ.get(FORWARDED, "").partition(":")
    try:
        found = os.fstat(int(file))
    except (ValueError, OSError):
        return 0
    return found.st_size if str(found.st_ino) == inode else 0


def _say(text: str) -> None:
    with suppress(OSError):  # a terminal that is gone
        os.write(2, f"{text}\n".encode())
