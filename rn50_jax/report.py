"""What a run tells: console lines, a live progress bar, `metrics.jsonl` and the files that describe the run."""

import importlib.metadata
import json
import platform
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from rn50_jax import __version__
from rn50_jax.config import to_json
from rn50_jax.dle import DleLog, drop_half_a_line
from rn50_jax.errors import UserError
from rn50_jax.plan import Plan

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-collections", "numpy")
_DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


def versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    found = {"rn50_jax": __version__, "python": platform.python_version()}
    for package in (*_PACKAGES, *_DALI):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_devices(devices: Sequence[jax.Device]) -> str:
    """For example "8 x NVIDIA H100 80GB HBM3"."""
    return f"{len(devices)} x {devices[0].device_kind}"


def make_workdir(workdir: Path) -> None:
    """Creates the work folder.

    Raises:
      UserError: it cannot be created or written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        reason = "it is a file" if workdir.is_file() else error.strerror
        raise UserError(f"cannot write to the work folder {workdir}: {reason}; choose another --workdir") from error


def write_run_files(workdir: Path, config: ConfigDict, devices: Sequence[jax.Device], argv: Sequence[str]) -> None:
    """Writes `config.json` (resolved) and `run.json` (command, start, devices, versions) to the work folder."""
    facts = {
        "command": ["python", "-m", "rn50_jax.train", *argv],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "devices": describe_devices(devices),
        "versions": versions(),
    }
    (workdir / "config.json").write_text(to_json(config), encoding="utf-8")
    (workdir / "run.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Writes a command's result.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


class Window:
    """Metrics and times of the training steps since the last report, kept on the device until `summary`.

    The first step of a process, which compiles, counts in the metrics but not in the times.
    """

    def __init__(self, global_batch: int) -> None:
        self._global_batch = global_batch
        self._compiled = False
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
        if not self._compiled:
            jax.block_until_ready(metrics)
            self._compiled, self._timed, self._waited = True, 0, 0.0
            self._start = time.perf_counter()
        elif len(self._pending) > 2:
            # Two steps stay queued: the device never idles, and batches cannot pile up in its memory.
            jax.block_until_ready(self._pending[-3])

    def summary(self) -> dict[str, float]:
        """Waits for the last step, averages, and starts the next window.

        Returns:
          train.loss; train.top1 in per cent; the last lr (and train.loss_scale, train.skipped_steps with float16);
          train.data_time and train.compute_time in seconds per step; train.total_ips and train.compute_ips in images
          per second, with and without waiting for data.
        """
        steps = jax.device_get(self._pending)
        seconds = time.perf_counter() - self._start
        timed = max(self._timed, 1)
        data_time = self._waited / timed
        compute_time = max(seconds - self._waited, 1e-9) / timed
        result = {
            "train.loss": float(np.mean([s["loss"] for s in steps])),
            "train.top1": 100 * float(np.mean([s["top1"] for s in steps])),
            "lr": float(steps[-1]["lr"]),
            "train.total_ips": self._global_batch / (data_time + compute_time) if self._timed else 0.0,
            "train.compute_ips": self._global_batch / compute_time if self._timed else 0.0,
            "train.data_time": data_time,
            "train.compute_time": compute_time,
        }
        for name in ("loss_scale", "skipped_steps"):
            if name in steps[-1]:
                result[f"train.{name}"] = float(steps[-1][name])
        self.restart()
        return result


class Report:
    """The console and the metrics file of one training run; use it in a `with`.

    The metrics file gets one JSON object a line: `time` (Unix seconds), `step`, `epoch` (from 1), and metrics.
    It is appended to when a run resumes. `dle` gets the same in NVIDIA's format, and is closed with the report.
    """

    def __init__(self, metrics_file: Path, plan: Plan, epochs: int, first_step: int, dle: DleLog | None = None) -> None:
        self._plan, self._epochs = plan, epochs
        self._reported = first_step
        self._console = Console(highlight=False, soft_wrap=True)
        self._stack = ExitStack()
        drop_half_a_line(metrics_file)
        self._dle = self._stack.enter_context(dle) if dle else None
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
            self.line(f"epoch {epoch + 1:>3}/{self._epochs}  {validation_text(metrics)}")

    def end(self) -> None:
        """Reports the end of the run."""
        if self._dle:
            self._dle.summary()

    def _write(self, step: int, epoch: int, metrics: dict[str, float]) -> None:
        line = {"time": round(time.time(), 3), "step": step, "epoch": epoch + 1} | metrics
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def validation_text(metrics: dict[str, float]) -> str:
    """The numbers of a validation as one line, the same in training and offline evaluation."""
    return (
        f"validation  top-1 {metrics['val.top1']:.3f} %  top-5 {metrics['val.top5']:.3f} %  "
        f"loss {metrics['val.loss']:.5f}  {metrics['val.images']:.0f} images  {metrics['val.total_ips']:.1f} img/s"
    )


def warn(text: str) -> None:
    """Prints what the user should know but need not mend."""
    print(f"note: {text}", file=sys.stderr)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
