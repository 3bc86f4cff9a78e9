"""The loggers that a run may have besides the console."""

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import ExitStack
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
    """A logger.

    key: of `config.report`; the logger is used if its value is not empty. shown: its log in the run's summary, with
    the value. open: starts it. package: without which it is refused. check: what else it needs.
    """

    key: str
    shown: str
    open: Callable[[RunFacts], Logger | None]
    package: str = ""
    check: Callable[[], None] | None = None


def _jsonl(run: RunFacts) -> Logger:
    path = run.workdir / run.config["report.file"]
    return Persistent(str(path), JsonLines(path))


def _tensorboard(run: RunFacts) -> Logger | None:
    if importlib.util.find_spec("tensorboard") is None:  # which is no mistake: the default asks for it
        warn("no log for TensorBoard is written, as it is not installed: pip install tensorboard")
        return None
    log = TensorBoard(run.workdir / "tensorboard", run.config_text, run.first_step)
    return Persistent("the TensorBoard log", log)


def _dllogger(run: RunFacts) -> Logger:
    return Persistent(str(run.workdir / run.config["report.dle_json"]), open_dle(run))


def _weights_and_biases(run: RunFacts) -> Logger:
    project = run.config["report.wandb"]
    return Background("Weights & Biases", lambda: WeightsAndBiases(run.workdir, project, run.config))


def _mlflow(run: RunFacts) -> Logger:
    experiment = run.config["report.mlflow"]
    return Background("MLflow", lambda: Mlflow(run.workdir, experiment, run.config))


LOGGERS = (
    Available("file", "{}", _jsonl),
    Available("tensorboard", "tensorboard/", _tensorboard),
    Available("dle_json", "{}", _dllogger),
    Available("wandb", "wandb {}", _weights_and_biases, package="wandb", check=check_login),
    Available("mlflow", "mlflow {}", _mlflow, package="mlflow"),
)


def check_loggers(report: Mapping[str, Any]) -> None:
    """Refuses loggers of `config.report` that cannot work, before anything is compiled.

    Raises:
      UserError: naming what to install, or to do.
    """
    for entry in (entry for entry in LOGGERS if report[entry.key]):
        if entry.package and importlib.util.find_spec(entry.package) is None:
            raise UserError(
                f"config.report.{entry.key}={report[entry.key]!r} needs the package {entry.package}; pip install "
                f"{entry.package}, or set --config.report.{entry.key}="
            )
        if entry.check:
            entry.check()


def open_loggers(run: RunFacts) -> list[Logger]:
    """Opens the loggers that a run's config asks for.

    Raises:
      UserError: a file cannot be written, or holds something else; none of the loggers is open then.
    """
    loggers: list[Logger] = []
    with ExitStack() as opened:
        for entry in LOGGERS:
            if run.config[f"report.{entry.key}"] and (logger := entry.open(run)):
                opened.callback(logger.close)
                loggers.append(logger)
        opened.pop_all()
    return loggers


def logs_text(report: Mapping[str, Any]) -> str:
    """Returns the names of the logs that `config.report` asks for."""
    return ", ".join(entry.shown.format(report[entry.key]) for entry in LOGGERS if report[entry.key])
