"""The names that a run has for its own files."""

import os
from pathlib import PurePath

from rn50_jax.io.files import UNFINISHED

METRICS = "metrics.jsonl"
DAMAGED = ".damaged"  # what is unreadable in a log is moved to a file whose name ends so
_OWN = {"", "config.json", "run.json", "lock", "checkpoints", "quarantine.json", "quarantine.lock", "left_out.jsonl"}
_OWN |= {"console.log", METRICS}
_OWN |= {"tensorboard", "wandb", "wandb.json", "mlflow.json", "curves.png", "curves.svg", "report.html", "evaluation"}
_OWN |= {"val_images.tsv"}


def is_own_name(path: str) -> bool:
    """Returns whether a path, from a work folder on, is or leads into what a run keeps there under names of its own."""
    first = (*PurePath(os.path.normpath(path)).parts, "")[0]
    return first in _OWN or first.endswith((UNFINISHED, DAMAGED))
