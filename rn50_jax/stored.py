"""A trained run as other commands see it: its config, classes and model, and the state of one checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from rn50_jax import checkpoint, parallel
from rn50_jax import config as configs
from rn50_jax.build import build_model, build_state
from rn50_jax.errors import UserError
from rn50_jax.models.resnet import ResNet
from rn50_jax.state import TrainState


class StoredRun(NamedTuple):
    """What a checkpoint says about itself; the arrays stay on disk until `restore_state`."""

    directory: Path
    meta: dict[str, Any]
    config: ConfigDict
    class_names: tuple[str, ...]
    devices: list[jax.Device]
    model: ResNet


def load_run(workdir: Path, which: str, overrides: Sequence[tuple[str, str]]) -> StoredRun:
    """Reads checkpoint `which` ("best", "latest" or a step) of a run, with its own config and the overrides.

    Raises:
      UserError: no such run or checkpoint, or an override that is wrong or fits neither devices nor model.
    """
    directory = workdir / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"{workdir} has no checkpoints; give the --workdir of a training run")
    with checkpoint.open_manager(directory, read_only=True) as manager:
        meta = checkpoint.read_meta(manager, which)
    config = configs.from_json(json.dumps(meta["config"]), source=f"the config in {directory}")
    config = configs.override(config, overrides)
    configs.validate(config)
    parallel.prepare_runtime(config.data.backend)
    devices = parallel.find_devices(backend=config.data.backend, precision=config.precision)
    class_names = tuple(meta["class_names"])
    model = build_model(config, num_classes=len(class_names), platform=devices[0].platform)
    return StoredRun(directory, meta, config, class_names, devices, model)


def restore_state(run: StoredRun) -> TrainState:
    """The verified state of the run's checkpoint, on the host."""
    with checkpoint.open_manager(run.directory, read_only=True) as manager:
        return checkpoint.restore(manager, run.meta, build_state(run.config, run.model, abstract=True))
