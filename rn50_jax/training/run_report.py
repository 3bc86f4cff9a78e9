"""What a run tells of itself, opened at its start."""

import importlib.util
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax.config.derived import Plan
from rn50_jax.data.formats.class_folders import count_suffixes, suffixes_text
from rn50_jax.data.image_set import Dataset
from rn50_jax.errors import UserError
from rn50_jax.io.messages import warn
from rn50_jax.io.text import counted
from rn50_jax.loggers.base import MetricsFile, Mlflow, TensorBoard, WeightsAndBiases
from rn50_jax.loggers.console import print_rows
from rn50_jax.loggers.dllogger import dle_parameters, open_dle
from rn50_jax.loggers.history import read_history, set_aside_unreadable
from rn50_jax.loggers.records import Background, Guarded, Logger, Persistent
from rn50_jax.loggers.report import Report
from rn50_jax.models.resnet import ResNet
from rn50_jax.runtime.run_folder import describe_devices, write_run_files
from rn50_jax.training.build import build_schedule
from rn50_jax.training.state import TrainState


def open_report(
    config: ConfigDict, workdir: Path, mesh: Mesh, plan: Plan, dataset: Dataset, first_step: int, argv: Sequence[str]
) -> Report:
    """Writes the files that describe the run and opens its report; only the first of several processes has files.

    Raises:
      UserError: a file that the config names cannot be written, or holds something else.
    """
    eval_batches = -(-len(dataset.val.labels) // (config.batch_size * plan.num_devices))
    eval_batches = min(eval_batches, config.run.prof or eval_batches)
    if jax.process_index() > 0:
        return Report([], plan, config.epochs, first_step, classes=len(dataset.class_names))
    devices = list(mesh.devices.flat)
    write_run_files(workdir, config, devices, argv)
    report, file = config.report, workdir / config.report.file
    loggers: list[Logger] = []
    with ExitStack() as opened:  # one that cannot be opened leaves none of the others open

        def add(name: str, logger: Logger) -> None:
            opened.callback(logger.close)
            loggers.append(Guarded(name, logger if isinstance(logger, Background) else Persistent(name, logger)))

        add(str(file), _open_metrics(file))
        if report.tensorboard and importlib.util.find_spec("tensorboard") is None:
            warn("no log for TensorBoard is written, as it is not installed: pip install tensorboard")
        elif report.tensorboard:
            add("the TensorBoard log", _open_tensorboard(workdir, config, first_step))
        if report.dle_json:
            passes = {"num_devices": plan.num_devices, "accumulation": plan.accumulation}
            parameters = dle_parameters(config, workdir, lr=plan.peak_lr, **passes)
            log = open_dle(config, workdir, parameters, steps_per_epoch=plan.steps_per_epoch)
            add(str(workdir / report.dle_json), log)
        if report.wandb:
            add("wandb", Background("Weights & Biases", lambda: WeightsAndBiases(workdir, config)))
        if report.mlflow:
            add("mlflow", Background("MLflow", lambda: Mlflow(workdir, config)))
        opened.pop_all()
    earlier = read_history(file).validations() if first_step else []
    return Report(loggers, plan, config.epochs, first_step, eval_batches, earlier, classes=len(dataset.class_names))


def _open_metrics(file: Path) -> Logger:
    try:
        set_aside_unreadable(file)
        return MetricsFile(file)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; mend that, or choose another report.file") from error


def _open_tensorboard(workdir: Path, config: ConfigDict, first_step: int) -> Logger:
    try:
        return TensorBoard(workdir / "tensorboard", config, first_step)
    except OSError as error:
        raise UserError(f"cannot write to {workdir / 'tensorboard'}: {error.strerror}") from error


def print_summary(
    config: ConfigDict, workdir: Path, mesh: Mesh, dataset: Dataset, plan: Plan, model: ResNet, state: TrainState
) -> None:
    """Says what the run will do."""
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    size = config.data.image_size
    source = config.data.backend if config.data.backend == "synthetic" else f"{config.data.dir} ({config.data.backend})"
    scaling = f", {config.loss_scale.mode} loss scale {config.loss_scale.init:g}" if config.precision == "fp16" else ""
    share = f" ({config.data.val_share:.3g} of each class)" if config.data.val_share else ""
    report = config.report
    logs = [report.file, "tensorboard/" if report.tensorboard else "", report.dle_json]
    logs += [f"{key} {report[key]}" for key in ("wandb", "mlflow") if report[key]]
    print_rows(
        {
            "run": f"{workdir}, seed {config.seed}",
            "devices": f"{describe_devices(list(mesh.devices.flat))}, {config.parallel}",
            "data": f"{source}: {len(dataset.train.labels):,} training and "
            f"{counted(len(dataset.val.labels), 'validation image')}{share}, "
            f"{counted(len(dataset.class_names), 'class')}{_not_read(dataset)}",
            "model": f"{config.model.arch}, {parameters:,} parameters, {size} px",
            "precision": f"{config.precision}{scaling}, {model.lowering} convolutions",
            "batch": f"{config.batch_size} per device x {counted(plan.num_devices, 'device')} x "
            f"{counted(plan.accumulation, 'pass')} = {plan.global_batch} per update",
            "schedule": f"{counted(config.epochs, 'epoch')} x {counted(plan.steps_per_epoch, 'step')} = "
            f"{counted(plan.total_steps, 'step')}, {counted(config.recipe.warmup_epochs, 'epoch')} of warm-up, "
            f"peak learning rate {plan.peak_lr:g}"
            f"{_unreached(config, plan)}",
            "logs": ", ".join(filter(None, logs)),
        }
    )


def _not_read(dataset: Dataset) -> str:
    # Both splits of an unsplit folder name the same ones.
    counts = count_suffixes(dict.fromkeys(dataset.train.not_read + dataset.val.not_read))
    return f"; not read: {suffixes_text(counts)}" if counts else ""


def _unreached(config: ConfigDict, plan: Plan) -> str:
    """Says where a run that is shorter than its warm-up ends; nothing of others."""
    if config.epochs >= config.recipe.warmup_epochs:
        return ""
    last = float(build_schedule(config, plan)(jnp.asarray(plan.total_steps - 1)))
    return f", not reached: the run ends within the warm-up, at {last:g}"
