"""What a run tells: on the console, in `metrics.jsonl` and to the loggers that the config asks for."""

import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np

from rn50_jax.checkpoint.selection import best_validation, better_weights
from rn50_jax.config.derived import Plan
from rn50_jax.io.text import decimal
from rn50_jax.loggers.console import Screen, clock, time_of_day, top5_text, train_line, validation_parts
from rn50_jax.loggers.goodput import goodput_text
from rn50_jax.loggers.records import Logger, Record
from rn50_jax.runtime.machine import peak_text


class Report:
    """The console and the loggers of one training run; use it in a `with`.

    Args:
      loggers: get every record; what they raise ends the training, so they are to be `Guarded`.
      eval_batches: of one validation.
      validations: lines of `metrics.jsonl` of the run's earlier processes.
      classes: of the data.
    """

    def __init__(
        self,
        loggers: Sequence[Logger],
        plan: Plan,
        epochs: int,
        first_step: int,
        eval_batches: int = 0,
        validations: Sequence[dict[str, Any]] = (),
        *,
        classes: int,
    ) -> None:
        self._classes = classes
        self._eval_batches = eval_batches
        self._plan, self._epochs = plan, epochs
        self._reported = first_step
        self._loggers = loggers
        self._screen = Screen(plan, epochs, first_step)
        self._validations = {line["epoch"]: line for line in validations}
        self._validation_seconds = 0.0
        self._speeds: deque[float] = deque(maxlen=20)

    def __enter__(self) -> "Report":
        with ExitStack() as stack:
            stack.enter_context(self._screen)
            for logger in self._loggers:
                stack.callback(logger.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def line(self, text: str) -> None:
        """Prints a line above the progress bars."""
        self._screen.line(text)

    def advance(self, step: int) -> None:
        """Moves the progress bars; costs no look at the device."""
        self._screen.advance(step)

    def validating(self, done: int) -> None:
        """Shows how far a validation is, in batches."""
        self._screen.validating(done, self._eval_batches)

    def train(self, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Reports a window of training steps that ended with `step` of `epoch` (from 0)."""
        self._log("train", step, epoch, metrics, steps=step - self._reported)
        self._reported = step
        plan, epochs = self._plan, self._epochs
        known = bool(self._speeds)
        if metrics["train.total_ips"] > 0:
            self._speeds.append(metrics["train.data_time"] + metrics["train.compute_time"])
        per_step = float(np.median(self._speeds)) if self._speeds else None
        left = None
        if per_step is not None:
            left = (plan.total_steps - step) * per_step + (epochs - epoch) * self._validation_seconds
            self._screen.estimate(((epoch + 1) * plan.steps_per_epoch - step) * per_step, left)
        place = f"epoch {epoch + 1:>{len(str(epochs))}}/{epochs}"
        counted = f"step {step:>{len(str(plan.total_steps))}}/{plan.total_steps}"
        self._screen.line(train_line(metrics, place, counted, left))
        if left is not None and not known:
            self._tell_expected(left)

    def _tell_expected(self, left: float) -> None:
        memory = peak_text()
        self.line(
            f"expected   about {clock(left)} of training to go, until {time_of_day(left)}, validation not counted"
            + (f"; {memory}" if memory else "")
        )

    def epoch(self, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Reports the end of `epoch` (from 0) after `step`, with the metrics of its validation, if there was one."""
        self._log("epoch", step, epoch, metrics)
        if not metrics:
            return
        self._validations[epoch + 1] = {"epoch": epoch + 1} | metrics
        self._validation_seconds = metrics["val.images"] / metrics["val.total_ips"]
        is_best = best_validation(list(self._validations.values()))["epoch"] == epoch + 1
        for prefix in ("val", "val_ema"):
            if f"{prefix}.top1" in metrics:
                place = f"epoch {epoch + 1:>{len(str(self._epochs))}}/{self._epochs}"
                parts = [(9, place), *validation_parts(metrics, prefix, classes=self._classes)]
                mark = [(3, "best so far")] if is_best and prefix == better_weights(metrics) else []
                self._screen.line([*parts, *mark])

    def end(self, step: int, epoch: int, goodput: dict[str, float], *, finished: bool) -> None:
        """Reports the end of the run, or of this process's part of it: the results, and where the time went."""
        seconds = {f"goodput.{phase}": round(value, 3) for phase, value in goodput.items()}
        self._log("end", step, epoch, seconds, finished=finished)
        if finished:
            for text in result_table(list(self._validations.values()), classes=self._classes):
                self.line(text)
        self.line(goodput_text(goodput))

    def _log(self, kind: str, step: int, epoch: int, metrics: dict[str, float], **more: Any) -> None:
        record = Record(kind, time.time(), step, epoch, step / self._plan.steps_per_epoch, metrics, **more)
        for logger in self._loggers:
            logger.write(record)


def result_table(validations: Sequence[dict[str, Any]], *, classes: int) -> list[str]:
    """The best and the last validation, aligned; nothing if there was none."""
    if not validations:
        return []
    last = max(validations, key=lambda line: line["epoch"])
    best = best_validation(validations)
    rows = [f"{'result':<10} {'epoch':>6} {'top-1 %':>9} {'top-5 %':>9} {'loss':>9}"]
    for name, line in (("best", best), ("last", last)):
        for prefix, kind in (("val", ""), ("val_ema", " averaged")):
            if f"{prefix}.top1" in line:
                top1, top5, loss = (line.get(f"{prefix}.{key}") for key in ("top1", "top5", "loss"))
                texts = [f"{top1:.3f}", "-" if top5 is None else top5_text(top5, 3, classes)]
                texts += ["-" if loss is None else decimal(loss, 5)]
                told = " ".join(f"{text:>9}" for text in texts)
                rows.append(f"  {name:<8} {line['epoch']:>6} {told}{kind}")
    return rows
