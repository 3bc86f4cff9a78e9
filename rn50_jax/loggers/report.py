"""What a run tells: on the console, in `metrics.jsonl` and to the loggers that the config asks for."""

import importlib.util
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax.checkpoint.folder import CheckpointFolder
from rn50_jax.checkpoint.integrity import best_validation, better_weights
from rn50_jax.checkpoint.step_folders import find_steps
from rn50_jax.config.derived import Plan
from rn50_jax.data.formats.class_folders import Dataset, count_suffixes, suffixes_text
from rn50_jax.errors import UserError
from rn50_jax.io.messages import say, warn
from rn50_jax.io.text import counted, decimal, shell
from rn50_jax.loggers.base import MetricsFile, Mlflow, TensorBoard, WeightsAndBiases
from rn50_jax.loggers.console import Screen, clock, print_rows, time_of_day, top5_text, train_line, validation_parts
from rn50_jax.loggers.dllogger import dle_parameters, open_dle
from rn50_jax.loggers.goodput import goodput_text
from rn50_jax.loggers.history import read_history, set_aside_unreadable
from rn50_jax.loggers.records import Background, Guarded, Logger, Persistent, Record
from rn50_jax.models.resnet import ResNet
from rn50_jax.runtime.run_folder import describe_devices, write_run_files
from rn50_jax.training.build import build_schedule
from rn50_jax.training.memory import peak_text
from rn50_jax.training.state import TrainState

CURVES = "curves.png"


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


def _saved_text(folder: Path, validations: Sequence[dict[str, Any]]) -> str:
    """Names the checkpoints by step and marks the best; says where it is not the best validation; "" without any."""
    steps = find_steps(folder)
    if not steps:
        return ""
    found = CheckpointFolder(folder).readable()
    best = found.best()
    names = ", ".join(f"{step} (best)" if step == best else str(step) for step in steps)
    text = f"{folder} (of {'step' if len(steps) == 1 else 'steps'} {names})"
    if best is not None and validations:
        epoch, wanted = found.metas[best]["epoch"], best_validation(validations)["epoch"]
        if epoch != wanted:
            text += f"; epoch {wanted}, which validated best, is not among them: the best of these is of epoch {epoch}"
    return text


def tell_where(config: ConfigDict, workdir: Path) -> None:
    """Draws the curves of a finished run, and says where everything lies."""
    curves = workdir / CURVES
    rows = {"metrics": str(workdir / config.report.file), "curves": str(curves)}
    try:
        from rn50_jax.analysis.curves import draw_run  # takes a second to import

        draw_run(workdir / config.report.file, curves)
    except ModuleNotFoundError as error:
        warn(f"{curves} is not drawn, as {error.name} is not installed: pip install matplotlib")
        del rows["curves"]
    except (OSError, UserError) as error:
        warn(f"{curves} cannot be written: {getattr(error, 'strerror', None) or error}")
    if saved := _saved_text(workdir / "checkpoints", read_history(workdir / config.report.file).validations()):
        rows = {"saved": saved} | rows
    page = shell(["python", "-m", "rn50_jax.plot", workdir, "--html", workdir / "report.html"])
    print_rows(rows)
    say(f"{'report':<10} {page}")
    say("done")
