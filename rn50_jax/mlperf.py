"""A log of the run in the form of MLPerf Training, for its compliance checker.

The rules are those of round 4.0, the last one with ResNet: github.com/mlcommons/logging, `training_4.0.0`.
docs/reports.md says what of them a run can fulfil.
"""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rn50_jax.data.folder import Dataset
from rn50_jax.errors import UserError
from rn50_jax.linefile import LineFile
from rn50_jax.loggers import Record
from rn50_jax.plan import Plan

_PREFIX = ":::MLLOG "
TARGET = 75.9  # per cent top-1 at which MLPerf's clock stops


class MlperfRun(NamedTuple):
    """What the log has to know of the run.

    settings: values by their key of the log. target: per cent top-1 at which the run counts as a success; stops:
    whether it ends there.
    """

    settings: dict[str, Any]
    steps_per_epoch: int
    epochs: int
    validates: bool
    target: float
    stops: bool
    started: float  # Unix seconds


def mlperf_run(config: ConfigDict, plan: Plan, dataset: Dataset, platform: str, started: float) -> MlperfRun:
    """The run under MLPerf's names."""
    recipe = config.recipe
    group = recipe.bn_group or plan.num_devices
    settings = {
        "submission_benchmark": "resnet",
        "submission_org": config.report.mlperf_org,
        "submission_division": config.report.mlperf_division,
        "submission_status": "research",
        "submission_platform": platform,
        "cache_clear": False,  # nobody has emptied the system's caches for it
        "seed": config.seed,
        "global_batch_size": plan.global_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "train_samples": len(dataset.train.labels),
        "eval_samples": len(dataset.val.labels),
        "model_bn_span": group * config.batch_size,
        "opt_name": recipe.optimizer,
        **_optimizer_settings(config, plan),
        "opt_learning_rate_decay_schedule": f"{recipe.schedule} after a linear warm-up",
    }
    return MlperfRun(
        settings,
        steps_per_epoch=plan.steps_per_epoch,
        epochs=config.epochs,
        validates=not config.run.training_only,
        target=config.run.target_top1 or TARGET,
        stops=config.run.target_top1 > 0,
        started=started,
    )


def _optimizer_settings(config: ConfigDict, plan: Plan) -> dict[str, Any]:
    recipe, warmup = config.recipe, config.recipe.warmup_epochs
    if recipe.optimizer == "lamb":
        return {
            "opt_base_learning_rate": plan.peak_lr,
            "opt_lamb_beta_1": recipe.beta1,
            "opt_lamb_beta_2": recipe.beta2,
            "opt_lamb_epsilon": recipe.eps,
            "opt_lamb_weight_decay_rate": recipe.weight_decay,
            "opt_learning_rate_warmup_epochs": warmup,
        }
    powers = {"linear": 1.0, "poly": recipe.poly_power}
    found = {
        "base_learning_rate": plan.peak_lr,
        "end_learning_rate": recipe.end_lr,
        "learning_rate_decay_poly_power": powers.get(recipe.schedule),
        "learning_rate_decay_steps": plan.total_steps - warmup * plan.steps_per_epoch,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
    }
    settings = {f"{recipe.optimizer}_opt_{key}": value for key, value in found.items()}
    if recipe.optimizer == "lars":
        return settings | {"lars_opt_learning_rate_warmup_epochs": warmup, "lars_epsilon": 0.0}
    return settings | {"opt_learning_rate_warmup_epochs": warmup}


class MlperfLog:
    """The log file of one run. A resumed run appends; what may be there but once is not written again.

    Raises:
      UserError: the file cannot be written, or holds something else.
    """

    def __init__(self, path: Path, run: MlperfRun, first_epoch: int) -> None:
        self._run = run
        self._best, self._opened = 0.0, -1
        try:
            before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            if before and not before[0].startswith(_PREFIX):
                raise UserError(f"config.report.mlperf_log: {path} holds something else; choose another file")
            self._file = LineFile(path)
        except OSError as error:
            raise UserError(f"config.report.mlperf_log: cannot write {path}: {error.strerror}") from error
        for text in before:
            self._remember(text)
        if any('"run_start"' in text for text in before):
            self._put("POINT_IN_TIME", "run_resumed", None, epoch_num=first_epoch + 1)
        else:
            self._put("INTERVAL_START", "init_start", None, at=run.started)
            for key, value in run.settings.items():
                self._put("POINT_IN_TIME", key, value)
            self._put("INTERVAL_END", "init_stop", None)
            self._put("INTERVAL_START", "run_start", None)
        if self._opened != first_epoch:
            self._open_epoch(first_epoch)

    def _remember(self, text: str) -> None:
        try:
            line = json.loads(text.removeprefix(_PREFIX))
        except json.JSONDecodeError:
            return  # what a killed run leaves
        if line["key"] == "epoch_start":
            self._opened = line["metadata"]["epoch_num"] - 1
        elif line["key"] == "eval_accuracy":
            self._best = max(self._best, 100 * line["value"])

    def write(self, record: Record) -> None:
        """Reports what `loggers.Record` tells."""
        number = record.epoch + 1
        if record.kind == "train" and record.step == number * self._run.steps_per_epoch:
            self._put("INTERVAL_END", "epoch_stop", None, epoch_num=number)
            if self._run.validates:
                self._put("INTERVAL_START", "eval_start", None, epoch_num=number)
        elif record.kind == "epoch":
            if record.metrics:
                top1 = max(record.metrics[key] for key in ("val.top1", "val_ema.top1") if key in record.metrics)
                self._best = max(self._best, top1)
                self._put("POINT_IN_TIME", "eval_accuracy", top1 / 100, epoch_num=number)
                self._put("INTERVAL_END", "eval_stop", None, epoch_num=number)
            if number < self._run.epochs and not (self._run.stops and self._best >= self._run.target):
                self._open_epoch(number)
        elif record.kind == "end" and record.finished:
            status = "success" if self._best >= self._run.target else "aborted"
            self._put("INTERVAL_END", "run_stop", None, status=status, epoch_num=number)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _open_epoch(self, epoch: int) -> None:
        self._put("INTERVAL_START", "epoch_start", None, epoch_num=epoch + 1)
        self._opened = epoch

    def _put(self, event: str, key: str, value: Any, *, at: float | None = None, **metadata: Any) -> None:
        line = {
            "namespace": "",
            "time_ms": int(1000 * (time.time() if at is None else at)),
            "event_type": event,
            "key": key,
            "value": value,
            "metadata": metadata,
        }
        self._file.write(_PREFIX + json.dumps(line))
