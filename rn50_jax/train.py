"""Trains ResNet-50 v1.5: `python -m rn50_jax.train --config configs/dgx1_90e.py`.

The recipe, top to bottom: read the config, look at devices and data, derive the numbers, restore or initialise the
state, then train and validate epoch by epoch.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax import checkpoint, errors, parallel
from rn50_jax import config as configs
from rn50_jax.build import build_model, build_optimizer, build_options, build_schedule, build_state
from rn50_jax.data.dataset import open_dataset
from rn50_jax.data.feed import eval_batches, train_batches
from rn50_jax.data.folder import Dataset, check_class_names
from rn50_jax.dle import DleLog, dle_parameters
from rn50_jax.errors import UserError
from rn50_jax.evaluate import evaluate, evaluate_stored, make_eval_step
from rn50_jax.models.resnet import ResNet
from rn50_jax.plan import Plan, make_plan
from rn50_jax.plot import plot_run
from rn50_jax.report import (
    Report,
    Window,
    describe_devices,
    make_workdir,
    validation_text,
    versions,
    warn,
    write_run_files,
)
from rn50_jax.state import TrainState
from rn50_jax.step import Batch, Metrics, train_step
from rn50_jax.stored import load_run
from rn50_jax.weight_files import read_weights
from rn50_jax.weights import start_from

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
    args, overrides = configs.parse_args(parser, argv)
    if args.pretrained_weights is not None:
        overrides.append(("model.pretrained_weights", args.pretrained_weights))

    config, name = configs.load(args.config)
    config = configs.override(config, overrides)
    configs.validate(config)
    workdir = args.workdir or Path("runs") / name
    if config.run.evaluate:
        print(validation_text(evaluate_stored(load_run(workdir, "latest", overrides))))
        return 0
    train(prepare(config, workdir), argv)
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
      UserError: something is missing or does not fit the validated config.
    """
    parallel.prepare_runtime(config.data.backend)
    devices = parallel.find_devices(backend=config.data.backend, precision=config.precision)
    dataset = open_dataset(config, need_val=not config.run.training_only)
    plan = make_plan(config, num_images=len(dataset.train.labels), num_devices=len(devices))
    model = build_model(config, num_classes=len(dataset.class_names), platform=devices[0].platform)
    make_workdir(workdir)
    return Setup(config, workdir, parallel.make_mesh(devices), dataset, plan, model)


def train(setup: Setup, argv: Sequence[str]) -> None:
    """Trains, or goes on training; `argv` is written down with the run."""
    config, workdir, mesh, dataset, plan, model = setup
    started = time.perf_counter()
    saving = config.run.save_checkpoints and config.run.prof == 0
    with checkpoint.open_manager(workdir / "checkpoints", keep=config.checkpoint.keep) as manager:
        if not saving and manager.all_steps():
            raise UserError(
                f"{workdir} holds the checkpoints of a run; give a run without checkpoints another --workdir"
            )
        state, first_epoch, step = _initial_state(setup, manager)
        if first_epoch >= config.epochs:
            print(f"{workdir} is finished: {first_epoch} of {config.epochs} epochs are done")
            return
        write_run_files(workdir, config, list(mesh.devices.flat), argv)
        _print_summary(setup, state)

        state = parallel.replicate(state, mesh)
        train_fn, eval_fn = compile_steps(config, model, plan, mesh)
        window = Window(plan.global_batch)
        dle = None
        if config.report.dle_json:
            parameters = dle_parameters(config, plan, workdir)
            dle = DleLog(workdir / config.report.dle_json, parameters, steps_per_epoch=plan.steps_per_epoch)
        with (
            closing(train_batches(config, dataset.train, plan, mesh, first_epoch)) as batches,
            Report(workdir / config.report.file, plan, config.epochs, step, dle) as report,
        ):
            for epoch in range(first_epoch, config.epochs):
                state, step = _train_epoch(setup, state, batches, train_fn, window, report, epoch, step)
                metrics: dict[str, float] = {}
                if not config.run.training_only:
                    val_batches = islice(eval_batches(config, dataset.val, mesh), config.run.prof or None)
                    metrics = evaluate(eval_fn, state, val_batches)
                report.epoch(step, epoch, metrics)
                done = epoch + 1 == config.epochs
                if saving and (done or (epoch + 1) % config.checkpoint.every_epochs == 0):
                    meta = {"step": step, "epoch": epoch + 1, "class_names": list(dataset.class_names)}
                    meta |= {"config": config.to_dict(), "versions": versions()}
                    checkpoint.save(manager, state, meta, metrics)
                if config.run.prof and step >= config.run.prof:
                    break
            report.end()
    curves = workdir / "curves.png"
    plot_run(workdir / config.report.file, curves)
    print(f"done in {time.perf_counter() - started:.0f} s; curves in {curves}")


def _train_epoch(
    setup: Setup,
    state: TrainState,
    batches: Iterator[Batch],
    train_fn: TrainStep,
    window: Window,
    report: Report,
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
        report.advance(step)
        if step % config.report.print_every == 0 or step == end:
            report.train(step, epoch, window.summary())
    return state, step


def _initial_state(setup: Setup, manager: checkpoint.CheckpointManager) -> tuple[TrainState, int, int]:
    """Fresh state, or that of the latest checkpoint; with the numbers of epochs and steps that are done."""
    config, model, plan = setup.config, setup.model, setup.plan
    if not manager.all_steps():
        return _fresh_state(config, model), 0, 0
    meta = checkpoint.read_meta(manager, "latest")
    check_class_names(setup.dataset.class_names, tuple(meta["class_names"]), config.data.dir)
    before, now = (configs.flatten(c) for c in (configs.from_tree(meta["config"]), config))
    for key in ("model.arch", "model.stages", "model.width", "model.widths", "model.se_units"):
        if before[key] != now[key]:
            raise UserError(
                f"{setup.workdir} holds checkpoints of another model: config.{key} was {before[key]!r} and is "
                f"{now[key]!r} now; set it back, or choose another --workdir"
            )
    state = checkpoint.restore(manager, meta, build_state(config, model, abstract=True))
    for key, value in now.items():
        if before.get(key) != value:
            warn(f"this run was started with another config.{key}: {before.get(key)!r} became {value!r}")
    epoch = meta["epoch"]
    step = epoch * plan.steps_per_epoch
    if step != meta["step"]:
        warn(f"an epoch has another number of steps now: step {meta['step']} became {step}")
        state = state._replace(step=jnp.asarray(step, jnp.int32))
    if epoch < config.epochs:
        print(f"resuming after epoch {epoch}, step {step}")
    return state, epoch, step


def _fresh_state(config: ConfigDict, model: ResNet) -> TrainState:
    """Initialised, or with pretrained weights."""
    source = config.model.pretrained_weights
    if not source:
        return build_state(config, model)
    arrays = read_weights(Path(source)).arrays
    state, told = start_from(build_state(config, model), arrays, model, source)
    print(told)
    return state


def compile_steps(
    config: ConfigDict, model: ResNet, plan: Plan, mesh: Mesh
) -> tuple[TrainStep, Callable[[TrainState, Batch], Metrics]]:
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


def _print_summary(setup: Setup, state: TrainState) -> None:
    """Says what the run will do."""
    config, workdir, mesh, dataset, plan, model = setup
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
    size = config.data.image_size
    batch_bytes = plan.device_batch * size * size * 3 * (config.data.prefetch + 2)
    source = config.data.backend if config.data.backend == "synthetic" else f"{config.data.dir} ({config.data.backend})"
    scaling = f", {config.loss_scale.mode} loss scale {config.loss_scale.init:g}" if config.precision == "fp16" else ""
    rows = {
        "run": f"{workdir}, seed {config.seed}",
        "devices": f"{describe_devices(list(mesh.devices.flat))}, {config.parallel}",
        "data": f"{source}: {len(dataset.train.labels)} training and {len(dataset.val.labels)} validation images, "
        f"{len(dataset.class_names)} classes",
        "model": f"{config.model.arch}, {parameters:,} parameters, {size} px",
        "precision": f"{config.precision}{scaling}, {model.lowering} convolutions",
        "batch": f"{config.batch_size} per device x {plan.num_devices} device(s) x {plan.accumulation} pass(es) = "
        f"{plan.global_batch} per update",
        "schedule": f"{config.epochs} epochs x {plan.steps_per_epoch} steps = {plan.total_steps} steps, "
        f"{config.recipe.warmup_epochs} epoch(s) of warm-up, peak learning rate {plan.peak_lr:g}",
        "memory": f"{state_bytes / 1e6:.0f} MB of state and {batch_bytes / 1e6:.1f} MB of images per device, "
        "activations come on top",
    }
    for name, text in rows.items():
        print(f"{name:<10} {text}", flush=True)


if __name__ == "__main__":
    errors.run(main)
