"""NVIDIA's report: the `DLLL {...}` lines that DeepLearningExamples writes through dllogger, for existing parsers."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ml_collections import ConfigDict
from typing_extensions import TypedDict

from rn50_jax.config.schema import is_own_name
from rn50_jax.errors import UserError
from rn50_jax.io.files import open_regular
from rn50_jax.io.json_files import parse_json, to_json
from rn50_jax.io.lines import LineFile
from rn50_jax.io.text import counted
from rn50_jax.loggers.records import Record

Metrics = Mapping[str, float]

_LOSS = {"format": ":.5f"}
_SPEED = {"unit": "img/s", "format": ":.2f"}
_TIME = {"unit": "s", "format": ":.5f"}
_ACCURACY = {"unit": "%", "format": ":.2f"}
# Names and units are the reference's; `train.lr` is what its later versions call `lr`, and `val.compute_time` what its
# README calls `val.compute_latency`.
METRICS: dict[str, dict[str, str]] = {
    "train.loss": _LOSS,
    "train.compute_ips": _SPEED,
    "train.total_ips": _SPEED,
    "train.data_time": _TIME,
    "train.compute_time": _TIME,
    "lr": {"format": ":.5f"},
    "train.lr": {"format": ":.5f"},
    "train.grad_scale": {},
    "val.top1": _ACCURACY,
    "val.top5": _ACCURACY,
    "val.loss": _LOSS,
    "val.compute_ips": _SPEED,
    "val.total_ips": _SPEED,
    "val.data_time": _TIME,
    "val.compute_time": _TIME,
    "val.compute_latency": _TIME,
    "val.compute_latency_at100": _TIME,
    "val.compute_latency_at99": _TIME,
    "val.compute_latency_at95": _TIME,
    "val.compute_latency_at90": _TIME,
}
_START = b"DLLL "
_TIMED = tuple(name for name in METRICS if name.startswith("train.") and name.endswith(("_ips", "_time")))
_LAST = ("lr", "train.lr", "train.grad_scale")  # where the last value counts, not the mean


def dle_parameters(
    config: ConfigDict, workdir: Path, *, lr: float, num_devices: int, accumulation: int = 1
) -> dict[str, Any]:
    """Returns the run's settings under the names of the reference's command-line options.

    `iteration` is ours: there an iteration is a forward pass, here an update, of `accumulation` passes.
    """
    recipe, run = config.recipe, config.run
    return {
        "data": config.data.dir,
        "data_backend": config.data.backend,
        "arch": config.model.arch,
        "model_config": config.model.init,
        "workers": config.data.workers,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "optimizer_batch_size": recipe.optimizer_batch_size or -1,
        "lr": lr,
        "lr_schedule": recipe.schedule,
        "warmup": recipe.warmup_epochs,
        "label_smoothing": recipe.label_smoothing,
        "mixup": recipe.mixup,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "bn_weight_decay": recipe.decay_mask == "all",
        "nesterov": recipe.nesterov,
        "print_freq": config.report.print_every,
        "resume": config.run.resume,
        "pretrained_weights": config.model.pretrained_weights,
        "amp": config.precision in ("bf16", "fp16"),
        "static_loss_scale": config.loss_scale.init if config.precision == "fp16" else 1,
        "dynamic_loss_scale": config.precision == "fp16" and config.loss_scale.mode == "dynamic",
        "fp16": False,
        "prof": run.prof or -1,
        "seed": config.seed,
        "gather_checkpoints": config.checkpoint.gather,
        "raport_file": config.report.dle_json,
        "evaluate": run.evaluate,
        "training_only": run.training_only,
        "save_checkpoints": run.save_checkpoints,
        "workspace": str(workdir),
        "world_size": num_devices,
        "iteration": f"one update of {counted(accumulation, 'forward pass')} on each device",
    }


class _Logged(TypedDict):
    """A line about a window, an epoch or the run."""

    step: list[int]
    data: dict[str, float | None]


class _Parameters(TypedDict):
    step: Literal["PARAMETER"]
    data: dict[str, Any]


class DleLog:
    """One run's file of `DLLL` lines; a resumed run appends, starting with its parameters.

    Steps are the reference's: `[epoch, iteration]` (from 0 and from 1) for a window of training, `[epoch]` for a
    whole epoch and its validation, `[]` for the run. An iteration is an update. `val.loss` is what the reference
    validates with: the smoothed loss, unless the run has no label smoothing or trains with mixup.

    Raises:
      UserError: the file cannot be written, or holds something else.
    """

    def __init__(self, path: Path, parameters: Mapping[str, Any], *, steps_per_epoch: int) -> None:
        self._path, self._steps_per_epoch = path, steps_per_epoch
        self._smoothed, self._evaluates = parameters["mixup"] == 0, bool(parameters.get("evaluate"))
        self._started = time.time()
        self._windows: list[tuple[int, Metrics]] = []
        try:
            if path.exists() and not _is_ours(path):
                raise UserError(f"config.report.dle_json: {path} holds something else; choose another file")
            self._file = LineFile(path, links=True)
        except OSError as error:
            raise UserError(f"config.report.dle_json: cannot write {path}: {error.strerror}") from error
        self._log("PARAMETER", parameters)
        for name, metadata in METRICS.items():
            self._write(type="METADATA", metric=name, metadata=metadata)

    def write(self, record: Record) -> None:
        """Reports what `Record` tells."""
        if record.kind == "train":
            self.train(record.step, record.epoch, record.steps, record.metrics)
        elif record.kind == "epoch":
            self.epoch(record.epoch, record.metrics)
        elif record.finished:
            self.summary()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def train(self, step: int, epoch: int, steps: int, metrics: Metrics) -> None:
        """Reports a window of `steps` updates that ended with update `step` of the run, in `epoch` (from 0)."""
        named = self._named(metrics)
        if not named.get("train.total_ips", 1):  # its only step compiled, and has no time
            named = {name: value for name, value in named.items() if name not in _TIMED}
        self._log([epoch, step - epoch * self._steps_per_epoch], named)
        self._windows.append((steps, named))  # once, should the line have to be written again

    def epoch(self, epoch: int, metrics: Metrics) -> None:
        """Reports `epoch` (from 0): means of its windows, and the metrics of its validation, if there was one."""
        means: dict[str, float] = {}
        for name in self._windows[-1][1] if self._windows else ():
            told = [(steps, window[name]) for steps, window in self._windows if name in window]
            weights, values = zip(*told, strict=True)
            means[name] = values[-1] if name in _LAST else float(np.average(values, weights=weights))
        self._log([epoch], means | self._named(metrics))
        self._windows = []

    def summary(self) -> None:
        """Reports the run, as its file tells it: best accuracy, smallest loss, last rate, mean of everything else.

        Of latencies that is the mean of the epochs' quantiles, and the largest of all. A validation by itself
        (`evaluate`) reports what it has found alone, and counts for no training.

        The reference means the smallest loss too, but reports the largest.
        """
        with open_regular(self._path) as file:
            lines = [line.removeprefix(_START) for line in file.read().split(b"\n") if line.startswith(_START)]
        epochs: dict[int, dict[str, float | None]] = {}
        counts = True
        for line in lines:
            with suppress(ValueError):
                evaluates = bool(parse_json(line, _Parameters)["data"].get("evaluate"))
                counts = evaluates == self._evaluates
                if evaluates and counts:
                    epochs.clear()
            with suppress(ValueError):  # a parameter's or unit's, or what others have written
                found = parse_json(line, _Logged)
                if counts and len(found["step"]) == 1:
                    epochs[found["step"][0]] = found["data"]  # an epoch that was repeated after a kill counts once
        result: dict[str, float] = {}
        for name in METRICS:
            values = [value for epoch in sorted(epochs) if (value := epochs[epoch].get(name)) is not None]
            if values:
                result[name] = _over_the_run(name, values)
        self._log([], result)

    def _named(self, metrics: Metrics) -> dict[str, float]:
        found = dict(metrics)
        if "lr" in found:
            found["train.lr"] = found["lr"]
        if "val.compute_latency" in found:
            found["val.compute_time"] = found["val.compute_latency"]
        if "train.loss_scale" in found:
            found["train.grad_scale"] = found["train.loss_scale"]
        if self._smoothed and "val.loss_smoothed" in found:
            found["val.loss"] = found["val.loss_smoothed"]
        return {name: found[name] for name in METRICS if name in found}

    def _log(self, step: str | Sequence[int], data: Mapping[str, Any]) -> None:
        self._write(type="LOG", step=step, data=data)

    def _write(self, **content: Any) -> None:
        now = time.time()
        times = {
            "timestamp": str(now),
            "datetime": str(datetime.fromtimestamp(now)),
            "elapsedtime": str(now - self._started),
        }
        self._file.write(f"DLLL {to_json(times | content)}")


def open_dle(config: ConfigDict, workdir: Path, parameters: Mapping[str, Any], *, steps_per_epoch: int) -> DleLog:
    """Opens the file that `report.dle_json` names, relative to the work folder.

    Raises:
      UserError: it is a file of the run's own, cannot be written, or holds something else.
    """
    report, path = config.report, workdir / config.report.dle_json
    inside = os.path.relpath(os.path.realpath(path), os.path.realpath(workdir))
    if inside == report.file or is_own_name(inside):
        raise UserError(f"config.report.dle_json={report.dle_json} is a file of the run's own; choose another")
    return DleLog(path, parameters, steps_per_epoch=steps_per_epoch)


def _is_ours(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(len(_START)) in (b"", _START)


def _over_the_run(name: str, values: Sequence[float]) -> float:
    if name.endswith("loss"):
        return min(values)
    if name.startswith("val.top") or name.endswith("_at100"):
        return max(values)
    return values[-1] if name in _LAST else float(np.mean(values))
