"""The reports of a training run: to the console and to all loggers."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from rn50_jax.loggers.base import Logger, Record
from rn50_jax.loggers.console import Console


class Report(ExitStack):
    """The console and the loggers of one training run; use it in a `with`.

    Args:
      loggers: get every record; an error that they raise ends the training, so they are to be `Persistent`.
    """

    def __init__(self, console: Console, loggers: Sequence[Logger], steps_per_epoch: int, first_step: int) -> None:
        super().__init__()
        self._console, self._loggers = console, [*loggers, console]
        self._steps_per_epoch, self._reported = steps_per_epoch, first_step
        self.line, self.advance, self.validating = console.line, console.advance, console.validating

    def __enter__(self) -> "Report":
        for logger in reversed(self._loggers):  # the console closes last
            self.callback(logger.close)
        self._console.start()
        return self

    def train(self, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Reports the training steps since the last report, up to `step`, in `epoch` (from 0)."""
        self._log("train", step, epoch, metrics, steps=step - self._reported)
        self._reported = step

    def epoch(self, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Reports the end of `epoch` (from 0) after `step`, with the metrics of its validation, if there was one."""
        self._log("epoch", step, epoch, metrics)

    def end(self, step: int, epoch: int, goodput: dict[str, float], *, finished: bool) -> None:
        """Reports the end of the run, or of this process's part of it, and where the time went."""
        seconds = {f"goodput.{phase}": round(value, 3) for phase, value in goodput.items()}
        self._log("end", step, epoch, seconds, finished=finished)

    def _log(self, kind: str, step: int, epoch: int, metrics: dict[str, float], **more: Any) -> None:
        record = Record(kind, time.time(), step, epoch, step / self._steps_per_epoch, metrics, **more)
        for logger in self._loggers:
            logger.log(record)
