"""What a run tells: console lines, a live progress bar and `metrics.jsonl`."""

import json
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from rn50_jax.data.folder import Dataset
from rn50_jax.dle import DleLog, dle_parameters, drop_half_a_line
from rn50_jax.errors import warn
from rn50_jax.goodput import goodput_text
from rn50_jax.models.resnet import ResNet
from rn50_jax.plan import Plan
from rn50_jax.state import TrainState
from rn50_jax.workdir import describe_devices, write_run_files


class Window:
    """Metrics and times of the training steps since the last report, kept on the device until `summary`.

    The first step of a process, which compiles, counts in the metrics but not in the times.

    compiled: whether the first step is behind. left_out: of the last window reported, the steps without finite
    gradients, counted back from its end (-1: the last).
    """

    left_out: list[int]

    def __init__(self, global_batch: int, *, loss_scaling: bool) -> None:
        self._global_batch, self._loss_scaling = global_batch, loss_scaling
        self.compiled = False
        self.left_out = []
        self.restart()

    def restart(self) -> None:
        """Forgets the past: the clock starts now."""
        self._pending: list[dict[str, jax.Array]] = []
        self._timed = 0
        self._waited = 0.0
        self._start = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time spent inside as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Takes a step's metrics, which may still be being computed."""
        self._pending.append(metrics)
        self._timed += 1
        if not self.compiled:
            jax.block_until_ready(metrics)
            self.compiled, self._timed, self._waited = True, 0, 0.0
            self._start = time.perf_counter()
        elif len(self._pending) > 2:
            # Two steps stay queued: the device never idles, and batches cannot pile up in its memory.
            jax.block_until_ready(self._pending[-3])

    def summary(self) -> dict[str, float]:
        """Waits for the last step, averages, and starts the next window.

        Returns:
          train.loss, of the steps that were not left out; train.top1 in per cent; the last lr; with float16
          train.loss_scale; train.skipped_steps of the run so far and train.skipped_in_a_row, the longest row of the
          window; train.data_time and train.compute_time in seconds per step; train.total_ips and train.compute_ips in
          images per second, with and without waiting for data.
        """
        steps = jax.device_get(self._pending)
        seconds = time.perf_counter() - self._start
        timed = max(self._timed, 1)
        data_time = self._waited / timed
        compute_time = max(seconds - self._waited, 1e-9) / timed
        losses = [s["loss"] for s in steps]
        self.left_out = [i - len(steps) for i, s in enumerate(steps) if s["skipped_in_a_row"]]
        result = {
            "train.loss": float(np.mean([x for x in losses if np.isfinite(x)] or losses)),
            "train.top1": 100 * float(np.mean([s["top1"] for s in steps])),
            "lr": float(steps[-1]["lr"]),
            "train.total_ips": self._global_batch / (data_time + compute_time) if self._timed else 0.0,
            "train.compute_ips": self._global_batch / compute_time if self._timed else 0.0,
            "train.data_time": data_time,
            "train.compute_time": compute_time,
        }
        result["train.skipped_steps"] = int(steps[-1]["skipped_steps"])
        result["train.skipped_in_a_row"] = int(max(s["skipped_in_a_row"] for s in steps))
        if self._loss_scaling:
            result["train.loss_scale"] = float(steps[-1]["loss_scale"])
        self.restart()
        return result


class Report:
    """The console and the metrics file of one training run; use it in a `with`.

    The metrics file gets one JSON object a line: `time` (Unix seconds), `step`, `epoch` (from 1), and metrics.
    It is appended to when a run resumes; a metric that is not finite is null. Without a file nothing is written.
    `dle` gets the same in NVIDIA's format, and is closed with the report.
    """

    def __init__(
        self, metrics_file: Path | None, plan: Plan, epochs: int, first_step: int, dle: DleLog | None = None
    ) -> None:
        self._plan, self._epochs = plan, epochs
        self._reported = first_step
        self._console = Console(highlight=False, soft_wrap=True)
        self._stack = ExitStack()
        self._dle = self._stack.enter_context(dle) if dle else None
        self._file = None
        if metrics_file:
            drop_half_a_line(metrics_file)
            self._file = self._stack.enter_context(metrics_file.open("a", encoding="utf-8"))
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("steps", total=plan.total_steps, completed=first_step, status="compiling")
        self._validation_seconds = 0.0
        self._speeds: deque[float] = deque(maxlen=20)

    def __enter__(self) -> "Report":
        self._stack.enter_context(self._progress)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def line(self, text: str) -> None:
        """Prints a line above the progress bar."""
        self._console.print(text, markup=False)

    def advance(self, step: int) -> None:
        """Moves the progress bar; costs no look at the device."""
        self._progress.update(self._task, completed=step)

    def train(self, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Reports a window of training steps that ended with `step` of `epoch` (from 0)."""
        self._write(step, epoch, metrics)
        if self._dle:
            self._dle.train(step, epoch, step - self._reported, metrics)
        self._reported = step
        seconds = metrics["train.data_time"] + metrics["train.compute_time"]
        if metrics["train.total_ips"] > 0:
            self._speeds.append(seconds)
        left = (self._plan.total_steps - step) * float(np.median(self._speeds or [0.0]))
        left += (self._epochs - epoch) * self._validation_seconds
        waiting = metrics["train.data_time"] / seconds if seconds else 0.0
        self._progress.update(self._task, description=f"epoch {epoch + 1}/{self._epochs}", status=f"ETA {_clock(left)}")
        self.line(
            f"epoch {epoch + 1:>3}/{self._epochs}  step {step:>6}/{self._plan.total_steps}  "
            f"loss {metrics['train.loss']:7.4f}  top-1 {metrics['train.top1']:6.2f}  lr {metrics['lr']:.5f}  "
            f"{metrics['train.total_ips']:8.1f} img/s  data {waiting:4.0%}  ETA {_clock(left)}"
        )

    def epoch(self, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Reports the end of `epoch` (from 0) after `step`, with the metrics of its validation, if there was one."""
        if self._dle:
            self._dle.epoch(epoch, metrics)
        if metrics:
            self._write(step, epoch, metrics)
            self._validation_seconds = metrics["val.images"] / metrics["val.total_ips"]
            for prefix in ("val", "val_ema"):
                if f"{prefix}.top1" in metrics:
                    self.line(f"epoch {epoch + 1:>3}/{self._epochs}  {validation_text(metrics, prefix)}")

    def end(self, step: int, epoch: int, goodput: dict[str, float], *, finished: bool) -> None:
        """Reports the end of the run, or of this process's part of it, and where the time went."""
        self._write(step, epoch, {f"goodput.{phase}": round(seconds, 3) for phase, seconds in goodput.items()})
        self.line(goodput_text(goodput))
        if self._dle and finished:
            self._dle.summary()

    def _write(self, step: int, epoch: int, metrics: dict[str, float]) -> None:
        if not self._file:
            return
        line: dict[str, float | None] = {"time": round(time.time(), 3), "step": step, "epoch": epoch + 1}
        line |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:  # a full disk must not end the training
            warn(
                f"{self._file.name} cannot be written ({error.strerror}); metrics from here on are on the console alone"
            )
            self._file = None


def open_report(
    config: ConfigDict, workdir: Path, mesh: Mesh, plan: Plan, first_step: int, argv: Sequence[str]
) -> Report:
    """Writes the files that describe the run and opens its report; only the first of several processes has files."""
    if jax.process_index() > 0:
        return Report(None, plan, config.epochs, first_step)
    write_run_files(workdir, config, list(mesh.devices.flat), argv)
    dle = None
    if config.report.dle_json:
        parameters = dle_parameters(config, plan, workdir)
        dle = DleLog(workdir / config.report.dle_json, parameters, steps_per_epoch=plan.steps_per_epoch)
    return Report(workdir / config.report.file, plan, config.epochs, first_step, dle)


def print_summary(
    config: ConfigDict, workdir: Path, mesh: Mesh, dataset: Dataset, plan: Plan, model: ResNet, state: TrainState
) -> None:
    """Says what the run will do."""
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


def validation_text(metrics: dict[str, float], prefix: str = "val") -> str:
    """The numbers of a validation as one line, the same in training and offline evaluation."""
    what = "validation" if prefix == "val" else "averaged  "
    top1, top5, loss = (metrics[f"{prefix}.{name}"] for name in ("top1", "top5", "loss"))
    return (
        f"{what}  top-1 {top1:.3f} %  top-5 {top5:.3f} %  loss {loss:.5f}  "
        f"{metrics['val.images']:.0f} images  {metrics['val.total_ips']:.1f} img/s"
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
