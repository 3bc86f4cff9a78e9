"""What a run consists of, known before anything is compiled."""

from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from rn50_jax.data.folder import Dataset
from rn50_jax.models.resnet import ResNet
from rn50_jax.plan import Plan


class Setup(NamedTuple):
    """Made by `train.prepare`."""

    config: ConfigDict
    workdir: Path
    mesh: Mesh
    dataset: Dataset
    plan: Plan
    model: ResNet
