"""What a run has to tell, and how what takes it may fail: given up, tried again, or in a thread of its own.

A logger takes `Record`s. One that fails is given up with a note, or, if it is a file, tried again with the next record:
it must never end the training.
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Event, Thread
from typing import NamedTuple, Protocol

from rn50_jax.io.messages import warn
from rn50_jax.io.text import counted, first_line


class Record(NamedTuple):
    """What a run has to tell at one moment.

    kind: "train", a window of `steps` updates; "epoch", the end of an epoch, with the metrics of its validation if
    there was one; "end", of this process's part of the run, with its account of time. time: Unix seconds. step: updates
    done or left out. epoch: from 0. epochs_done: with a fraction. finished: of "end", whether the run is complete.
    """

    kind: str
    time: float
    step: int
    epoch: int
    epochs_done: float
    metrics: dict[str, float]
    steps: int = 0
    finished: bool = False


class Logger(Protocol):
    """Takes records in their order, and is closed once."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class Guarded:
    """A logger that is given up with one note when it fails."""

    def __init__(self, name: str, logger: Logger) -> None:
        self._name, self._logger = name, logger
        self._works = True

    def write(self, record: Record) -> None:
        self._try(lambda: self._logger.write(record))

    def close(self) -> None:
        if self._works:
            self._try(self._logger.close)
        else:
            with suppress(Exception):
                self._logger.close()

    def _try(self, call: Callable[[], None]) -> None:
        if self._works:
            try:
                call()
            except Exception as error:  # of any library, or of the disk
                self._works = False
                warn(f"{self._name} cannot be written ({first_line(error, kind=True)}); the run goes on without it")


class Persistent:
    """A logger whose file may be unwritable for a while, as on a full disk: what it has missed is written later.

    One note is told then, and another one at the end if something is still missing.
    """

    def __init__(self, name: str, logger: Logger) -> None:
        self._name, self._logger = name, logger
        self._missing: deque[Record] = deque()
        self._told = False
        self._lost = 0

    def write(self, record: Record) -> None:
        self._missing.append(record)
        if len(self._missing) > _BACKLOG:
            # Validations are the last to go.
            place = next((i for i, missing in enumerate(self._missing) if missing.kind == "train"), 0)
            del self._missing[place]
            self._lost += 1
        self._catch_up()

    def close(self) -> None:
        self._catch_up()
        self._logger.close()
        if lost := self._lost + len(self._missing):
            warn(f"{self._name} lacks {counted(lost, 'report')} that could not be written")

    def _catch_up(self) -> None:
        try:
            while self._missing:
                self._logger.write(self._missing[0])
                self._missing.popleft()
        except OSError as error:
            if not self._told:
                self._told = True
                told = f"{self._name} cannot be written ({first_line(error, kind=True)}); the run goes on"
                warn(f"{told}, and tries again with each report")


_BACKLOG = 10_000  # records that a logger may have missed


class Background:
    """A logger that talks to a server, in a thread of its own: nothing that it does makes the training wait.

    Args:
      name: for messages.
      open_logger: makes the logger, in that thread.
      opening: seconds to wait for that at the start.
      patience: seconds to wait at the end for what has not been sent yet.
    """

    def __init__(
        self, name: str, open_logger: Callable[[], Logger], *, opening: float = 30.0, patience: float = 60.0
    ) -> None:
        self._name, self._open, self._patience = name, open_logger, patience
        self._queue: SimpleQueue[Record | None] = SimpleQueue()
        self._opened = Event()
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()
        # Packages imported while JAX traces in this thread can fail: Python 3.11 builds syntax trees in one at a time.
        self._opened.wait(opening)

    def write(self, record: Record) -> None:
        if self._thread.is_alive():  # otherwise it has failed, and said so
            self._queue.put(record)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            warn(f"{self._name} has not taken everything within {self._patience:g} s; not waiting for it any longer")

    def _work(self) -> None:
        try:
            try:
                logger = self._open()
            finally:
                self._opened.set()
            while (record := self._queue.get()) is not None:
                logger.write(record)
            logger.close()
        except Exception as error:
            warn(f"{self._name} has failed ({first_line(error, kind=True)}); the run goes on without it")
