"""Optimizers, the weight-decay masks and the learning-rate schedules.

They obey optax's contract: `update` returns what is to be added to the parameters, by `optax.apply_updates`. Those made
here take the learning rate as an extra argument, `update(gradients, state, params, learning_rate=rate)`: it is a
function of the steps of the run alone, and no part of their state. Any optimizer of optax can stand in their place.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict


def decay_mask(params: Any, rule: str = "no_bn") -> Any:
    """Returns which parameters weight decay applies to.

    BatchNorms are the modules that have a `scale`.

    Args:
      params: tree of parameters.
      rule: "no_bn", all but BatchNorm's `scale` and `bias`, as the reference documents; "no_bn_bias", not the biases of
        linear layers either, as is the custom with LARS and LAMB; "reference", what its code does: it looks for "bn" in
        a parameter's name, so the shortcut's BatchNorms (`downsample.1`) are decayed; "all", everything (the
        reference's `--bn-weight-decay`).

    Returns:
      A tree of bools shaped as `params`.
    """

    paths = flatten_dict(params)

    def decayed(path: tuple[str, ...]) -> bool:
        if rule == "no_bn_bias":
            return path[-1] == "kernel"
        if rule == "reference":
            return not any("bn" in name for name in path)
        return rule == "all" or (*path[:-1], "scale") not in paths

    return unflatten_dict({path: decayed(path) for path in paths})


def sgd(
    *, momentum: float, weight_decay: float, nesterov: bool = False, mask: str = "no_bn"
) -> optax.GradientTransformation:
    """Returns torch's SGD: d = g + wd * w;  v <- momentum * v + d;  w <- w - rate * v.

    With `nesterov`, w <- w - rate * (d + momentum * v). Decay is added before the momentum and the learning rate is
    applied outside, so a change of the rate acts at once on the whole buffer.
    """
    direction = optax.chain(
        optax.add_decayed_weights(weight_decay, mask=lambda params: decay_mask(params, mask)),
        optax.trace(decay=momentum, nesterov=nesterov),
    )
    return _scale_by_rate(direction, -1)


def lars(
    *, momentum: float, weight_decay: float, trust: float, nesterov: bool = False, mask: str = "no_bn_bias"
) -> optax.GradientTransformation:
    """Returns LARS (You et al. 2017, arXiv:1708.03888): v <- momentum * v + rate * r * (g + wd * w);  w <- w - v.

    The rate of a tensor follows its norms: r = trust * |w| / (|g| + wd * |w|), 1 for BatchNorms and biases and where a
    norm is 0, as in MLPerf's reference. The global rate is inside the momentum buffer, as in the paper.
    """

    # Not optax's trust ratio, which has |g + wd * w| below the line, where the paper has the sum of the norms.
    def local_rate(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        def scaled(g: jax.Array, w: jax.Array, decayed: bool) -> jax.Array:
            decay = weight_decay if decayed else 0.0
            direction = g + decay * w
            if w.ndim == 1:
                return direction
            w_norm, g_norm = jnp.linalg.norm(w.ravel()), jnp.linalg.norm(g.ravel())
            ratio = trust * w_norm / (g_norm + decay * w_norm)
            return jnp.where((w_norm > 0) & (g_norm > 0), ratio, 1.0) * direction

        return jax.tree.map(scaled, gradients, params, decay_mask(params, mask)), state

    momentum_of_updates = optax.chain(
        optax.GradientTransformation(lambda params: optax.EmptyState(), local_rate),
        _scale_by_rate(optax.identity(), 1),
        optax.trace(decay=momentum, nesterov=nesterov),
    )

    # Negated last, so that the buffer is saved as the paper and MLPerf's reference have it.
    def update(gradients: Any, state: Any, params: Any, **rate: Any) -> tuple[Any, Any]:
        updates, state = momentum_of_updates.update(gradients, state, params, **rate)
        return jax.tree.map(jnp.negative, updates), state

    return optax.GradientTransformationExtraArgs(momentum_of_updates.init, update)


def lamb(
    *, beta1: float, beta2: float, eps: float, weight_decay: float, mask: str = "no_bn_bias"
) -> optax.GradientTransformation:
    """Returns LAMB (You et al. 2020, arXiv:1904.00962): w <- w - rate * r * (a + wd * w), with Adam's direction a.

    r = |w| / |a + wd * w|, 1 for BatchNorms and biases, as in timm, and where a norm is 0. Adam's averages are
    corrected for their start; eps is added to the root of the second one.
    """

    def kernels(params: Any) -> Any:
        return jax.tree.map(lambda w: w.ndim > 1, params)

    direction = optax.chain(
        optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=lambda params: decay_mask(params, mask)),
        optax.masked(optax.scale_by_trust_ratio(), kernels),
    )
    return _scale_by_rate(direction, -1)


def _scale_by_rate(inner: optax.GradientTransformation, sign: int) -> optax.GradientTransformationExtraArgs:
    """Returns `inner` with its updates times the learning rate, or times its negative."""

    def update(gradients: Any, state: Any, params: Any, *, learning_rate: jax.Array, **_: Any) -> tuple[Any, Any]:
        updates, state = inner.update(gradients, state, params)
        rate = learning_rate if sign > 0 else -learning_rate
        return jax.tree.map(lambda u: rate * u, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def clipped(optimizer: optax.GradientTransformation, max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer behind a limit: gradients of a larger norm, as one vector, are scaled down to `max_norm`.

    The state stays that of `optimizer`, so that a run may go on with another limit, or without.
    """
    clip = optax.clip_by_global_norm(max_norm)

    def update(gradients: Any, state: Any, params: Any, **rate: Any) -> tuple[Any, Any]:
        gradients, _ = clip.update(gradients, optax.EmptyState())
        updated: tuple[Any, Any] = optimizer.update(gradients, state, params, **rate)
        return updated

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def by_part(
    optimizer: optax.GradientTransformation, factors: Mapping[str, float], part_of: Callable[[str], str]
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer with a learning rate for each part of the network, see `rate_factors`.

    Args:
      part_of: gives the part of a top-level module.
    """

    def update(gradients: Any, state: Any, params: Any, **rate: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradients, state, params, **rate)

        def scaled(path: tuple[Any, ...], u: jax.Array) -> jax.Array:
            return factors[part_of(path[0].key)] * u

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def moving_average(average: Any, live: Any, *, decay: float, updates: jax.Array) -> Any:
    """Returns the moving average a <- d * a + (1 - d) * x of a tree, with d = min(decay, (1 + t) / (10 + t)).

    t is the number of `updates` (int32 []) before this one: while they are few, the average follows closely and
    forgets its random start (the warm-up of TensorFlow's ExponentialMovingAverage and of timm's ModelEmaV3).
    """
    t = updates.astype(float)
    d = jnp.minimum(decay, (1 + t) / (10 + t))
    return jax.tree.map(lambda a, x: a + (1 - d) * (x - a), average, live)


def rate_factors(parts: Sequence[str], *, decay: float, scales: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Returns the factor of the learning rate of each part.

    Args:
      parts: from the input to the output.
      decay: factor from each part to the one before it (layer-wise decay: Howard & Ruder 2018, arXiv:1801.06146; Bao et
        al. 2021, arXiv:2106.08254): 1 for the classifier, decay for the last stage, decay**2 for the one before it, ...
      scales: (part, factor) pairs, which go before.
    """
    by_depth = {part: decay**depth for depth, part in enumerate(reversed(parts))}
    return by_depth | {part: float(factor) for part, factor in scales}
