"""Where a run's metrics go besides the console: lines of JSON, TensorBoard, Weights & Biases, MLflow."""

import importlib.util
import math
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from typing_extensions import TypedDict

from rn50_jax.config.tree import flatten, to_json
from rn50_jax.errors import UserError
from rn50_jax.io import json_files
from rn50_jax.io.lines import Appended, LineFile
from rn50_jax.io.text import first_line
from rn50_jax.loggers.records import Record


class MetricsFile:
    """`metrics.jsonl`: a JSON object a line, whose keys docs/reports.md explains; not finite values are null."""

    def __init__(self, path: Path) -> None:
        self._file = LineFile(path)

    def write(self, record: Record) -> None:
        if not record.metrics:
            return
        line = {
            "time": round(record.time, 3),
            "step": record.step,
            "epoch": record.epoch + 1,
            "epochs_done": round(record.epochs_done, 6),
        }
        self._file.write(json_files.to_json(line | record.metrics))

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """A new events file in `folder` for each process of the run, written without TensorFlow and without a thread.

    Steps that are done again after `first_step` replace those of earlier files.
    """

    def __init__(self, folder: Path, config: ConfigDict, first_step: int) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = event_pb2.Event
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter(Appended(folder / name))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._put(file_version="brain.Event:2")
        self._put(step=first_step + 1, session_log=start)
        self._put(step=first_step, summary=text_pb("config", f"```\n{to_json(config)}```"))

    def write(self, record: Record) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in tagged(record.metrics).items()]
        self._put(step=record.step, wall_time=record.time, summary=Summary(value=values))

    def close(self) -> None:
        self._writer.close()

    def _put(self, **content: Any) -> None:
        self._writer.write(self._event(**({"wall_time": time.time()} | content)).SerializeToString())


def tagged(metrics: dict[str, float]) -> dict[str, float]:
    """The finite metrics under the names that group them: `val.top1` as `val/top1`."""
    return {name.replace(".", "/", 1): value for name, value in metrics.items() if math.isfinite(value)}


class WeightsAndBiases:
    """A run of Weights & Biases, the same one over restarts; of steps done again the first counts."""

    def __init__(self, workdir: Path, config: ConfigDict) -> None:
        import wandb

        project = config.report.wandb
        self._exit_code = 1
        self._run = wandb.init(
            project=project,
            name=workdir.name,
            id=_remembered(workdir / "wandb.json", project, lambda: secrets.token_hex(4)),
            resume="allow",
            dir=workdir,
            config=flatten(config),
            settings=wandb.Settings(silent=True, console="off"),
        )
        for name in ("val/top1", "val/top5"):
            self._run.define_metric(name, summary="max")

    def write(self, record: Record) -> None:
        if record.kind == "end":
            self._exit_code = 0 if record.finished else 1
        if record.step >= self._run.step:
            self._run.log(tagged(record.metrics) | {"epochs_done": record.epochs_done}, step=record.step)

    def close(self) -> None:
        self._run.finish(exit_code=self._exit_code)


class Mlflow:
    """A run of the experiment `report.mlflow` on the server of MLFLOW_TRACKING_URI, the same one over restarts."""

    def __init__(self, workdir: Path, config: ConfigDict) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        self._status = "FAILED"
        new = False

        def create() -> str:
            nonlocal new
            new = True
            found = self._client.get_experiment_by_name(config.report.mlflow)
            number = found.experiment_id if found else self._client.create_experiment(config.report.mlflow)
            return str(self._client.create_run(number, run_name=workdir.name).info.run_id)

        self._id = _remembered(workdir / "mlflow.json", config.report.mlflow, create)
        if new:
            params = [Param(key, str(value)) for key, value in flatten(config).items()]
            for start in range(0, len(params), 100):  # as many as a request may have
                self._client.log_batch(self._id, params=params[start : start + 100])
        else:
            self._client.update_run(self._id, status="RUNNING")

    def write(self, record: Record) -> None:
        from mlflow.entities import Metric

        if record.kind == "end":
            self._status = "FINISHED" if record.finished else "KILLED"
        now = int(1000 * record.time)
        metrics = [Metric(name, value, now, record.step) for name, value in tagged(record.metrics).items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._id, self._status)


def _remembered(path: Path, project: str, create: Callable[[], str]) -> str:
    """The identity of this work folder's run in a project, created once."""
    with suppress(OSError, ValueError):
        known = json_files.read_json(path, _Identity)
        if known["project"] == project:
            return known["id"]
    identity = create()
    json_files.write_json(path, {"project": project, "id": identity}, own=True)
    return identity


class _Identity(TypedDict):
    project: str
    id: str


def check_loggers(config: ConfigDict) -> None:
    """Refuses loggers whose packages are missing, before anything is compiled.

    Raises:
      UserError: naming what to install.
    """
    for key in ("wandb", "mlflow"):
        if config.report[key] and importlib.util.find_spec(key) is None:
            raise UserError(
                f"config.report.{key}={config.report[key]!r} needs the package {key}; pip install {key}, or set "
                f"--config.report.{key}="
            )
    if config.report.wandb and os.environ.get("WANDB_MODE", "online") == "online":
        import wandb

        try:
            known = wandb.login(prompt=False, verify=False)
        except Exception as error:  # such as a home folder that does not exist
            raise UserError(
                f"config.report.wandb: {first_line(error, kind=True)}; mend that, or set WANDB_MODE=offline"
            ) from error
        if not known:
            raise UserError(
                "config.report.wandb: Weights & Biases does not know you; run `wandb login`, or set WANDB_MODE=offline"
            )
