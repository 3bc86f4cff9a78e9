"""Trains ResNet-50 v1.5: `python -m rn50_jax.train --config configs/dgx1_90e.py`.

The recipe, top to bottom: read the config, look at devices and data, derive the numbers, restore or initialise the
state, then train and validate epoch by epoch.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax import checkpoint, errors, hosts, parallel
from rn50_jax import config as configs
from rn50_jax.build import build_model, build_optimizer, build_options, build_schedule
from rn50_jax.data.dataset import open_dataset
from rn50_jax.data.feed import eval_batches, train_batches
from rn50_jax.data.folder import Dataset, fingerprint
from rn50_jax.errors import RunStopped, UserError
from rn50_jax.evaluate import EvalStep, evaluate, evaluate_stored, make_eval_step
from rn50_jax.guard import Watchdog
from rn50_jax.models.norm import norm_sync
from rn50_jax.models.resnet import ResNet
from rn50_jax.plan import Plan, make_plan
from rn50_jax.plot import plot_run
from rn50_jax.report import Report, Window, open_report, print_summary, validation_text
from rn50_jax.resume import initial_state
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
    parallel.prepare_runtime(config.data.backend)
    hosts.connect(hosts.find_cluster(args, os.environ), heartbeat_timeout=config.run.heartbeat_timeout)
    if config.run.evaluate:
        print(validation_text(evaluate_stored(load_run(workdir, "latest", overrides))))
    else:
        train(prepare(config, workdir), argv)
    hosts.finish()
    return 0


class Setup(NamedTuple):
    """What a run consists of, known before anything is compiled."""

    config: ConfigDict
    workdir: Path
    mesh: Mesh
    dataset: Dataset
    plan: Plan
    model: ResNet


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
    """Trains, or goes on training; `argv` is written down with the run."""
    config, workdir, mesh, dataset, plan, model = setup
    started = time.perf_counter()
    saving = config.run.save_checkpoints and config.run.prof == 0
    with ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(config.run.hang_timeout))
        manager = stack.enter_context(checkpoint.open_manager(workdir / "checkpoints", keep=config.checkpoint.keep))
        if not saving and manager.all_steps():
            raise UserError(
                f"{workdir} holds the checkpoints of a run; give a run without checkpoints another --workdir"
            )
        state, first_epoch, step = initial_state(config, model, plan, dataset.class_names, workdir, manager)
        hosts.check_agreement({"latest checkpoint (is the work folder shared?)": step})
        if first_epoch >= config.epochs:
            print(f"{workdir} is finished: {first_epoch} of {config.epochs} epochs are done")
            return
        print_summary(config, workdir, mesh, dataset, plan, model, state)

        state = parallel.replicate(state, mesh)
        train_fn, eval_fn = compile_steps(config, model, plan, mesh)
        find_divergence = parallel.find_divergence(mesh, mode=config.parallel) if plan.num_devices > 1 else None
        report = stack.enter_context(open_report(config, workdir, mesh, plan, step, argv))
        batches = stack.enter_context(closing(train_batches(config, dataset.train, plan, mesh, first_epoch)))
        stack.enter_context(hosts.ending_together())
        window = Window(plan.global_batch, loss_scaling=config.precision == "fp16")
        for epoch in range(first_epoch, config.epochs):
            state, step = _train_epoch(setup, state, batches, train_fn, window, report, watchdog, epoch, step)
            if find_divergence and (difference := find_divergence(state)):
                raise RunStopped(f"the devices diverged by step {step}: {difference}; {_DIVERGED}")
            metrics: dict[str, float] = {}
            if not config.run.training_only:
                val_batches = islice(eval_batches(config, dataset.val, mesh), config.run.prof or None)
                metrics = evaluate(eval_fn, variables_of(state), watchdog.watch(val_batches))
            report.epoch(step, epoch, metrics)
            done = epoch + 1 == config.epochs
            if saving and (done or (epoch + 1) % config.checkpoint.every_epochs == 0):
                meta = {"step": step, "epoch": epoch + 1, "class_names": list(dataset.class_names)}
                meta |= {"config": config.to_dict(), "versions": versions()}
                checkpoint.save(manager, state, meta, metrics)
                watchdog.progress()
            if config.run.prof and step >= config.run.prof:
                break
        report.end()
    if hosts.is_first():
        curves = workdir / "curves.png"
        plot_run(workdir / config.report.file, curves)
        print(f"done in {time.perf_counter() - started:.0f} s; curves in {curves}")


_DIVERGED = "a device or its memory may be faulty; run the same command again to go on from the last checkpoint"


def _train_epoch(
    setup: Setup,
    state: TrainState,
    batches: Iterator[Batch],
    train_fn: TrainStep,
    window: Window,
    report: Report,
    watchdog: Watchdog,
    epoch: int,
    step: int,
) -> tuple[TrainState, int]:
    """One epoch, or what `run.prof` leaves of it; returns the state and the number of steps done so far."""
    config = setup.config
    end = (epoch + 1) * setup.plan.steps_per_epoch
    if config.run.prof:
        end = min(end, config.run.prof)
    window.restart()
    while step < end:
        with window.waiting():
            batch = next(batches)
        state, metrics = train_fn(state, batch)
        window.add(metrics)
        step += 1
        watchdog.progress()
        report.advance(step)
        if step % config.report.print_every == 0 or step == end:
            summary = window.summary()
            report.train(step, epoch, summary)
            _stop_if_diverging(config, step, summary)
    return state, step


def _stop_if_diverging(config: ConfigDict, step: int, summary: dict[str, float]) -> None:
    skipped = int(summary["train.skipped_in_a_row"])
    if skipped < config.run.max_skipped_steps:
        return
    scale = f" and a loss scale of {summary['train.loss_scale']:g}" if "train.loss_scale" in summary else ""
    fix = "lower config.recipe.lr, warm up for longer"
    if config.precision == "fp16":
        fix += ", use config.loss_scale.mode='dynamic'" if config.loss_scale.mode == "static" else ", use bf16"
    raise RunStopped(
        f"by step {step}, the loss or a gradient was not finite in {skipped} steps in a row (run.max_skipped_steps="
        f"{config.run.max_skipped_steps}), at a learning rate of {summary['lr']:g}{scale}. These steps changed "
        f"nothing; to get beyond: {fix}, or look at the images"
    )


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
