"""The loggers that a run may have besides the console."""

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from rn50_jax.errors import UserError
from rn50_jax.io.messages import warn
from rn50_jax.loggers.base import Background, Logger, Persistent, RunFacts
from rn50_jax.loggers.dllogger import open_dle
from rn50_jax.loggers.jsonl import JsonLines
from rn50_jax.loggers.mlflow import Mlflow
from rn50_jax.loggers.tensorboard import TensorBoard
from rn50_jax.loggers.weights_and_biases import WeightsAndBiases, check_login


class Available(NamedTuple):
    """A logger, used if the value of its `key` of `config.report` is not empty.

    name: for messages, with the path of its file. shown: in the run's summary, with the value. open: takes the run and
    the value. server: it talks to one, by the package of its key.
    """

    key: str
    name: str
    shown: str
    open: Callable[[RunFacts, Any], Logger]
    server: bool = False


LOGGERS = (
    Available("file", "{}", "{}", lambda run, name: JsonLines(run.workdir / name)),
    Available("tensorboard", "the TensorBoard log", "tensorboard/", lambda run, _: TensorBoard(run)),
    Available("dle_json", "{}", "{}", open_dle),
    Available("wandb", "Weights & Biases", "wandb {}", WeightsAndBiases, server=True),
    Available("mlflow", "MLflow", "mlflow {}", Mlflow, server=True),
)


def check_loggers(report: Mapping[str, Any]) -> None:
    """Refuses loggers of `config.report` that cannot work, before anything is compiled.

    Raises:
      UserError: naming what to install, or to do.
    """
    for key in (entry.key for entry in LOGGERS if entry.server and report[entry.key]):
        if importlib.util.find_spec(key) is None:
            raise UserError(
                f"config.report.{key}={report[key]!r} needs the package {key}; pip install {key}, or set "
                f"--config.report.{key}="
            )
    if report["wandb"]:
        check_login()


def open_loggers(run: RunFacts) -> list[Logger]:
    """Opens the loggers that a run's config asks for.

    Raises:
      UserError: a file cannot be written, or holds something else; none of the loggers is open then.
    """
    loggers: list[Logger] = []
    with ExitStack() as opened:
        for entry in LOGGERS:
            value = run.config[f"report.{entry.key}"]
            if not value:
                continue
            if entry.key == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
                warn("no log for TensorBoard is written, as it is not installed: pip install tensorboard")
                continue
            name, start = entry.name.format(run.workdir / str(value)), partial(entry.open, run, value)
            loggers.append(Background(name, start) if entry.server else Persistent(name, start()))
            opened.callback(loggers[-1].close)
        opened.pop_all()
    return loggers


def logs_text(report: Mapping[str, Any]) -> str:
    """Returns the names of the logs that `config.report` asks for."""
    return ", ".join(entry.shown.format(report[entry.key]) for entry in LOGGERS if report[entry.key])
