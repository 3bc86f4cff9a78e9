"""What keeps a run safe from outside: signals, a lock on its folder, and an end to hangs."""

import faulthandler
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple, TypeVar

from rn50_jax import hosts
from rn50_jax.errors import EXIT_STOPPED, UserError, warn
from rn50_jax.files import lock, open_regular

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

    The folder itself is locked. Its file `lock` tells who holds it, and is locked where folders cannot be (NFS).

    Raises:
      UserError: another process holds it, or it cannot be read.
    """
    if not hosts.is_first():
        yield
        return
    path = workdir / "lock"
    with ExitStack() as stack:
        try:
            folder = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"cannot read the work folder {workdir}: {error.strerror}") from error
        stack.callback(os.close, folder)
        file = _open_to_tell(path)
        if file is not None:
            stack.callback(os.close, file)
        try:
            if not lock(folder) and file is not None:
                lock(file)
        except BlockingIOError:
            raise UserError(
                f"another run is writing to {workdir} ({_holder(path)}); wait for it, or choose another --workdir"
            ) from None
        if file is not None:
            told = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
            with suppress(OSError):  # a full disk
                os.ftruncate(file, 0)
                os.pwrite(file, told.encode(), 0)
        yield


def _open_to_tell(path: Path) -> int | None:
    """The lock file, opened; None with a note if it cannot be: it is a folder, or another user's."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        reason = "it is a link" if path.is_symlink() else error.strerror
        warn(f"{path} cannot be written ({reason}), so it does not tell who writes to the folder")
        return None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        warn(f"{path} is no plain file, so it does not tell who writes to the folder")
        return None
    return file


def _holder(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.read(200).decode("utf-8", "replace").strip() or "it does not tell which"
    except OSError:
        return "it does not tell which"
