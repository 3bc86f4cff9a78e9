"""What a run looks like in a terminal, and in the log of a batch job."""

import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from rn50_jax.checkpoint.selection import best_validation, better_weights
from rn50_jax.config.derived import Plan
from rn50_jax.io.messages import keep, say
from rn50_jax.io.terminal import columns, fit
from rn50_jax.io.text import counted, decimal
from rn50_jax.loggers.base import Record
from rn50_jax.loggers.goodput import goodput_text
from rn50_jax.runtime.machine import peak_text

NARROW = 60  # columns below which a progress bar has no room


class _Left(ProgressColumn):
    """Time left, or that of the compilation until now: the sign of life of a run's first minutes."""

    def render(self, task: Task) -> Text:
        left = task.fields["left"]
        return Text(f"compiling {clock(task.elapsed or 0)}" if left is None else left)


class Console:
    """The logger for people: lines of text, and in a terminal two live bars below them, the epoch's and the run's.

    Standard output that is no terminal, or one that cannot move its cursor (TERM=dumb), gets the lines alone.

    Args:
      eval_batches: of one validation.
      validations: lines of `metrics.jsonl` of the run's earlier processes.
    """

    def __init__(
        self,
        plan: Plan,
        epochs: int,
        first_step: int = 0,
        *,
        eval_batches: int = 0,
        validations: Sequence[dict[str, Any]] = (),
        classes: int,
    ) -> None:
        self._plan, self._epochs, self._eval_batches, self._classes = plan, epochs, eval_batches, classes
        self._validations = {line["epoch"]: line for line in validations}
        self._validation_seconds = 0.0
        self._speeds: deque[float] = deque(maxlen=20)
        self._console = RichConsole(highlight=False, soft_wrap=True, emoji=False)
        live = sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        bar = [BarColumn(bar_width=None)] if self._console.width >= NARROW else []
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            *bar,
            TextColumn("{task.fields[count]:>14}"),
            _Left(),
            console=self._console,
            disable=not live,
            transient=True,
        )
        self._epoch = self._progress.add_task("epoch", total=plan.steps_per_epoch, count="", left=None)
        self._run = self._progress.add_task("run", total=plan.total_steps, count="", left=None)
        self.advance(first_step)

    def start(self) -> None:
        """Shows the bars."""
        self._progress.start()

    def close(self) -> None:
        self._progress.stop()

    def log(self, record: Record) -> None:
        {"train": self._train, "epoch": self._validated, "end": self._end}[record.kind](record)

    def line(self, parts: str | Sequence[tuple[int, str]]) -> None:
        """Prints a line above the bars; all of it is kept in the console's log.

        Args:
          parts: the text, or (priority, text) in order: in a terminal that is too narrow for all of them, those with
            the lowest priority are omitted.
        """
        parts = [(0, parts)] if isinstance(parts, str) else parts
        keep("  ".join(text for _, text in parts))
        self._console.print(fit("  ".join(_fitting(parts, columns(sys.stdout))), sys.stdout), markup=False)

    def advance(self, step: int) -> None:
        """Moves the bars to `step` of the run; costs no look at the device."""
        per_epoch, total = self._plan.steps_per_epoch, self._plan.total_steps
        epoch, within = divmod(max(step - 1, 0), per_epoch)
        within += step > 0
        name = f"epoch {epoch + 1}/{self._epochs}"
        self._progress.update(
            self._epoch, description=name, total=per_epoch, completed=within, count=f"{within}/{per_epoch}"
        )
        self._progress.update(self._run, description="run", completed=step, count=f"{step}/{total}")

    def validating(self, done: int) -> None:
        """Shows how far a validation is, in batches."""
        total = self._eval_batches
        self._progress.update(
            self._epoch, description="validation", total=total, completed=done, count=f"{done}/{total}", left=""
        )

    def _train(self, record: Record) -> None:
        plan, epochs, metrics = self._plan, self._epochs, record.metrics
        first = not self._speeds
        if metrics["train.total_ips"] > 0:
            self._speeds.append(metrics["train.data_time"] + metrics["train.compute_time"])
        left = None
        if self._speeds:
            per_step = float(np.median(self._speeds))
            left = (plan.total_steps - record.step) * per_step + (epochs - record.epoch) * self._validation_seconds
            left_of_epoch = ((record.epoch + 1) * plan.steps_per_epoch - record.step) * per_step
            self._progress.update(self._epoch, left=f"ETA {clock(left_of_epoch)}")
            self._progress.update(self._run, left=f"ETA {clock(left)}")
        step = f"step {record.step:>{len(str(plan.total_steps))}}/{plan.total_steps}"
        self.line(train_line(metrics, self._place(record.epoch), step, left))
        if left is not None and first:
            then = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left))
            until = f"about {clock(left)} of training to go, until {then}, validation not counted"
            self.line(f"{'expected':<10} {'; '.join(filter(None, (until, peak_text())))}")

    def _validated(self, record: Record) -> None:
        metrics, epoch = record.metrics, record.epoch + 1
        if not metrics:
            return
        self._validations[epoch] = {"epoch": epoch} | metrics
        self._validation_seconds = metrics["val.images"] / metrics["val.total_ips"]
        is_best = best_validation(list(self._validations.values()))["epoch"] == epoch
        for prefix in ("val", "val_ema"):
            if f"{prefix}.top1" in metrics:
                parts = [(9, self._place(record.epoch)), *validation_parts(metrics, prefix, classes=self._classes)]
                mark = [(3, "best so far")] if is_best and prefix == better_weights(metrics) else []
                self.line([*parts, *mark])

    def _end(self, record: Record) -> None:
        if record.finished:
            for text in result_table(list(self._validations.values()), classes=self._classes):
                self.line(text)
        self.line(goodput_text({name.removeprefix("goodput."): value for name, value in record.metrics.items()}))

    def _place(self, epoch: int) -> str:
        return f"epoch {epoch + 1:>{len(str(self._epochs))}}/{self._epochs}"


def _fitting(parts: Sequence[tuple[int, str]], width: int | None) -> list[str]:
    kept = list(parts)
    while width is not None and len(kept) > 1 and sum(len(text) + 2 for _, text in kept) - 2 > width:
        kept.remove(min(kept, key=lambda part: part[0]))
    return [text for _, text in kept]


def train_line(metrics: Mapping[str, float], place: str, step: str, left: float | None) -> list[tuple[int, str]]:
    """Returns the metrics of some training steps as `Console.line` takes them."""
    seconds = metrics["train.data_time"] + metrics["train.compute_time"]
    waiting = metrics["train.data_time"] / seconds if seconds else 0.0
    speed = f"{metrics['train.total_ips']:8.1f} img/s" if metrics["train.total_ips"] else f"{'-':>8} img/s"
    parts = [
        (9, place),
        (5, step),
        (8, f"loss {decimal(metrics['train.loss'], 4):>7}"),
        (7, f"top-1 {metrics['train.top1']:6.2f}"),
        (3, f"lr {metrics['lr']:.5f}"),
        (6, speed),
        (2, f"data {waiting:4.0%}"),
    ]
    if "train.loss_scale" in metrics:
        parts.append((1, f"scale {metrics['train.loss_scale']:g}"))
    return [*parts, (4, f"ETA {'-' if left is None else clock(left)}")]


def validation_parts(metrics: Mapping[str, float], prefix: str, *, classes: int) -> list[tuple[int, str]]:
    """Returns the numbers of a validation as `Console.line` takes them.

    Args:
      classes: of the data; with five or fewer, top-5 says nothing and is "-".
    """
    top1, top5, loss = (metrics[f"{prefix}.{name}"] for name in ("top1", "top5", "loss"))
    return [
        (8, "validation" if prefix == "val" else "averaged  "),
        (7, f"top-1 {top1:.3f} %"),
        (4, f"top-5 {_top5(top5, classes)}" + " %" * (classes > 5)),
        (5, f"loss {decimal(loss, 5)}"),
        (2, counted(round(metrics["val.images"]), "image")),
        (1, f"{metrics['val.total_ips']:.1f} img/s"),
    ]


def validation_text(metrics: Mapping[str, float], *, classes: int) -> str:
    """Returns the numbers of a validation as one line, the same in training and offline evaluation."""
    return "  ".join(text for _, text in validation_parts(metrics, "val", classes=classes))


def result_table(validations: Sequence[dict[str, Any]], *, classes: int) -> list[str]:
    """Returns the best and the last validation, aligned; nothing if there was none."""
    if not validations:
        return []
    last = max(validations, key=lambda line: line["epoch"])
    best = best_validation(validations)
    rows = [f"{'result':<10} {'epoch':>6} {'top-1 %':>9} {'top-5 %':>9} {'loss':>9}"]
    for name, line in (("best", best), ("last", last)):
        for prefix, kind in (("val", ""), ("val_ema", " averaged")):
            if f"{prefix}.top1" in line:
                top1, top5, loss = (line.get(f"{prefix}.{key}") for key in ("top1", "top5", "loss"))
                cells = [f"{top1:.3f}", "-" if top5 is None else _top5(top5, classes)]
                cells.append("-" if loss is None else decimal(loss, 5))
                rows.append(f"  {name:<8} {line['epoch']:>6} {' '.join(f'{cell:>9}' for cell in cells)}{kind}")
    return rows


def _top5(value: float, classes: int) -> str:
    """Top-5 accuracy; "-" of so few classes that it is always 100 %."""
    return f"{value:.3f}" if classes > 5 else "-"


def print_rows(rows: Mapping[str, str]) -> None:
    """Prints names and what they are, aligned; in a terminal, long lines continue below their beginning."""
    for name, text in rows.items():
        say(f"{name:<10} {text}")


def clock(seconds: float) -> str:
    """Returns seconds as hours, minutes and seconds, such as 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
