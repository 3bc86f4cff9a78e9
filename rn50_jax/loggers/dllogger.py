"""NVIDIA's report: the `DLLL {...}` lines that DeepLearningExamples writes through dllogger, for existing parsers."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import TypedDict

from rn50_jax.config.file_names import is_own_name
from rn50_jax.errors import UserError
from rn50_jax.io.files import open_regular
from rn50_jax.io.json_files import parse_json, to_json
from rn50_jax.io.lines import Appended
from rn50_jax.io.text import counted
from rn50_jax.loggers.base import Record, RunFacts

Metrics = Mapping[str, float]

_UNITS = {
    "loss": {"format": ":.5f"},
    "lr": {"format": ":.5f"},
    "grad_scale": {},
    "ips": {"unit": "img/s", "format": ":.2f"},
    "time": {"unit": "s", "format": ":.5f"},
    "latency": {"unit": "s", "format": ":.5f"},
    "top": {"unit": "%", "format": ":.2f"},
}
# Names and units are the reference's; `train.lr` is what its later versions call `lr`, and `val.compute_time` what its
# README calls `val.compute_latency`.
METRICS: dict[str, dict[str, str]] = {
    name: next(unit for part, unit in _UNITS.items() if part in name)
    for name in (
        *("train.loss", "train.compute_ips", "train.total_ips", "train.data_time", "train.compute_time"),
        *("lr", "train.lr", "train.grad_scale", "val.top1", "val.top5", "val.loss"),
        *("val.compute_ips", "val.total_ips", "val.data_time", "val.compute_time", "val.compute_latency"),
        *(f"val.compute_latency_at{percent}" for percent in (100, 99, 95, 90)),
    )
}
_OTHER_NAMES = {
    "train.lr": "lr",
    "val.compute_time": "val.compute_latency",
    "train.grad_scale": "train.loss_scale",
}
_START = b"DLLL "
_TIMED = tuple(name for name in METRICS if name.startswith("train.") and name.endswith(("_ips", "_time")))
_LAST = ("lr", "train.lr", "train.grad_scale")  # where the last value counts, not the mean


def dle_parameters(run: RunFacts) -> dict[str, Any]:
    """Returns the run's settings under the names of the reference's command-line options.

    `iteration` is ours: there an iteration is a forward pass, here an update, of `accumulation` passes.
    """
    config, recipe, fp16 = run.config, run.config.recipe, run.config.precision == "fp16"
    return {
        "data": config.data.dir,
        "data_backend": config.data.backend,
        "arch": config.model.arch,
        "model_config": config.model.init,
        "workers": config.data.workers,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "optimizer_batch_size": recipe.optimizer_batch_size or -1,
        "lr": run.peak_lr,
        "lr_schedule": recipe.schedule,
        "warmup": recipe.warmup_epochs,
        "label_smoothing": recipe.label_smoothing,
        "mixup": recipe.mixup,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "bn_weight_decay": recipe.decay_mask == "all",
        "nesterov": recipe.nesterov,
        "amp": config.precision in ("bf16", "fp16"),
        "static_loss_scale": config.loss_scale.init if fp16 else 1,
        "dynamic_loss_scale": fp16 and config.loss_scale.mode == "dynamic",
        "fp16": False,
        "print_freq": config.log.print_every,
        "raport_file": config.log.dle_json,
        "resume": config.run.resume,
        "pretrained_weights": config.model.pretrained_weights,
        "seed": config.seed,
        "gather_checkpoints": config.checkpoint.gather,
        "save_checkpoints": config.run.save_checkpoints,
        "evaluate": config.run.evaluate,
        "training_only": config.run.training_only,
        "prof": config.run.prof or -1,
        "workspace": str(run.workdir),
        "world_size": run.num_devices,
        "iteration": f"one update of {counted(run.accumulation, 'forward pass')} on each device",
    }


class _Logged(TypedDict):
    """A line about some steps, an epoch, the run or its parameters."""

    step: list[int] | Literal["PARAMETER"]
    data: dict[str, Any]


class DleLog:
    """One run's file of `DLLL` lines; a resumed run appends, starting with its parameters.

    Steps are the reference's: `[epoch, iteration]` (from 0 and from 1) for the last iterations, `[epoch]` for a whole
    epoch and its validation, `[]` for the run. An iteration is an update. `val.loss` is what the reference
    validates with: the smoothed loss, unless the run has no label smoothing or trains with mixup.

    Raises:
      UserError: the file cannot be written, or holds something else.
    """

    def __init__(self, path: Path, parameters: Mapping[str, Any], *, steps_per_epoch: int) -> None:
        self._path, self._steps_per_epoch = path, steps_per_epoch
        self._smoothed, self._evaluates = parameters["mixup"] == 0, bool(parameters.get("evaluate"))
        self._started = time.time()
        self._reports: list[tuple[int, Metrics]] = []
        try:
            if path.exists():
                with open_regular(path) as file:
                    if file.read(len(_START)) not in (b"", _START):
                        raise UserError(f"config.log.dle_json: {path} holds something else; choose another file")
            self._file = Appended(path, links=True, lines=True)
        except OSError as error:
            raise UserError(f"config.log.dle_json: cannot write {path}: {error.strerror}") from error
        self._write(type="LOG", step="PARAMETER", data=parameters)
        for name, metadata in METRICS.items():
            self._write(type="METADATA", metric=name, metadata=metadata)

    def log(self, record: Record) -> None:
        if record.kind == "train":
            self.train(record.step, record.epoch, record.steps, record.metrics)
        elif record.kind == "epoch":
            self.epoch(record.epoch, record.metrics)
        elif record.finished:
            self.summary()

    def close(self) -> None:
        self._file.close()

    def train(self, step: int, epoch: int, steps: int, metrics: Metrics) -> None:
        """Reports the last `steps` updates, up to update `step` of the run, in `epoch` (from 0)."""
        named = self._named(metrics)
        if not named.get("train.total_ips", 1):  # its only step compiled, and has no time
            named = {name: value for name, value in named.items() if name not in _TIMED}
        self._write(type="LOG", step=[epoch, step - epoch * self._steps_per_epoch], data=named)
        self._reports.append((steps, named))  # once, should the line have to be written again

    def epoch(self, epoch: int, metrics: Metrics) -> None:
        """Reports `epoch` (from 0): means over its updates, and the metrics of its validation, if there was one."""
        means: dict[str, float] = {}
        for name in self._reports[-1][1] if self._reports else ():
            reported = [(steps, report[name]) for steps, report in self._reports if name in report]
            weights, values = zip(*reported, strict=True)
            means[name] = values[-1] if name in _LAST else float(np.average(values, weights=weights))
        self._write(type="LOG", step=[epoch], data=means | self._named(metrics))
        self._reports = []

    def summary(self) -> None:
        """Reports the run, as its file tells it: best accuracy, smallest loss, last rate, mean of everything else.

        Of latencies that is the mean of the epochs' quantiles, and the largest of all. A validation by itself
        (`evaluate`) reports what it has found alone, and counts for no training.

        The reference means the smallest loss too, but reports the largest.
        """
        with open_regular(self._path) as file:
            lines = [line.removeprefix(_START) for line in file.read().split(b"\n") if line.startswith(_START)]
        epochs: dict[int, dict[str, Any]] = {}
        counts = True
        for line in lines:
            with suppress(ValueError):  # a unit's, or what others have written
                found = parse_json(line, _Logged)
                if found["step"] == "PARAMETER":
                    counts = bool(found["data"].get("evaluate")) == self._evaluates
                    if self._evaluates and counts:
                        epochs.clear()
                elif counts and len(found["step"]) == 1:
                    epochs[found["step"][0]] = found["data"]  # an epoch that was repeated after a kill counts once
        values = {
            name: [x for epoch in sorted(epochs) if isinstance(x := epochs[epoch].get(name), int | float)]
            for name in METRICS
        }
        result = {name: _over_the_run(name, found) for name, found in values.items() if found}
        self._write(type="LOG", step=[], data=result)

    def _named(self, metrics: Metrics) -> dict[str, float]:
        found = dict(metrics)
        for name, ours in _OTHER_NAMES.items():
            if ours in found:
                found[name] = found[ours]
        if self._smoothed and "val.loss_smoothed" in found:
            found["val.loss"] = found["val.loss_smoothed"]
        return {name: found[name] for name in METRICS if name in found}

    def _write(self, **content: Any) -> None:
        now = time.time()
        times = {
            "timestamp": str(now),
            "datetime": str(datetime.fromtimestamp(now)),
            "elapsedtime": str(now - self._started),
        }
        self._file.write_line(f"DLLL {to_json(times | content)}")


def open_dle(run: RunFacts, name: str) -> DleLog:
    """Opens a file, named relative to the work folder.

    Raises:
      UserError: it is a file of the run's own, cannot be written, or holds something else.
    """
    path = run.workdir / name
    inside = os.path.relpath(os.path.realpath(path), os.path.realpath(run.workdir))
    if is_own_name(inside):
        raise UserError(f"config.log.dle_json={name} is a file of the run's own; choose another")
    return DleLog(path, dle_parameters(run), steps_per_epoch=run.steps_per_epoch)


def _over_the_run(name: str, values: Sequence[float]) -> float:
    if name.endswith("loss"):
        return min(values)
    if name.startswith("val.top") or name.endswith("_at100"):
        return max(values)
    return values[-1] if name in _LAST else float(np.mean(values))
