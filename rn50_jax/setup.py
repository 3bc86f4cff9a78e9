"""What a run consists of, known before anything is compiled."""

from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax import hosts
from rn50_jax.config import flatten
from rn50_jax.data.folder import Dataset, fingerprint
from rn50_jax.models.resnet import ResNet
from rn50_jax.plan import Plan
from rn50_jax.workdir import versions


class Setup(NamedTuple):
    """Made by `train.prepare`."""

    config: ConfigDict
    workdir: Path
    mesh: Mesh
    dataset: Dataset
    plan: Plan
    model: ResNet


def check_same_everywhere(config: ConfigDict, dataset: Dataset) -> None:
    """Compares configuration, versions and data of all processes.

    Raises:
      UserError: on processes that differ from process 0.
      RunStopped: on the others.
    """
    if hosts.count() > 1:
        facts = {f"config.{key}": value for key, value in flatten(config).items()} | versions()
        sets = {"training set": dataset.train, "validation set": dataset.val}
        facts |= {name: fingerprint(images, dataset.class_names) for name, images in sets.items()}
        hosts.check_agreement(facts)
