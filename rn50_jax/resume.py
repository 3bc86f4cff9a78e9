"""The state that a run starts from: fresh, with pretrained weights, or of its latest checkpoint."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
from ml_collections import ConfigDict

from rn50_jax import checkpoint
from rn50_jax import config as configs
from rn50_jax.build import build_state
from rn50_jax.data.folder import check_class_names
from rn50_jax.errors import UserError
from rn50_jax.models.resnet import ResNet
from rn50_jax.plan import Plan
from rn50_jax.report import warn
from rn50_jax.state import TrainState
from rn50_jax.weight_files import read_weights
from rn50_jax.weights import start_from

# What decides which arrays a state has.
_FIXED = ("model.arch", "model.stages", "model.width", "model.widths", "model.se_units")


def initial_state(
    config: ConfigDict,
    model: ResNet,
    plan: Plan,
    class_names: Sequence[str],
    workdir: Path,
    manager: checkpoint.CheckpointManager,
) -> tuple[TrainState, int, int]:
    """The state, on the host, with the numbers of epochs and steps that are done.

    Raises:
      UserError: the checkpoint or the weight file cannot be read, or is of another model or other classes.
    """
    if not manager.all_steps():
        return _fresh_state(config, model), 0, 0
    meta = checkpoint.read_meta(manager, "latest")
    check_class_names(tuple(class_names), tuple(meta["class_names"]), config.data.dir)
    before, now = (configs.flatten(c) for c in (configs.from_tree(meta["config"]), config))
    for key in (*_FIXED, "recipe.ema_decay"):
        switched = bool(before[key]) != bool(now[key])  # a decay of another size goes on with the same averages
        if before[key] != now[key] and (key in _FIXED or switched):
            raise UserError(
                f"{workdir} holds checkpoints of another model: config.{key} was {before[key]!r} and is "
                f"{now[key]!r} now; set it back, or choose another --workdir"
            )
    state = checkpoint.restore(manager, meta, build_state(config, model, abstract=True))
    for key, value in now.items():
        if before.get(key) != value:
            warn(f"this run was started with another config.{key}: {before.get(key)!r} became {value!r}")
    epoch = meta["epoch"]
    step = epoch * plan.steps_per_epoch
    if step != meta["step"]:
        warn(f"an epoch has another number of steps now: step {meta['step']} became {step}")
        state = state._replace(step=jnp.asarray(step, jnp.int32))
    if epoch < config.epochs:
        print(f"resuming after epoch {epoch}, step {step}")
    return state, epoch, step


def _fresh_state(config: ConfigDict, model: ResNet) -> TrainState:
    """Initialised, or with pretrained weights."""
    source = config.model.pretrained_weights
    if not source:
        return build_state(config, model)
    arrays = read_weights(Path(source)).arrays
    state, told = start_from(build_state(config, model), arrays, model, source)
    print(told)
    return state
