"""A run's summary at its start, and its report."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rn50_jax.config.derived import Plan
from rn50_jax.config.file_names import METRICS
from rn50_jax.config.schema import Config
from rn50_jax.data.formats.class_folders import count_suffixes, suffixes_text
from rn50_jax.data.image_set import Dataset
from rn50_jax.io.text import counted
from rn50_jax.loggers.available import logs_text, open_loggers
from rn50_jax.loggers.base import RunFacts
from rn50_jax.loggers.console import Console, print_rows
from rn50_jax.loggers.history import read_history
from rn50_jax.loggers.report import Report
from rn50_jax.models.network import Network
from rn50_jax.runtime.run_folder import describe_devices, write_run_files
from rn50_jax.training.build import build_schedule
from rn50_jax.training.state import TrainState


def open_report(
    config: Config, workdir: Path, mesh: Mesh, plan: Plan, dataset: Dataset, first_step: int, argv: Sequence[str]
) -> Report:
    """Writes the files that describe the run and opens its report; only the first of several processes has files.

    Raises:
      UserError: a file that the config names cannot be written, or holds something else.
    """
    eval_batches = -(-len(dataset.val.labels) // (config.batch_size * plan.num_devices))
    eval_batches = min(eval_batches, config.run.prof or eval_batches)
    loggers, earlier = [], []
    if jax.process_index() == 0:
        write_run_files(workdir, config, list(mesh.devices.flat), argv)
        run = RunFacts(
            workdir=workdir,
            config=config,
            num_devices=plan.num_devices,
            peak_lr=plan.peak_lr,
            accumulation=plan.accumulation,
            steps_per_epoch=plan.steps_per_epoch,
            first_step=first_step,
        )
        loggers = open_loggers(run)
        earlier = read_history(workdir / METRICS).validations() if first_step else []
    classes = len(dataset.class_names)
    console = Console(plan, config.epochs, first_step, eval_batches=eval_batches, validations=earlier, classes=classes)
    return Report(console, loggers, plan.steps_per_epoch, first_step)


def print_summary(
    config: Config, workdir: Path, mesh: Mesh, dataset: Dataset, plan: Plan, model: Network, state: TrainState
) -> None:
    """Prints what the run will do."""
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    size = config.data.image_size
    source = config.data.backend if config.data.backend == "synthetic" else f"{config.data.dir} ({config.data.backend})"
    scaling = f", {config.loss_scale.mode} loss scale {config.loss_scale.init:g}" if config.precision == "fp16" else ""
    share = f" ({config.data.val_share:.3g} of each class)" if config.data.val_share else ""
    print_rows(
        {
            "run": f"{workdir}, seed {config.seed}",
            "devices": f"{describe_devices(list(mesh.devices.flat))}, {config.compute.parallel}",
            "data": f"{source}: {len(dataset.train.labels):,} training and "
            f"{counted(len(dataset.val.labels), 'validation image')}{share}, "
            f"{counted(len(dataset.class_names), 'class')}{_not_read(dataset)}",
            "model": f"{config.model.arch}, {parameters:,} parameters, {size} px",
            "precision": f"{config.precision}{scaling}{_impl(config)}",
            "batch": f"{config.batch_size} per device x {counted(plan.num_devices, 'device')} x "
            f"{counted(plan.accumulation, 'pass')} = {plan.global_batch} per update",
            "schedule": f"{counted(config.epochs, 'epoch')} x {counted(plan.steps_per_epoch, 'step')} = "
            f"{counted(plan.total_steps, 'step')}, {counted(config.recipe.warmup_epochs, 'epoch')} of warm-up, "
            f"peak learning rate {plan.peak_lr:g}"
            f"{_unreached(config, plan)}",
            "logs": logs_text(config.log),
        }
    )


def _impl(config: Config) -> str:
    """Says what computes the layers, unless it is the fast path."""
    return "" if config.compute.impl == "xla" else f", compute.impl={config.compute.impl}"


def _not_read(dataset: Dataset) -> str:
    # Both splits of an unsplit folder name the same ones.
    counts = count_suffixes(dict.fromkeys(dataset.train.not_read + dataset.val.not_read))
    return f"; not read: {suffixes_text(counts)}" if counts else ""


def _unreached(config: Config, plan: Plan) -> str:
    """Says where a run that is shorter than its warm-up ends; nothing of others."""
    if config.epochs >= config.recipe.warmup_epochs:
        return ""
    last = float(build_schedule(config, plan)(jnp.asarray(plan.total_steps - 1)))
    return f", not reached: the run ends within the warm-up, at {last:g}"
