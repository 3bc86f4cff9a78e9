"""Facts of a run that must be the same in all its processes, and after every restart."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rn50_jax.checkpoint.description import Meta
from rn50_jax.checkpoint.step_folders import find_steps
from rn50_jax.config.derived import Plan
from rn50_jax.config.schema import Config
from rn50_jax.data.batch import Position
from rn50_jax.data.image_set import Dataset, fingerprint
from rn50_jax.data.val_share import read_val_images, write_val_images
from rn50_jax.distributed import processes
from rn50_jax.io.files import telling_of_writes
from rn50_jax.runtime.machine import versions


def check_same_everywhere(config: Config, dataset: Dataset) -> None:
    """Compares configuration, versions and data of all processes.

    Raises:
      UserError: on processes that differ from process 0.
      RunStopped: on the others.
    """
    if processes.count() > 1:
        facts = {f"config.{key}": value for key, value in config.flat().items()} | versions()
        sets = {"training set": dataset.train, "validation set": dataset.val}
        facts |= {name: fingerprint(images, dataset.class_names) for name, images in sets.items()}
        processes.check_agreement(facts)


def recorded_val_images(workdir: Path) -> frozenset[str] | None:
    """Reads which validation images a run with checkpoints set apart; None if it has none of either.

    Raises:
      UserError: the record is damaged.
    """
    try:
        begun = bool(find_steps(workdir / "checkpoints"))
    except OSError:  # whoever opens the checkpoints says what is wrong
        return None
    return read_val_images(workdir) if begun else None


def record_val_images(workdir: Path, dataset: Dataset) -> None:
    """Writes down which images a run with `data.val_share` validates on, once, for `recorded_val_images`.

    Raises:
      UserError: it cannot be written.
    """
    if processes.is_first() and recorded_val_images(workdir) is None:
        with telling_of_writes():
            write_val_images(workdir, dataset)


def checkpoint_meta(
    config: Config, class_names: Sequence[str], plan: Plan, stream: dict[str, Any], position: Position
) -> Meta:
    """Returns what a checkpoint says beside its state; all processes take part.

    Args:
      stream: of `stream_facts`, which takes seconds on a large training set.
    """
    pipelines = [base64.b64encode(kept).decode() for kept in position.pipelines]
    every = [text for texts in processes.gather(pipelines) for text in texts]
    return {
        "step": position.epoch * plan.steps_per_epoch + position.step,
        "epoch": position.epoch,
        "position": {"epoch": position.epoch, "step": position.step, "pipelines": every},
        "steps_per_epoch": plan.steps_per_epoch,
        "stream": stream,
        "class_names": list(class_names),
        "config": config.to_dict(),
        "versions": versions(),
    }
