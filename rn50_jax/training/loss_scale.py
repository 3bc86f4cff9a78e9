"""The loss scale that keeps float16 gradients representable."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rn50_jax.config.sections.recipe import LossScaleConfig


class LossScale(NamedTuple):
    """State of loss scaling and count of the steps left out, in any precision: arrays only, all scalars.

    value: float32, what the loss is multiplied by. good_steps: int32, finite steps in a row since the scale moved.
    skipped: int32, steps left out since the start of the run because the loss or a gradient was not finite.
    skipped_in_a_row: int32, how many of them up to now without a good one between.
    """

    value: jax.Array
    good_steps: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array


_GROWTH, _BACKOFF, _FLOOR, _CEILING = 2.0, 0.5, 1.0, 2.0**24


def init_loss_scale(init: float) -> LossScale:
    """Returns a fresh loss scale of value `init`."""
    zero = jnp.zeros((), jnp.int32)
    return LossScale(jnp.asarray(init, jnp.float32), good_steps=zero, skipped=zero, skipped_in_a_row=zero)


def update_loss_scale(scale: LossScale, finite: jax.Array, rules: LossScaleConfig | None) -> LossScale:
    """Returns the loss scale after a step (Micikevicius et al. 2018, arXiv:1710.03740).

    Args:
      scale: the scale that the step used.
      finite: bool [], whether every gradient of the step was finite.
      rules: None without loss scaling. A dynamic scale doubles after `growth_interval` good steps, up to 2**24, and
        is halved by an overflow, down to 1.
    """
    good_steps = jnp.where(finite, scale.good_steps + 1, 0)
    skipped = scale.skipped + jnp.where(finite, 0, 1)
    in_a_row = jnp.where(finite, 0, scale.skipped_in_a_row + 1)
    if rules is None or rules.mode == "static":
        return LossScale(scale.value, good_steps, skipped, in_a_row)
    grow = good_steps >= rules.growth_interval
    value = jnp.where(grow, jnp.minimum(scale.value * _GROWTH, _CEILING), scale.value)
    value = jnp.where(finite, value, jnp.maximum(scale.value * _BACKOFF, _FLOOR))
    return LossScale(value, jnp.where(grow, 0, good_steps), skipped, in_a_row)


def all_finite(tree: object) -> jax.Array:
    """Returns whether every element of every array in `tree` is finite: bool []."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
