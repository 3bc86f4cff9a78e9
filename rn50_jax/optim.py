"""SGD with momentum, the weight-decay mask and the learning-rate schedule."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.Array], jax.Array]


def decay_mask(params: Any) -> Any:
    """Which parameters weight decay applies to: all but BatchNorm's `scale` and `bias`.

    BatchNorms are the modules named `bn...` and `downsample_1`. The classifier's bias is decayed, as in the reference.
    (The reference's own name test misses the shortcut's BatchNorms and decays them; its documentation does not.)

    Returns:
      A tree of bools shaped as `params`.
    """

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        module = path[-2].key
        return not (module.startswith("bn") or module == "downsample_1")

    return jax.tree_util.tree_map_with_path(decayed, params)


def sgd(*, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """torch's SGD without its learning rate: d = g + wd * w;  v <- momentum * v + d;  the update is v.

    Decay is added before the momentum and the learning rate is applied outside (w <- w - lr * v), so a change of
    the rate acts at once on the whole buffer.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.trace(decay=momentum),
    )


def cosine_schedule(*, peak: float, warmup_steps: int, total_steps: int) -> Schedule:
    """Linear warm-up, then half a cosine to zero (Goyal et al. 2017, Loshchilov & Hutter 2017), per step t from 0.

    peak * (t + 1) / W while t < W; then peak * (1 + cos(pi * (t - W) / (T - W))) / 2, which is written as the
    equal peak * cos(pi / 2 * ...)**2, exact in float32 down to the last steps.
    """

    def learning_rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warm = (step + 1) / max(warmup_steps, 1)
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        cosine = jnp.cos(0.5 * jnp.pi * jnp.clip(progress, 0, 1)) ** 2
        return peak * jnp.where(step < warmup_steps, warm, cosine)

    return learning_rate
