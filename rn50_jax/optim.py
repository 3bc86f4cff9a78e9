"""SGD with momentum, the weight-decay masks and the learning-rate schedules."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.Array], jax.Array]

DECAY_MASKS = ("no_bn", "reference", "all")


def decay_mask(params: Any, rule: str = "no_bn") -> Any:
    """Which parameters weight decay applies to.

    BatchNorms are the modules named `bn...` and `downsample_1`. Biases of linear layers are always decayed.

    Args:
      params: tree of parameters.
      rule: "no_bn", all but BatchNorm's `scale` and `bias`, as the reference documents; "reference", what its code
        does: it looks for "bn" in a parameter's name, so the shortcut's BatchNorms (`downsample.1`) are decayed;
        "all", everything (the reference's `--bn-weight-decay`).

    Returns:
      A tree of bools shaped as `params`.
    """

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        module = path[-2].key
        batch_norm = module.startswith("bn") or (module == "downsample_1" and rule == "no_bn")
        return rule == "all" or not batch_norm

    return jax.tree_util.tree_map_with_path(decayed, params)


def sgd(
    *, momentum: float, weight_decay: float, nesterov: bool = False, mask: str = "no_bn"
) -> optax.GradientTransformation:
    """torch's SGD without its learning rate: d = g + wd * w;  v <- momentum * v + d;  the update is v.

    With `nesterov` the update is d + momentum * v. Decay is added before the momentum and the learning rate is applied
    outside (w <- w - lr * update), so a change of the rate acts at once on the whole buffer.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=lambda params: decay_mask(params, mask)),
        optax.trace(decay=momentum, nesterov=nesterov),
    )


def moving_average(average: Any, live: Any, *, decay: float, updates: jax.Array) -> Any:
    """Exponential moving average of a tree: a <- d * a + (1 - d) * x, with d = min(decay, (1 + t) / (10 + t)).

    t is the number of `updates` (int32 []) before this one: while they are few, the average follows closely and
    forgets its random start (the warm-up of TensorFlow's ExponentialMovingAverage and of timm's ModelEmaV3).
    """
    t = updates.astype(float)
    d = jnp.minimum(decay, (1 + t) / (10 + t))
    return jax.tree.map(lambda a, x: a + (1 - d) * (x - a), average, live)


SCHEDULES = ("cosine", "linear", "step")


def make_schedule(
    kind: str,
    *,
    peak: float,
    warmup_epochs: int,
    epochs: int,
    steps_per_epoch: int,
    lr_update: str = "step",
    end_lr: float = 0.0,
    milestones: Sequence[int] = (30, 60, 80),
    milestone_factor: float = 0.1,
) -> Schedule:
    """Linear warm-up (Goyal et al. 2017, arXiv:1706.02677), then one of three ways down.

    Time is counted in ticks t = 0, 1, ..., W of them in the warm-up, E in all: a tick is a step, or with
    `lr_update="epoch"` an epoch, within which the rate stays, as in the reference.

    - warm-up, while t < W: peak * (t + 1) / W
    - cosine (Loshchilov & Hutter 2017, arXiv:1608.03983): end + (peak - end) * (1 + cos(pi * p)) / 2, with
      p = (t - W) / (E - W); written as the equal cos(pi / 2 * p)**2, exact in float32 down to the last steps
    - linear: peak * (1 - p)
    - step: peak * milestone_factor ** (number of `milestones`, in epochs, that have been reached)

    Returns:
      A function of the number of updates done (int32 []) to the rate of the next one (float32 []).
    """
    ticks_per_epoch = 1 if lr_update == "epoch" else steps_per_epoch
    warmup, total = warmup_epochs * ticks_per_epoch, epochs * ticks_per_epoch

    def learning_rate(step: jax.Array) -> jax.Array:
        tick = jnp.asarray(step, jnp.int32) // (steps_per_epoch // ticks_per_epoch)
        progress = jnp.clip((tick - warmup).astype(float) / max(total - warmup, 1), 0, 1)
        if kind == "cosine":
            rate = end_lr + (peak - end_lr) * jnp.cos(0.5 * jnp.pi * progress) ** 2
        elif kind == "linear":
            rate = peak * (1 - progress)
        else:
            reached = sum(tick >= milestone * ticks_per_epoch for milestone in milestones)
            rate = peak * milestone_factor ** jnp.asarray(reached, float)
        return jnp.where(tick < warmup, peak * (tick + 1).astype(float) / max(warmup, 1), rate)

    return learning_rate
