"""Weights & Biases."""

import os
import secrets
from contextlib import suppress

from rn50_jax.errors import UserError
from rn50_jax.loggers.base import Record, RunFacts, remembered, tagged


class WeightsAndBiases:
    """A run of a project, named as its work folder, the same over restarts; of steps done again the first counts."""

    def __init__(self, run: RunFacts, project: str) -> None:
        import wandb

        self._exit_code = 1
        self._run = wandb.init(
            project=project,
            name=run.workdir.name,
            id=remembered(run.workdir / "wandb.json", project, lambda: secrets.token_hex(4)),
            resume="allow",
            dir=run.workdir,
            config=run.config.flat(),
            settings=wandb.Settings(silent=True, console="off"),
        )
        for name in ("val/top1", "val/top5"):
            self._run.define_metric(name, summary="max")

    def log(self, record: Record) -> None:
        if record.kind == "end":
            self._exit_code = 0 if record.finished else 1
        if record.step >= self._run.step:
            self._run.log(tagged(record.metrics) | {"epochs_done": record.epochs_done}, step=record.step)

    def close(self) -> None:
        self._run.finish(exit_code=self._exit_code)


def check_login() -> None:
    """Refuses a user whom the service does not know, unless it is offline.

    Raises:
      UserError: saying how to log in.
    """
    if os.environ.get("WANDB_MODE", "online") != "online":
        return
    import wandb

    with suppress(Exception):  # such as a home folder that does not exist
        if wandb.login(prompt=False, verify=False):
            return
    raise UserError(
        "config.log.wandb: Weights & Biases does not know you; run `wandb login`, or set WANDB_MODE=offline"
    )
