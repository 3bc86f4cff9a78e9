"""Trains ResNet-50 v1.5: `python -m rn50_jax.train --config configs/dgx1_90e.py`.

The recipe, top to bottom: read the config, look at devices and data, derive the numbers, restore or initialise the
state, then train and validate epoch by epoch.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax import config as configs
from rn50_jax import errors, hosts, parallel
from rn50_jax.build import build_model, build_optimizer, build_options, build_schedule
from rn50_jax.checkpoint import Checkpoints
from rn50_jax.data.dataset import open_dataset
from rn50_jax.data.feed import (
    Position,
    TrainBatch,
    eval_batches,
    make_quarantine,
    stream_facts,
    train_batches,
    train_size,
)
from rn50_jax.data.folder import fingerprint
from rn50_jax.data.quarantine import Quarantine
from rn50_jax.diagnosis import note_steps_left_out, stop_if_diverging, telling_of_memory
from rn50_jax.errors import Interrupted, RunStopped, UserError, warn
from rn50_jax.evaluate import EvalStep, evaluate, evaluate_stored, make_eval_step
from rn50_jax.goodput import Goodput
from rn50_jax.guard import Request, Signals, Watchdog, locked
from rn50_jax.models.norm import norm_sync
from rn50_jax.models.resnet import ResNet
from rn50_jax.plan import Plan, make_plan
from rn50_jax.plot import plot_run
from rn50_jax.report import Report, Window, open_report, print_summary, validation_text
from rn50_jax.resume import describe, find_start
from rn50_jax.setup import Setup
from rn50_jax.state import TrainState, variables_of
from rn50_jax.step import Batch, Metrics, train_step
from rn50_jax.stored import load_run
from rn50_jax.workdir import make_workdir, versions

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = errors.CommandLine(
        prog="rn50_jax.train",
        description="Train a ResNet, validate every epoch, keep checkpoints. The same command again resumes.",
        epilog="Any key of configs/default.py can be changed with --config.key=value, e.g. --config.data.dir=DIR.",
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE[:VARIANT]", help="a file of configs/, or the config.json of a run"
    )
    parser.add_argument("--workdir", type=Path, help="folder of the run (default: runs/<config name>)")
    parser.add_argument("--pretrained_weights", metavar="FILE", help="weight file that a new run starts from")
    hosts.add_arguments(parser)
    args, overrides = configs.parse_args(parser, argv)
    if args.pretrained_weights is not None:
        overrides.append(("model.pretrained_weights", args.pretrained_weights))

    config, name = configs.load(args.config)
    config = configs.override(config, overrides)
    configs.validate(config)
    workdir = args.workdir or Path("runs") / name
    parallel.prepare_runtime(config.data.backend, config.run.xla_flags)
    parallel.use_compile_cache(config.run.compile_cache)
    hosts.connect(hosts.find_cluster(args, os.environ), heartbeat_timeout=config.run.heartbeat_timeout)
    if config.run.evaluate:
        print(validation_text(evaluate_stored(load_run(workdir, "latest", overrides))))
    else:
        try:
            train(prepare(config, workdir), argv)
        except Interrupted:
            hosts.finish()
            raise
    hosts.finish()
    return 0


def prepare(config: ConfigDict, workdir: Path) -> Setup:
    """Looks at devices, data and work folder and derives what follows from them.

    Raises:
      UserError: something is missing or does not fit the validated config, or processes differ in it.
    """
    devices = parallel.find_devices(backend=config.data.backend, precision=config.precision)
    dataset = open_dataset(config, need_val=not config.run.training_only)
    plan = make_plan(config, num_images=len(dataset.train.labels), num_devices=len(devices))
    model = build_model(
        config,
        num_classes=len(dataset.class_names),
        platform=devices[0].platform,
        sync=norm_sync(parallel.AXIS, len(devices), config.recipe.bn_group),
    )
    make_workdir(workdir)
    if jax.process_count() > 1:
        facts = {f"config.{key}": value for key, value in configs.flatten(config).items()} | versions()
        facts |= {"training set": fingerprint(dataset.train), "validation set": fingerprint(dataset.val)}
        hosts.check_agreement(facts)
    return Setup(config, workdir, parallel.make_mesh(devices), dataset, plan, model)


def train(setup: Setup, argv: Sequence[str]) -> None:
    """Trains, or goes on training; `argv` is written down with the run.

    Raises:
      Interrupted: by a signal, with everything saved.
      RunStopped: training or devices diverged, a device's memory is too small, or checkpoints cannot be written.
    """
    config, workdir, mesh, dataset, plan, model = setup
    with ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(config.run.hang_timeout))
        stack.enter_context(locked(workdir))
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep))
        if not _saves(config) and checkpoints.steps():
            raise UserError(
                f"{workdir} holds the checkpoints of a run; give a run without checkpoints another --workdir"
            )
        stream = stream_facts(config, dataset.train, plan)
        start = find_start(setup, stream, checkpoints)
        hosts.check_agreement({"latest checkpoint (is the work folder shared?)": start.position[:2]})
        if start.position.epoch >= config.epochs:
            print(f"{workdir} is finished: {start.position.epoch} of {config.epochs} epochs are done")
            return
        print_summary(config, workdir, mesh, dataset, plan, model, start.state)
        step = start.position.epoch * plan.steps_per_epoch + start.position.step
        if step:
            print(f"resuming after epoch {start.position.epoch}, step {step}", flush=True)

        train_fn, eval_fn = compile_steps(config, model, plan, mesh)
        quarantine = make_quarantine(config, workdir / "quarantine.json")
        run = _Run(
            setup=setup,
            train_fn=train_fn,
            eval_fn=eval_fn,
            find_divergence=parallel.find_divergence(mesh, mode=config.parallel) if plan.num_devices > 1 else None,
            stream=stream,
            signals=stack.enter_context(Signals(60 * config.checkpoint.every_minutes)),
            watchdog=watchdog,
            checkpoints=checkpoints,
            report=stack.enter_context(open_report(config, workdir, mesh, plan, step, argv)),
            goodput=Goodput(start.goodput, start.lost),
            quarantine=quarantine,
            batches=stack.enter_context(
                closing(train_batches(config, dataset.train, plan, mesh, start.position, quarantine))
            ),
            state=parallel.replicate(start.state, mesh),
            position=start.position,
        )
        stack.enter_context(hosts.ending_together())
        stack.enter_context(telling_of_memory(config))
        for epoch in range(start.position.epoch, config.epochs):
            run.train_epoch(epoch)
            metrics = run.validate(epoch)
            run.finish_epoch(epoch, metrics)
            if config.run.prof and run.step >= config.run.prof:
                break
        run.finish()
    if hosts.is_first():
        curves = workdir / "curves.png"
        try:
            plot_run(workdir / config.report.file, curves)
        except OSError as error:
            warn(f"{curves} cannot be written: {error.strerror}")
        print(f"done; curves in {curves}")


def _saves(config: ConfigDict) -> bool:
    return bool(config.run.save_checkpoints and config.run.prof == 0)


@dataclass
class _Run:
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
    quarantine: Quarantine
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
        """What is left of one epoch, or of `run.prof`."""
        config, plan = self.setup.config, self.setup.plan
        end = (epoch + 1) * plan.steps_per_epoch
        if config.run.prof:
            end = min(end, config.run.prof)
        self.goodput.switch("train")
        if train_size(config, epoch) != train_size(config, epoch - 1):
            self.window.compiled = False  # the step compiles anew
        self.window.restart()
        while self.step < end:
            with self.window.waiting(), self.goodput.during("data"):
                batch = next(self.batches)
            with self.goodput.during("train" if self.window.compiled else "compile"):
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
        if left_out and hosts.is_first():
            note_steps_left_out(self.setup, left_out)
        stop_if_diverging(self.setup, self.step, summary)

    def validate(self, epoch: int) -> dict[str, float]:
        """The metrics of all kinds of weights on all of `val/`; none with `run.training_only`."""
        config, _, mesh, dataset, _, _ = self.setup
        with self.goodput.during("validation"):
            if self.find_divergence and (difference := self.find_divergence(self.state)):
                raise RunStopped(f"the devices diverged by step {self.step}: {difference}; {_DIVERGED}")
            if config.run.training_only:
                return {}
            batches = islice(
                eval_batches(config, dataset.val, mesh, epoch=epoch, quarantine=self.quarantine),
                config.run.prof or None,
            )
            return evaluate(self.eval_fn, variables_of(self.state), self._heed_signals(batches))

    def _heed_signals(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(self.watchdog.watch(batches), 1):
            self._answer(self.signals.poll(together=number % self.setup.config.report.print_every == 0))
            yield batch

    def finish_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Reports an epoch and saves it."""
        config = self.setup.config
        self.report.epoch(self.step, epoch, metrics)
        if self.position.step < self.setup.plan.steps_per_epoch:
            return  # run.prof has ended within the epoch
        self.position = Position(epoch + 1, 0)
        if epoch + 1 == config.epochs or (epoch + 1) % config.checkpoint.every_epochs == 0:
            self._save(metrics)

    def _answer(self, request: Request) -> None:
        """Does what was asked for from outside."""
        if request.save or request.stop:
            self._save({})
        if request.stop:
            with self.goodput.during("checkpoint"):
                self.checkpoints.wait()
            name = signal.Signals(request.stop).name
            kept = "everything is saved" if _saves(self.setup.config) else "nothing is saved in such a run"
            self.report.end(self.step, self.position.epoch, self.goodput.totals(), finished=False)
            raise Interrupted(request.stop, f"ended by {name} after step {self.step}; {kept}")

    def _save(self, metrics: dict[str, float]) -> None:
        self.signals.saved()
        if not _saves(self.setup.config):
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


_DIVERGED = "a device or its memory may be faulty; run the same command again to go on from the last checkpoint"


def compile_steps(config: ConfigDict, model: ResNet, plan: Plan, mesh: Mesh) -> tuple[TrainStep, EvalStep]:
    """The training and the evaluation step over all devices; each compiles at its first call."""
    one_train_step = partial(
        train_step,
        model=model,
        optimizer=build_optimizer(config),
        learning_rate=build_schedule(config, plan),
        options=build_options(config, plan.accumulation),
        axis_name=parallel.AXIS,
    )
    return (
        parallel.spread(one_train_step, mesh, mode=config.parallel, donate_state=True),
        parallel.spread(make_eval_step(config, model), mesh, mode=config.parallel),
    )


if __name__ == "__main__":
    errors.run(main)
