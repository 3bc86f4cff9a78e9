"""The loggers that a run may have besides the console."""

import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from rn50_jax.config.file_names import METRICS
from rn50_jax.config.sections.run import LogConfig
from rn50_jax.errors import UserError
from rn50_jax.io.messages import warn
from rn50_jax.loggers.base import Background, Logger, Persistent, RunFacts
from rn50_jax.loggers.dllogger import open_dle
from rn50_jax.loggers.jsonl import JsonLines
from rn50_jax.loggers.mlflow import Mlflow
from rn50_jax.loggers.tensorboard import TensorBoard
from rn50_jax.loggers.weights_and_biases import WeightsAndBiases, check_login


class Available(NamedTuple):
    """A logger, used if its option of the config's `log` is not empty.

    name: for messages, with the path of its file. shown: in the run's summary, with the option's value. open: takes the
    run and the value. server: the package of one that talks to a server, named as its option.
    """

    option: Callable[[LogConfig], str | bool]
    name: str
    shown: str
    open: Callable[[RunFacts, Any], Logger]
    server: str = ""


LOGGERS = (
    Available(lambda _: METRICS, "{}", "{}", lambda run, name: JsonLines(run.workdir / name)),
    Available(lambda log: log.tensorboard, "the TensorBoard log", "tensorboard/", lambda run, _: TensorBoard(run)),
    Available(lambda log: log.dle_json, "{}", "{}", open_dle),
    Available(lambda log: log.wandb, "Weights & Biases", "wandb {}", WeightsAndBiases, server="wandb"),
    Available(lambda log: log.mlflow, "MLflow", "mlflow {}", Mlflow, server="mlflow"),
)


def check_loggers(log: LogConfig) -> None:
    """Refuses loggers that cannot work, before anything is compiled.

    Raises:
      UserError: naming what to install, or to do.
    """
    for entry in LOGGERS:
        name, value = entry.server, entry.option(log)
        if name and value and importlib.util.find_spec(name) is None:
            raise UserError(
                f"config.log.{name}={value!r} needs the package {name}; pip install {name}, or set --config.log.{name}="
            )
    if log.wandb:
        check_login()


def open_loggers(run: RunFacts) -> list[Logger]:
    """Opens the loggers that a run's config asks for.

    Raises:
      UserError: a file cannot be written, or holds something else; none of the loggers is open then.
    """
    loggers: list[Logger] = []
    with ExitStack() as opened:
        for entry in LOGGERS:
            value = entry.option(run.config.log)
            if not value:
                continue
            if value is True and importlib.util.find_spec("tensorboard") is None:
                warn("no log for TensorBoard is written, as it is not installed: pip install tensorboard")
                continue
            name, start = entry.name.format(run.workdir / str(value)), partial(entry.open, run, value)
            loggers.append(Background(name, start) if entry.server else Persistent(name, start()))
            opened.callback(loggers[-1].close)
        opened.pop_all()
    return loggers


def logs_text(log: LogConfig) -> str:
    """Returns the names of the logs that are asked for."""
    return ", ".join(entry.shown.format(value) for entry in LOGGERS if (value := entry.option(log)))
