"""Trains ResNet-50 v1.5: `python -m rn50_jax.train --config configs/dgx1_90e.py`.

`train` is the recipe, top to bottom: devices and data, the numbers that follow from them, the state to start from, then
epochs of training steps, each followed by a validation and a checkpoint.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path

from rn50_jax import cli
from rn50_jax.analysis.results import tell_where
from rn50_jax.analysis.validate_only import validate_only
from rn50_jax.checkpoint.folder import is_gathered
from rn50_jax.checkpoint.manager import Checkpoints
from rn50_jax.checkpoint.selection import score
from rn50_jax.config import loading as configs
from rn50_jax.config.derived import make_plan
from rn50_jax.config.file_names import METRICS
from rn50_jax.config.model import build_model
from rn50_jax.config.schema import Config
from rn50_jax.data.bad_images import BadImages
from rn50_jax.data.batch import Batch, Position
from rn50_jax.data.dali_errors import need_dali
from rn50_jax.data.dataset import open_dataset
from rn50_jax.data.loader import eval_batches, train_batches
from rn50_jax.distributed import devices, processes
from rn50_jax.errors import Interrupted, UserError
from rn50_jax.io.messages import open_log, say
from rn50_jax.loggers.available import check_loggers
from rn50_jax.loggers.goodput import Goodput
from rn50_jax.loggers.meters import Meters
from rn50_jax.models.norm import norm_sync
from rn50_jax.runtime import jax_setup, streams
from rn50_jax.runtime.run_folder import make_workdir
from rn50_jax.runtime.run_lock import locked
from rn50_jax.runtime.signals import Request, Signals, interruption
from rn50_jax.runtime.watchdog import Watchdog
from rn50_jax.training.build import compile_steps
from rn50_jax.training.divergence import (
    explaining_memory,
    files_of_step,
    note_skipped_steps,
    stop_if_devices_differ,
    stop_if_diverging,
)
from rn50_jax.training.memory import analyse_memory, memory_text
from rn50_jax.training.pretrained import take_architecture
from rn50_jax.training.resume import find_start
from rn50_jax.training.run_facts import check_same_everywhere, checkpoint_meta, record_val_images, recorded_val_images
from rn50_jax.training.run_report import open_report, print_summary
from rn50_jax.training.state import TrainState, variables_of
from rn50_jax.training.stream_facts import stream_facts
from rn50_jax.training.validation import evaluate


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.CommandLine(
        prog="rn50_jax.train",
        description="Train a ResNet, validate every epoch, keep checkpoints. The same command again resumes.",
        epilog="Any option of the config can be changed with --config.key=value, e.g. --config.data.dir=DIR; "
        "--help_config lists them.",
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
    overrides = [*overrides, *((key, text) for key, text in given.items() if text is not None)]

    config, name = configs.load(args.config, overrides)
    workdir = args.workdir or Path("runs") / name
    # XLA reads its flags, and processes find each other, before JAX first looks at a device.
    jax_setup.prepare_runtime(config.data.backend, config.compute.xla_flags)
    processes.connect(processes.find_cluster(args, os.environ), heartbeat_timeout=config.run.heartbeat_timeout)
    jax_setup.use_compile_cache(config.compute.compile_cache)
    if config.run.evaluate:
        validate_only(config, workdir, overrides)
        processes.finish()
        return 0
    config, taken = take_architecture(config, overrides, workdir)
    if taken and processes.is_first():
        say(taken)
    try:
        with streams.enduring():  # a closed terminal ends no run
            train(config, workdir, argv)
    except Interrupted:
        processes.finish()
        raise
    processes.finish()
    return 0


def train(config: Config, workdir: Path, argv: Sequence[str]) -> None:
    """Trains, or goes on training; `argv` is written down with the run.

    Raises:
      UserError: something is missing or does not fit the validated config, or processes differ in it.
      Interrupted: by a signal, with everything saved.
      RunStopped: training or devices diverged, a device's memory is too small, or checkpoints cannot be written.
    """
    # Whatever can be wrong is found now, in seconds, and not after minutes of compiling.
    check_loggers(config.log)
    if config.data.backend != "synthetic":
        need_dali("config.data.backend=synthetic")
    mesh = devices.make_mesh(devices.find_devices(backend=config.data.backend, precision=config.precision))
    val_images = recorded_val_images(workdir)
    dataset = open_dataset(config, need_val=not config.run.training_only, val_images=val_images)
    plan = make_plan(config, num_images=len(dataset.train.labels), num_devices=mesh.devices.size)
    model = build_model(
        config,
        num_classes=len(dataset.class_names),
        platform=mesh.devices.flat[0].platform,
        sync=norm_sync(devices.AXIS, mesh.devices.size, config.recipe.bn_group),
    )
    make_workdir(workdir)
    keeps_checkpoints = config.run.save_checkpoints and config.run.prof == 0
    if keeps_checkpoints:
        processes.check_shared(workdir)
    check_same_everywhere(config, dataset)

    with ExitStack() as stack:  # closed from the last to the first, however the run ends
        # A collective waits for ever for a process that has died: silence must end a run, or it costs a day.
        watchdog = stack.enter_context(Watchdog(config.run.hang_timeout))
        if processes.is_first():
            stack.enter_context(locked(workdir))
            open_log(workdir, ["python", "-m", "rn50_jax.train", *argv])
        checkpoints = stack.enter_context(
            Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep, gather=config.checkpoint.gather)
        )
        if not keeps_checkpoints and checkpoints.steps():
            raise UserError(
                f"{workdir} holds the checkpoints of a run; give a run without checkpoints another --workdir"
            )
        # These facts decide which images come when: a run resumes within an epoch only if none of them has changed.
        data_facts = stream_facts(config, dataset.train, plan)
        start = find_start(
            config,
            workdir,
            checkpoints,
            model=model,
            class_names=dataset.class_names,
            plan=plan,
            stream=data_facts,
            local_devices=devices.local_indices(mesh),
        )
        processes.check_agreement({"latest checkpoint (is the work folder shared?)": start.position[:2]})
        if reason := start.finished(config.epochs, config.run.target_top1):
            say(f"{workdir} is finished: {reason}")
            return
        print_summary(config, workdir, mesh, dataset, plan, model, start.state)
        if config.data.val_share:
            record_val_images(workdir, dataset)
        step = start.position.epoch * plan.steps_per_epoch + start.position.step
        if step:
            say(f"resuming after epoch {start.position.epoch}, step {step}")

        # Each compiles at its first call, over all devices, and is compiled once: shapes never change within a run.
        train_step, eval_step = compile_steps(config, model, plan, mesh)
        find_divergence = devices.find_divergence(mesh, mode=config.compute.parallel)
        # SIGTERM asks for a save and an orderly end: batch systems send it a minute before they kill.
        gather_requests = processes.gather if processes.count() > 1 else None
        signals = stack.enter_context(Signals(60 * config.checkpoint.every_minutes, gather_requests))
        report = stack.enter_context(open_report(config, workdir, mesh, plan, dataset, step, argv))
        goodput = Goodput(start.goodput, start.lost)
        scaling = config.loss_scale.mode if config.precision == "fp16" else None
        meters = Meters(plan.global_batch, loss_scaling=bool(scaling))
        bad_images = BadImages(workdir / "quarantine.json", limit=config.data.max_bad_images)
        batches = train_batches(
            dataset.train,
            config.data,
            mesh,
            seed=config.seed,
            num_classes=len(dataset.class_names),
            epochs=config.epochs,
            steps_per_epoch=plan.steps_per_epoch,
            device_batch=plan.device_batch,
            start=start.position,
            bad_images=bad_images,
        )
        stack.enter_context(closing(batches))
        state, position = devices.replicate(start.state, mesh), start.position
        stack.enter_context(processes.ending_together())
        stack.enter_context(explaining_memory(config.batch_size, config.data.image_size, config.precision))

        def save(state: TrainState, position: Position, metrics: dict[str, float]) -> None:
            signals.saved()
            if keeps_checkpoints:
                with goodput.during("checkpoint"):
                    meta = checkpoint_meta(config, dataset.class_names, plan, data_facts, position)
                    checkpoints.save(state, meta | {"goodput": goodput.totals()}, metrics)
                watchdog.progress()

        def obey(request: Request, state: TrainState, position: Position) -> None:
            if request.save or request.stop:
                save(state, position, {})
            if request.stop:
                with goodput.during("checkpoint"):
                    checkpoints.wait()
                report.end(step, position.epoch, goodput.totals(), finished=False)
                raise interruption(request.stop, step, saved=keeps_checkpoints)

        def validation_batches(state: TrainState, position: Position) -> Iterator[Batch]:
            found = eval_batches(
                dataset.val,
                config.data,
                mesh,
                device_batch=config.batch_size,
                num_classes=len(dataset.class_names),
                seed=config.seed,
                epoch=position.epoch,
                bad_images=bad_images,
            )
            for number, batch in enumerate(watchdog.watch(islice(found, config.run.prof or None)), 1):
                report.validating(number)
                obey(signals.poll(together=number % config.log.print_every == 0), state, position)
                yield batch

        for epoch in range(position.epoch, config.epochs):
            end = (epoch + 1) * plan.steps_per_epoch
            goodput.switch("train")
            if config.data.train_size(epoch) != config.data.train_size(epoch - 1):
                meters.compiled = False  # images of another size are another program
            meters.restart()
            while step < end:
                with meters.waiting(), goodput.during("data"):
                    batch, pipelines = next(batches)
                with goodput.during("train" if meters.compiled else "compile"):
                    if not meters.compiled and (memory := analyse_memory(train_step, state, batch)):
                        report.line(f"{'memory':<10} {memory_text(memory)}")
                    state, metrics = train_step(state, batch)
                    # Metrics stay on the device, and two steps stay queued: looking at each would stop it every time.
                    meters.add(metrics)
                step += 1
                # The batch says how far its pipeline has read; others may be ready already, and must come again.
                position = Position(epoch, step - epoch * plan.steps_per_epoch, pipelines)
                watchdog.progress()
                report.advance(step)
                reported = step % config.log.print_every == 0 or step == end
                if reported:
                    summary = meters.summary()
                    report.train(step, epoch, summary)
                    skipped = [step + offset for offset in meters.skipped]
                    if skipped and processes.is_first():
                        files = {n + 1: files_of_step(dataset.train, plan, n, seed=config.seed) for n in skipped}
                        note_skipped_steps(workdir, files, scaling)
                    stop_if_diverging(workdir, step, summary, limit=config.run.max_skipped_steps, scaling=scaling)
                # Processes agree on what was asked for, by a message: seldom, and where all of them are.
                obey(signals.poll(together=reported), state, position)

            results: dict[str, float] = {}
            report.validating(0)
            with goodput.during("validation"):
                if mesh.devices.size > 1:  # all have the same state, or one of them computes wrongly
                    stop_if_devices_differ(find_divergence(state), step)
                if not config.run.training_only:
                    results = evaluate(eval_step, variables_of(state), validation_batches(state, position))
            report.epoch(step, epoch, results)
            position = Position(epoch + 1, 0)
            reached = 0 < config.run.target_top1 <= score(results)
            gathered = config.checkpoint.gather and is_gathered(epoch + 1)
            last = reached or epoch + 1 == config.epochs
            if last or gathered or (epoch + 1) % config.checkpoint.every_epochs == 0:
                save(state, position, results)
            if reached:
                report.line(f"epoch {epoch + 1} reached the {config.run.target_top1:g} % top-1 of run.target_top1")
                break
        with goodput.during("checkpoint"):
            checkpoints.wait()
        report.end(step, position.epoch - 1, goodput.totals(), finished=True)
        bad_images.warn_at_end()
    if processes.is_first():
        tell_where(workdir, workdir / METRICS)


if __name__ == "__main__":
    cli.run(main)
