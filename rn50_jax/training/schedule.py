"""The learning rate as a function of the updates done."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array], jax.Array]


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
    poly_power: float = 2.0,
) -> Schedule:
    """Returns linear warm-up (Goyal et al. 2017, arXiv:1706.02677), then one of four ways down.

    Time is counted in ticks t = 0, 1, ..., W of them in the warm-up, E in all: a tick is a step, or with
    `lr_update="epoch"` an epoch, within which the rate stays, as in the reference.

    - warm-up, while t < W: peak * (t + 1) / W
    - cosine (Loshchilov & Hutter 2017, arXiv:1608.03983): end + (peak - end) * (1 + cos(pi * p)) / 2, with
      p = (t - W) / (E - W); written as the equal cos(pi / 2 * p)**2, exact in float32 down to the last steps
    - linear: peak * (1 - p)
    - poly: end + (peak - end) * (1 - p) ** poly_power (power 2: MLPerf's with LARS)
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
        elif kind == "poly":
            rate = end_lr + (peak - end_lr) * (1 - progress) ** poly_power
        elif kind == "step":
            reached = sum(tick >= milestone * ticks_per_epoch for milestone in milestones)
            rate = peak * milestone_factor ** jnp.asarray(reached, float)
        else:
            raise ValueError(f"{kind!r} is no schedule")
        return jnp.where(tick < warmup, peak * (tick + 1).astype(float) / max(warmup, 1), rate)

    return learning_rate
