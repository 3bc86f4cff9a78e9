"""Trains ResNet-50 v1.5: `python -m rn50_jax.train --config configs/dgx1_90e.py`.

The recipe, top to bottom: read the config, look at devices and data, derive the numbers, restore or initialise the
state, then train and validate epoch by epoch.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from ml_collections import ConfigDict

from rn50_jax import cli
from rn50_jax.analysis.curves import tell_where
from rn50_jax.analysis.validate_only import validate_only
from rn50_jax.checkpoint.manager import Checkpoints
from rn50_jax.config import loading as configs
from rn50_jax.config.derived import make_plan
from rn50_jax.config.model import build_model
from rn50_jax.data.bad_images import BadImages
from rn50_jax.data.dali_errors import need_dali
from rn50_jax.data.dataset import open_dataset
from rn50_jax.data.loader import train_batches
from rn50_jax.data.options import dataset_options, loader_options
from rn50_jax.distributed import processes
from rn50_jax.distributed.devices import AXIS, find_devices, find_divergence, make_mesh, replicate
from rn50_jax.errors import Interrupted, UserError
from rn50_jax.io import messages
from rn50_jax.io.console_log import open_log
from rn50_jax.io.messages import say
from rn50_jax.loggers.base import check_loggers
from rn50_jax.loggers.goodput import Goodput
from rn50_jax.models.norm import norm_sync
from rn50_jax.runtime import jax_setup, streams
from rn50_jax.runtime.run_folder import make_workdir
from rn50_jax.runtime.run_lock import locked
from rn50_jax.runtime.signals import Signals
from rn50_jax.runtime.watchdog import Watchdog
from rn50_jax.training.build import (
    compile_steps,
)
from rn50_jax.training.context import Setup, check_same_everywhere, record_val_images, recorded_val_images
from rn50_jax.training.divergence import telling_of_memory
from rn50_jax.training.loop import Run, saves
from rn50_jax.training.pretrained import take_architecture
from rn50_jax.training.resume import find_start
from rn50_jax.training.run_report import open_report, print_summary
from rn50_jax.training.stream_facts import stream_facts


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = cli.CommandLine(
        prog="rn50_jax.train",
        description="Train a ResNet, validate every epoch, keep checkpoints. The same command again resumes.",
        epilog="Any key of configs/default.py can be changed with --config.key=value, e.g. --config.data.dir=DIR.",
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE[:VARIANT]", help="a recipe by name or file, or a run's config.json"
    )
    parser.add_argument("--workdir", type=Path, help="folder of the run (default: runs/<config name>)")
    parser.add_argument(
        "--pretrained_weights", metavar="FILE", help="weight file, or the folder of a run, that a new run starts from"
    )
    parser.add_argument(
        "--resume", metavar="FILE", help="checkpoint.pth.tar of NVIDIA's code that a new run goes on from"
    )
    parser.add_argument("--target_top1", metavar="X", help="end the run once validation reaches X per cent top-1")
    processes.add_arguments(parser)
    args, overrides = configs.parse_args(parser, argv)
    shortcuts = ("model.pretrained_weights", "run.resume", "run.target_top1")
    given = {key: getattr(args, key.partition(".")[2]) for key in shortcuts}
    overrides += [(key, text) for key, text in given.items() if text is not None]

    config, name = configs.load(args.config)
    config = configs.override(config, overrides)
    configs.validate(config)
    workdir = args.workdir or Path("runs") / name
    jax_setup.prepare_runtime(config.data.backend, config.run.xla_flags)
    processes.connect(processes.find_cluster(args, os.environ), heartbeat_timeout=config.run.heartbeat_timeout)
    jax_setup.use_compile_cache(config.run.compile_cache)
    if config.run.evaluate:
        validate_only(config, workdir, overrides)
    else:
        config, told = take_architecture(config, overrides, workdir)
        configs.validate(config)
        if told and processes.is_first():
            say(told)
        try:
            with streams.enduring():
                train(prepare(config, workdir), argv)
        except Interrupted:
            processes.finish()
            raise
    processes.finish()
    return 0


def prepare(config: ConfigDict, workdir: Path) -> Setup:
    """Looks at devices, data and work folder and derives what follows from them.

    Raises:
      UserError: something is missing or does not fit the validated config, or processes differ in it.
    """
    check_loggers(config)
    if config.data.backend != "synthetic":
        need_dali("config.data.backend=synthetic")
    devices = find_devices(backend=config.data.backend, precision=config.precision)
    dataset = open_dataset(
        dataset_options(config), need_val=not config.run.training_only, val_images=recorded_val_images(workdir)
    )
    plan = make_plan(config, num_images=len(dataset.train.labels), num_devices=len(devices))
    model = build_model(
        config,
        num_classes=len(dataset.class_names),
        platform=devices[0].platform,
        sync=norm_sync(AXIS, len(devices), config.recipe.bn_group),
    )
    make_workdir(workdir)
    if saves(config):
        processes.check_shared(workdir)
    check_same_everywhere(config, dataset)
    return Setup(config, workdir, make_mesh(devices), dataset, plan, model)


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
        if processes.is_first() and (error := open_log(workdir, ["python", "-m", "rn50_jax.train", *argv])):
            messages.warn_of_log(error)
        checkpoints = stack.enter_context(
            Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep, gather=config.checkpoint.gather)
        )
        if not saves(config) and checkpoints.steps():
            raise UserError(
                f"{workdir} holds the checkpoints of a run; give a run without checkpoints another --workdir"
            )
        stream = stream_facts(config, dataset.train, plan)
        start = find_start(setup, stream, checkpoints)
        processes.check_agreement({"latest checkpoint (is the work folder shared?)": start.position[:2]})
        if told := start.finished(config):
            say(f"{workdir} is finished: {told}")
            return
        print_summary(config, workdir, mesh, dataset, plan, model, start.state)
        record_val_images(setup)
        step = start.position.epoch * plan.steps_per_epoch + start.position.step
        if step:
            say(f"resuming after epoch {start.position.epoch}, step {step}")

        train_fn, eval_fn = compile_steps(config, model, plan, mesh)
        bad_images = BadImages(
            workdir / "quarantine.json", policy=config.data.on_bad_file, limit=config.data.max_bad_files
        )
        batches = train_batches(
            dataset.train,
            loader_options(config),
            mesh,
            epochs=config.epochs,
            steps_per_epoch=plan.steps_per_epoch,
            device_batch=plan.device_batch,
            start=start.position,
            bad_images=bad_images,
        )
        run = Run(
            setup=setup,
            train_fn=train_fn,
            eval_fn=eval_fn,
            find_divergence=find_divergence(mesh, mode=config.parallel) if plan.num_devices > 1 else None,
            stream=stream,
            signals=stack.enter_context(Signals(60 * config.checkpoint.every_minutes)),
            watchdog=watchdog,
            checkpoints=checkpoints,
            report=stack.enter_context(open_report(config, workdir, mesh, plan, dataset, step, argv)),
            goodput=Goodput(start.goodput, start.lost),
            bad_images=bad_images,
            batches=stack.enter_context(closing(batches)),
            state=replicate(start.state, mesh),
            position=start.position,
        )
        stack.enter_context(processes.ending_together())
        stack.enter_context(telling_of_memory(config))
        for epoch in range(start.position.epoch, config.epochs):
            run.train_epoch(epoch)
            metrics = run.validate(epoch)
            run.finish_epoch(epoch, metrics)
            if run.reached(metrics):
                break
        run.finish()
        bad_images.warn_at_end()
    if processes.is_first():
        tell_where(config, workdir)


if __name__ == "__main__":
    cli.run(main)
