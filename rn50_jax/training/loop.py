"""The running training: one epoch after the other, and what may happen within one."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ml_collections import ConfigDict

from rn50_jax.checkpoint.folder import is_gathered
from rn50_jax.checkpoint.manager import Checkpoints
from rn50_jax.checkpoint.selection import score
from rn50_jax.data.bad_images import BadImages
from rn50_jax.data.batch import Batch, Position, TrainBatch
from rn50_jax.data.loader import eval_batches
from rn50_jax.data.options import loader_options
from rn50_jax.distributed import processes
from rn50_jax.errors import Interrupted, RunStopped
from rn50_jax.loggers.goodput import Goodput
from rn50_jax.loggers.meters import Window
from rn50_jax.loggers.report import Report
from rn50_jax.runtime.signals import Request, Signals
from rn50_jax.runtime.watchdog import Watchdog
from rn50_jax.training.build import TrainStep
from rn50_jax.training.context import Setup
from rn50_jax.training.divergence import note_steps_left_out, stop_if_diverging
from rn50_jax.training.memory import analyse_memory, memory_text
from rn50_jax.training.resume import describe
from rn50_jax.training.state import TrainState, variables_of
from rn50_jax.training.validation import EvalStep, evaluate

_DIVERGED = "a device or its memory may be faulty; run the same command again to go on from the last checkpoint"


def saves(config: ConfigDict) -> bool:
    """Whether a run keeps checkpoints."""
    return bool(config.run.save_checkpoints and config.run.prof == 0)


@dataclass
class Run:
    """The running training: what it needs, its state and its place in the stream of batches."""

    setup: Setup
    train_fn: TrainStep
    eval_fn: EvalStep
    find_divergence: Callable[[TrainState], str | None] | None
    stream: dict[str, Any]
    signals: Signals
    watchdog: Watchdog
    checkpoints: Checkpoints
    report: Report
    goodput: Goodput
    bad_images: BadImages
    batches: Iterator[TrainBatch]
    state: TrainState
    position: Position

    def __post_init__(self) -> None:
        config = self.setup.config
        self.window = Window(self.setup.plan.global_batch, loss_scaling=config.precision == "fp16")

    @property
    def step(self) -> int:
        """Updates done or left out since the start of the run."""
        return self.position.epoch * self.setup.plan.steps_per_epoch + self.position.step

    def train_epoch(self, epoch: int) -> None:
        """Trains what is left of one epoch."""
        config, plan = self.setup.config, self.setup.plan
        end = (epoch + 1) * plan.steps_per_epoch
        self.goodput.switch("train")
        train_size = loader_options(config).train_size
        if train_size(epoch) != train_size(epoch - 1):
            self.window.compiled = False  # the step compiles anew
        self.window.restart()
        while self.step < end:
            with self.window.waiting(), self.goodput.during("data"):
                batch = next(self.batches)
            with self.goodput.during("train" if self.window.compiled else "compile"):
                if not self.window.compiled and (memory := analyse_memory(self.train_fn, self.state, batch.batch)):
                    self.report.line(f"{'memory':<10} {memory_text(memory)}")
                self.state, metrics = self.train_fn(self.state, batch.batch)
                self.window.add(metrics)
            self.position = Position(epoch, self.position.step + 1, batch.pipelines)
            self.watchdog.progress()
            self.report.advance(self.step)
            reported = self.step % config.report.print_every == 0 or self.step == end
            if reported:
                self._report_window(epoch)
            self._answer(self.signals.poll(together=reported))

    def _report_window(self, epoch: int) -> None:
        summary = self.window.summary()
        self.report.train(self.step, epoch, summary)
        left_out = [self.step + offset for offset in self.window.left_out]
        if left_out and processes.is_first():
            note_steps_left_out(self.setup, left_out)
        stop_if_diverging(self.setup, self.step, summary)

    def validate(self, epoch: int) -> dict[str, float]:
        """The metrics of all kinds of weights on all of `val/`; none with `run.training_only`."""
        config, _, mesh, dataset, _, _ = self.setup
        self.report.validating(0)
        with self.goodput.during("validation"):
            if self.find_divergence and (difference := self.find_divergence(self.state)):
                raise RunStopped(f"the devices diverged by step {self.step}: {difference}; {_DIVERGED}")
            if config.run.training_only:
                return {}
            batches = eval_batches(
                dataset.val,
                loader_options(config),
                mesh,
                device_batch=config.batch_size,
                epoch=epoch,
                bad_images=self.bad_images,
            )
            batches = islice(batches, config.run.prof or None)
            return evaluate(self.eval_fn, variables_of(self.state), self._heed_signals(batches))

    def _heed_signals(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(self.watchdog.watch(batches), 1):
            self.report.validating(number)
            self._answer(self.signals.poll(together=number % self.setup.config.report.print_every == 0))
            yield batch

    def finish_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Reports an epoch and saves it."""
        config = self.setup.config
        self.report.epoch(self.step, epoch, metrics)
        self.position = Position(epoch + 1, 0)
        last = epoch + 1 == config.epochs or self.reached(metrics)
        gathered = config.checkpoint.gather and is_gathered(epoch + 1)
        if last or gathered or (epoch + 1) % config.checkpoint.every_epochs == 0:
            self._save(metrics)
        if self.reached(metrics):
            self.report.line(f"epoch {epoch + 1} reached the {config.run.target_top1:g} % top-1 of run.target_top1")

    def reached(self, metrics: dict[str, float]) -> bool:
        """Whether a validation found what `run.target_top1` asks for."""
        return 0 < self.setup.config.run.target_top1 <= score(metrics)

    def _answer(self, request: Request) -> None:
        """Does what was asked for from outside."""
        if request.save or request.stop:
            self._save({})
        if request.stop:
            with self.goodput.during("checkpoint"):
                self.checkpoints.wait()
            name = signal.Signals(request.stop).name
            kept = "nothing is saved in such a run"
            if saves(self.setup.config):
                kept = "everything is saved, and the same command goes on from there"
            self.report.end(self.step, self.position.epoch, self.goodput.totals(), finished=False)
            raise Interrupted(request.stop, f"ended by {name} after step {self.step}; {kept}")

    def _save(self, metrics: dict[str, float]) -> None:
        self.signals.saved()
        if not saves(self.setup.config):
            return
        with self.goodput.during("checkpoint"):
            meta = describe(self.setup, self.stream, self.position)
            self.checkpoints.save(self.state, meta | {"goodput": self.goodput.totals()}, metrics)
        self.watchdog.progress()

    def finish(self) -> None:
        """Waits for the last checkpoint and reports the run."""
        with self.goodput.during("checkpoint"):
            self.checkpoints.wait()
        epoch = max(self.position.epoch - (self.position.step == 0), 0)
        self.report.end(self.step, epoch, self.goodput.totals(), finished=True)
