"""Everything that training changes."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rn50_jax.models.initial import initial_variables, variable_shapes
from rn50_jax.models.network import Network, split_frozen
from rn50_jax.models.walk import Variables
from rn50_jax.training.loss_scale import LossScale, init_loss_scale


class TrainState(NamedTuple):
    """State of a run: arrays only, replicated over devices, never stacked.

    step: int32 [], updates applied. params: float32 tree. batch_stats: float32 tree of BatchNorm's running averages.
    opt_state: optax state (momentum, float32) of the parameters that are trained. ema: {"params", "batch_stats"}, their
    exponential moving averages; {} without. loss_scale: see `loss_scale.LossScale`.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any
    loss_scale: LossScale


def init_state(
    model: Network, optimizer: optax.GradientTransformation, *, seed: int, loss_scale: float, ema: bool = False
) -> TrainState:
    """Makes a fresh state on the default device, with or without moving averages.

    The weights depend on `seed` and the model alone.
    """
    start = jax.jit(partial(_start, model, optimizer, loss_scale, ema))
    state: TrainState = start(initial_variables(model, seed))
    return state


def abstract_state(
    model: Network, optimizer: optax.GradientTransformation, *, loss_scale: float, ema: bool = False
) -> Any:
    """Returns the shapes and dtypes of `init_state`; nothing is computed."""
    return jax.eval_shape(partial(_start, model, optimizer, loss_scale, ema), variable_shapes(model))


def _start(
    model: Network, optimizer: optax.GradientTransformation, loss_scale: float, ema: bool, variables: Variables
) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(split_frozen(variables["params"], model)[0]),
        ema=variables if ema else {},
        loss_scale=init_loss_scale(loss_scale),
    )


def variables_of(state: TrainState) -> dict[str, Variables]:
    """Returns what can be evaluated: the live weights as "val" and, if there are any, the EMA weights as "val_ema".

    Returns:
      By prefix of their metrics, {"params", "batch_stats"} as the model takes them.
    """
    live = {"params": state.params, "batch_stats": state.batch_stats}
    return {"val": live} | ({"val_ema": state.ema} if state.ema else {})
