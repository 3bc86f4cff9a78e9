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
    the value. package: that it needs. check: refuses what else it cannot work with. server: it talks to one, and is
    refused without its package.
    """

    key: str
    name: str
    shown: str
    open: Callable[[RunFacts, Any], Logger]
    package: str = ""
    check: Callable[[], None] | None = None
    server: bool = False


LOGGERS = (
    Available("file", "{}", "{}", lambda run, name: JsonLines(run.workdir / name)),
    Available("tensorboard", "the TensorBoard log", "tensorboard/", lambda run, _: TensorBoard(run), "tensorboard"),
    Available("dle_json", "{}", "{}", open_dle),
    Available("wandb", "Weights & Biases", "wandb {}", WeightsAndBiases, "wandb", check_login, server=True),
    Available("mlflow", "MLflow", "mlflow {}", Mlflow, "mlflow", server=True),
)


def check_loggers(report: Mapping[str, Any]) -> None:
    """Refuses loggers of `config.report` that cannot work, before anything is compiled.

    Raises:
      UserError: naming what to install, or to do.
    """
    for entry in (entry for entry in LOGGERS if report[entry.key]):
        if entry.server and importlib.util.find_spec(entry.package) is None:
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
            value = run.config[f"report.{entry.key}"]
            name = entry.name.format(run.workdir / str(value))
            if value and entry.package and not entry.server and importlib.util.find_spec(entry.package) is None:
                warn("no log for TensorBoard is written, as it is not installed: pip install tensorboard")
            elif value:
                start = partial(entry.open, run, value)
                logger = Background(name, start) if entry.server else Persistent(name, start())
                opened.callback(logger.close)
                loggers.append(logger)
        opened.pop_all()
    return loggers


def logs_text(report: Mapping[str, Any]) -> str:
    """Returns the names of the logs that `config.report` asks for."""
    return ", ".join(entry.shown.format(report[entry.key]) for entry in LOGGERS if report[entry.key])
