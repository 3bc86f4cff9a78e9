"""What all loggers have in common: what they are given, and how they may fail without ending the training."""

import math
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import NamedTuple, Protocol

from typing_extensions import TypedDict

from rn50_jax.config.schema import Config
from rn50_jax.io import json_files
from rn50_jax.io.messages import warn
from rn50_jax.io.text import counted, first_line


class Record(NamedTuple):
    """Metrics of a run at one moment.

    kind: "train", of `steps` updates; "epoch", the end of an epoch, with the metrics of its validation if there was
    one; "end", of this process's part of the run, with its account of time. time: Unix seconds. step: updates done or
    skipped. epoch: from 0. epochs_done: with a fraction. finished: of "end", whether the run is complete.
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

    def log(self, record: Record) -> None: ...

    def close(self) -> None: ...


class RunFacts(NamedTuple):
    """What loggers may need of a run to open their logs.

    peak_lr: the largest learning rate. accumulation: forward passes
    per update. first_step: of this process.
    """

    workdir: Path
    config: Config
    num_devices: int
    peak_lr: float
    accumulation: int = 1
    steps_per_epoch: int = 1
    first_step: int = 0


class Persistent:
    """A logger that may fail, as on a full disk: the run continues, and one note says so.

    What it has missed is logged later, and another note at the end counts what is still missing.
    """

    def __init__(self, name: str, logger: Logger) -> None:
        self._name, self._logger = name, logger
        self._missing: deque[Record] = deque(maxlen=_BACKLOG)
        self._lost = 0
        self._noted = False

    def log(self, record: Record) -> None:
        self._lost += len(self._missing) == self._missing.maxlen  # the oldest record goes
        self._missing.append(record)
        self._attempt(self._catch_up)

    def close(self) -> None:
        self._attempt(self._catch_up)
        self._attempt(self._logger.close)
        if lost := self._lost + len(self._missing):
            warn(f"{self._name} lacks {counted(lost, 'report')} that could not be written")

    def _catch_up(self) -> None:
        while self._missing:
            self._logger.log(self._missing[0])
            self._missing.popleft()

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # of any library
            if not self._noted:
                self._noted = True
                why = first_line(error, kind=True)
                warn(f"{self._name} cannot be written ({why}); the run goes on, and tries again with each report")


_BACKLOG = 10_000  # records that a logger may have missed


class Background:
    """A logger that talks to a server, in a thread of its own: nothing that it does makes the training wait.

    Args:
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

    def log(self, record: Record) -> None:
        if self._thread.is_alive():  # otherwise it has failed, and said so
            self._queue.put(record)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(self._patience)
        if self._thread.is_alive():
            warn(f"{self._name} has not taken everything within {self._patience:g} s; not waiting for it any longer")

    def _work(self) -> None:
        try:
            logger = self._open()
            self._opened.set()
            while (record := self._queue.get()) is not None:
                logger.log(record)
            logger.close()
        except Exception as error:
            warn(f"{self._name} has failed ({first_line(error, kind=True)}); the run goes on without it")
        finally:
            self._opened.set()


def tagged(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the finite metrics under the names that group them: `val.top1` as `val/top1`."""
    return {name.replace(".", "/", 1): value for name, value in metrics.items() if math.isfinite(value)}


def remembered(path: Path, project: str, create: Callable[[], str]) -> str:
    """Returns the identity of a run in a project of a server, from its file, or created and written there."""
    with suppress(OSError, ValueError):
        known = json_files.read_json(path, _Identity)
        if known["project"] == project:
            return known["id"]
    identity = create()
    json_files.write_json(path, {"project": project, "id": identity}, own=True)
    return identity


class _Identity(TypedDict):
    project: str
    id: str
