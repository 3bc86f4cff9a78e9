"""Everything that training changes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rn50_jax.models.resnet import ResNet
from rn50_jax.precision import LossScale, init_loss_scale
from rn50_jax.tune import split


class TrainState(NamedTuple):
    """State of a run: arrays only, replicated over devices, never stacked.

    step: int32 [], updates applied. params: float32 tree. batch_stats: float32 tree of BatchNorm's running averages.
    opt_state: optax state (momentum, float32) of the parameters that are trained. ema: {"params", "batch_stats"}, their
    exponential moving averages; {} without. loss_scale: see `precision.LossScale`.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any
    loss_scale: LossScale


Variables = dict[str, Any]


def init_state(
    model: ResNet,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    image_size: int,
    loss_scale: float,
    ema: bool = False,
) -> TrainState:
    """Fresh state, with or without moving averages. The weights depend on `seed` and the model alone."""
    image = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    variables = model.init(jax.random.key(seed), image, train=False)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(split(variables["params"], model.frozen)[0]),
        ema={"params": variables["params"], "batch_stats": variables["batch_stats"]} if ema else {},
        loss_scale=init_loss_scale(loss_scale),
    )


def variables_of(state: TrainState) -> dict[str, Variables]:
    """What can be evaluated: the live weights as "val" and, if there are any, the averaged ones as "val_ema".

    Returns:
      By prefix of their metrics, {"params", "batch_stats"} as the model takes them.
    """
    live = {"params": state.params, "batch_stats": state.batch_stats}
    return {"val": live} | ({"val_ema": state.ema} if state.ema else {})
