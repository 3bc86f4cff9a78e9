"""What keeps a run safe from outside: signals, a lock on its folder, and an end to hangs."""

import errno
import faulthandler
import fcntl
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple, TypeVar

from rn50_jax import hosts
from rn50_jax.errors import EXIT_STOPPED, UserError

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


class Request(NamedTuple):
    """What was asked for from outside, the same on all processes. stop: number of the signal, or 0."""

    save: bool
    stop: int


_NOTHING = Request(save=False, stop=0)


class Signals:
    """SIGTERM and SIGINT ask for a save and the end of the run, SIGUSR1 for a save; used in a `with`.

    A second SIGTERM or SIGINT ends the process at once. Also asks for a save every so many seconds.

    Args:
      save_every: seconds between saves; 0 for never.
    """

    def __init__(self, save_every: float) -> None:
        self._save_every = save_every
        self._save, self._stop = False, 0
        self._saved = time.monotonic()

    def __enter__(self) -> "Signals":
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
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
        elif self._stop:
            os.write(2, b"second signal: ending at once, without saving\n")
            os._exit(128 + number)
        else:
            self._stop = number
            os.write(2, b"finishing the step and saving; a second signal ends at once\n")

    def poll(self, *, together: bool) -> Request:
        """What has been asked for since the last save.

        Several processes must answer alike, which costs a message: they are asked only when all of them call this
        with `together`, at the same point of their work.
        """
        due = 0 < self._save_every < time.monotonic() - self._saved
        mine = Request(self._save or due, self._stop)
        if hosts.count() == 1:
            return mine
        if not together:
            return _NOTHING
        every = [Request(*request) for request in hosts.gather(list(mine))]
        return Request(any(request.save for request in every), max(request.stop for request in every))

    def saved(self) -> None:
        """Notes that a save was started."""
        self._save, self._saved = False, time.monotonic()


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the work folder for this run alone; the system lets go of it when the process ends, however it does.

    Raises:
      UserError: another process holds it.
    """
    if not hosts.is_first():
        yield
        return
    with (workdir / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                yield  # a file system without locks
                return
            file.seek(0)
            raise UserError(
                f"another run is writing to {workdir} ({file.read().strip()}); wait for it, or choose another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield
