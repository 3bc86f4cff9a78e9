"""Signals to a run: save, or save and stop."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NamedTuple

from rn50_jax.errors import Interrupted


class Request(NamedTuple):
    """What was asked for from outside, the same on all processes. stop: number of the signal, or 0."""

    save: bool
    stop: int


_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_COPIES = 0.2  # seconds within which copies of a signal come
# Set by scripts/launch.py: an open file that has grown by a byte for each signal passed on, and its inode.
FORWARDED = "RN50_JAX_FORWARDED"


def interruption(number: int, step: int, *, saved: bool) -> Interrupted:
    """Returns the end of a run by a signal after `step`."""
    kept = "everything is saved, and the same command goes on from there" if saved else "nothing is saved in such a run"
    return Interrupted(number, f"ended by {signal.Signals(number).name} after step {step}; {kept}")


class Signals:
    """SIGTERM, SIGINT and SIGHUP ask for a save and the end of the run, SIGUSR1 for a save; used in a `with`.

    A second one that asks for the end, after the first was answered on standard error, ends the process at once.
    Copies are no second signal: where a whole group is signalled (by a terminal, systemd, SLURM or `timeout`), a
    process gets one of its own and another one from whoever started it and passes signals on. SIGHUP stays ignored
    under nohup. Also asks for a save every so many seconds.

    Args:
      save_every: seconds between saves; 0 for never.
      gather: of several processes: returns what each of them has called it with, in their order.
    """

    def __init__(self, save_every: float, gather: Callable[[list[int]], list[list[int]]] | None = None) -> None:
        self._save_every, self._gather = save_every, gather
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

    def __exit__(self, *_: object) -> None:
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
        """Returns what has been asked for since the last save.

        Several processes must answer alike, which costs a message: they are asked only when all of them call this
        with `together`, at the same point of their work.
        """
        due = 0 < self._save_every < time.monotonic() - self._saved
        mine = Request(self._save or due, self._stop)
        if self._gather is None:
            return mine
        if not together:
            return Request(save=False, stop=0)
        every = self._gather([int(mine.save), mine.stop])
        return Request(any(save for save, _ in every), max(stop for _, stop in every))

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
