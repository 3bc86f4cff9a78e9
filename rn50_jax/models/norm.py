"""Batch normalization with torch's running statistics, over one device's batch or that of several."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from rn50_jax.models.pool import largest_in_windows, put_back

EPSILON = 1e-5

Statistics = tuple[jax.Array, jax.Array]  # mean and biased variance, in at least float32, [C]


class NormSync(NamedTuple):
    """Which devices' batches are normalized together: all of a mapped axis, or groups of `size` neighbours on it."""

    axis_name: str
    groups: tuple[tuple[int, ...], ...] | None
    size: int


def norm_sync(axis_name: str, num_devices: int, group: int) -> NormSync | None:
    """Returns the groups of `recipe.bn_group`: 1, each device alone (None); 0, all; else so many, a divisor."""
    size = group or num_devices
    if size == 1:
        return None
    starts = range(0, num_devices, size)
    groups = None if size == num_devices else tuple(tuple(range(start, start + size)) for start in starts)
    return NormSync(axis_name, groups, size)


def mean_over(sync: NormSync | None, tree: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Returns the means of [C] arrays over the devices that share statistics."""
    if sync is None:
        return tree
    # Gathered and added in order, not all-reduced: as fast for so few numbers, and the same bits on any machines.
    gathered = lax.all_gather(tree, sync.axis_name, axis_index_groups=sync.groups)
    return tuple(jnp.sum(x, axis=0) / sync.size for x in gathered)


def _two_sums(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sums of two arrays over all axes but the last, in one pass.

    On GPUs as one reduction of pairs, since XLA does not always join two; on CPU that is half as fast as two are.
    """
    axes = tuple(range(a.ndim - 1))

    def pairs(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        zero = jnp.zeros((), a.dtype)
        first, second = lax.reduce((a, b), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), axes)
        return first, second

    def separately(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(a, axis=axes), jnp.sum(b, axis=axes)

    sums: tuple[jax.Array, jax.Array] = lax.platform_dependent(a, b, cpu=separately, default=pairs)
    return sums


def _statistics(x: jax.Array, sync: NormSync | None) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`x` in at least float32; the mean, the biased variance and the inverse of the standard deviation, all [C]."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    count = x.size // x.shape[-1]
    total, squares = _two_sums(wide, jnp.square(wide))
    mean, square = mean_over(sync, (total / count, squares / count))
    var = jnp.maximum(square - jnp.square(mean), 0.0)
    return wide, mean, var, lax.rsqrt(var + EPSILON)


def _input_gradient(
    dy: jax.Array, normalized: jax.Array, factor: jax.Array, sums: tuple[jax.Array, jax.Array], sync: NormSync | None
) -> jax.Array:
    """The gradient of `x`, given that of the result; `sums`: of `dy` and `dy * normalized`, on this device."""
    count = dy.size // dy.shape[-1]
    mean_dy, mean_dy_x = mean_over(sync, (sums[0] / count, sums[1] / count))
    return factor * (dy - mean_dy - normalized * mean_dy_x)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None,
    dtype: jnp.dtype,
    sync: NormSync | None,
    relu: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes with the batch's own statistics (Ioffe & Szegedy 2015, arXiv:1502.03167), adds, applies ReLU.

    The derivative is written out, so that of the activations it keeps only what the convolutions beside it keep
    anyway: `x`, which the one before has written, and with a residual the result, which the one after reads. The
    derived one keeps float32 copies of `x` and a mask for each ReLU. Forward and backward are two passes each over
    `x`: one for two sums, one for the result. With `sync`, gradients of `x` are those of the sum of all devices'
    losses; of `scale` and `bias` only this device's part, to be averaged like all others.

    Args:
      x: [..., C].
      scale, bias: float32 [C].
      residual: [..., C] in `dtype`, added after normalizing; None for nothing.
      dtype: of the result, which is rounded once.
      sync: devices that share statistics.
      relu: whether negative results become 0.

    Returns:
      The result [..., C], and the batch's mean and biased variance [C], in float32 (for float64 input, in that),
      through which no gradient flows.
    """
    return _batch_norm_forward(x, scale, bias, residual, dtype, sync, relu)[0]


def _batch_norm_forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None,
    dtype: jnp.dtype,
    sync: NormSync | None,
    relu: bool,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Any]:
    wide, mean, var, inverse = _statistics(x, sync)
    y = (wide - mean) * (inverse * scale) + bias
    y = add_relu(y, None if residual is None else residual.astype(y.dtype), relu).astype(dtype)
    if residual is not None:
        # XLA may skip rounding between two blocks: it then writes and reads the shortcut once more, in float32.
        y = lax.optimization_barrier(y)
    return (y, mean, var), (x, scale, bias, mean, inverse, None if residual is None else y)


def _batch_norm_backward(
    dtype: jnp.dtype, sync: NormSync | None, relu: bool, kept: Any, gradients: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    x, scale, bias, mean, inverse, result = kept
    factor = inverse * scale
    centered = x.astype(mean.dtype) - mean
    dy = gradients[0]
    if relu:
        # Without a residual, x tells as well as the result what was cut off, and must be read here in any case.
        cut = centered * factor + bias if result is None else result
        dy = jnp.where(cut > 0, dy, 0)
    normalized, wide_dy = centered * inverse, dy.astype(mean.dtype)
    sums = _two_sums(wide_dy, wide_dy * normalized)
    dx = _input_gradient(wide_dy, normalized, factor, sums, sync)
    d_residual = None if result is None else dy
    return dx.astype(x.dtype), sums[1].astype(scale.dtype), sums[0].astype(bias.dtype), d_residual


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm_max_pool(
    x: jax.Array, scale: jax.Array, bias: jax.Array, dtype: jnp.dtype, sync: NormSync | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the stem's `batch_norm` with ReLU and then `max_pool`, without the array between them.

    Normalizing and ReLU never change which value of a channel is larger (or, for a negative scale, smaller). So the
    pooling goes first and the rest is done on a quarter of the pixels; the sums of the backward pass, too, need only
    these. A window whose values become equal by rounding gives its gradient to what was larger before.

    Args:
      x: [B, H, W, C]; the others as in `batch_norm`.

    Returns:
      [B, ceil(H / 2), ceil(W / 2), C] in `dtype`; mean and biased variance of `x`.
    """
    return _batch_norm_max_pool_forward(x, scale, bias, dtype, sync)[0]


def _batch_norm_max_pool_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, dtype: jnp.dtype, sync: NormSync | None
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    wide, mean, var, inverse = _statistics(x, sync)
    sign = jnp.where(scale < 0, -1, 1).astype(wide.dtype)
    largest, index = largest_in_windows(wide * sign)
    top = largest * sign
    y = nn.relu((top - mean) * (inverse * scale) + bias).astype(dtype)
    # Or XLA would keep what it has in float32 already, at twice the size.
    y, top = lax.optimization_barrier((y, top.astype(x.dtype)))
    return (y, mean, var), (x, top, index, scale, bias, mean, inverse)


def _batch_norm_max_pool_backward(
    dtype: jnp.dtype, sync: NormSync | None, kept: tuple[jax.Array, ...], gradients: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, top, index, scale, bias, mean, inverse = kept
    factor = inverse * scale
    centered = top.astype(mean.dtype) - mean
    dy = jnp.where(centered * factor + bias > 0, gradients[0].astype(mean.dtype), 0)
    sums = _two_sums(dy, dy * (centered * inverse))
    normalized = (x.astype(mean.dtype) - mean) * inverse
    dx = _input_gradient(put_back(dy, index, *x.shape[1:3]), normalized, factor, sums, sync)
    return dx.astype(x.dtype), sums[1].astype(scale.dtype), sums[0].astype(bias.dtype)


batch_norm_max_pool.defvjp(_batch_norm_max_pool_forward, _batch_norm_max_pool_backward)


def normalize(
    x: jax.Array, scale: jax.Array | None, bias: jax.Array, statistics: Statistics | None, dtype: jnp.dtype
) -> jax.Array:
    """Normalizes [..., C] with given statistics; without `scale`, adds the bias alone. Returns `dtype`."""
    if scale is None:
        # In the compute type: XLA makes convolution, bias, sum and ReLU one cuDNN call only if all have the same.
        return x + bias.astype(dtype)
    assert statistics is not None
    mean, var = statistics
    return ((x - mean) * (lax.rsqrt(var + EPSILON) * scale) + bias).astype(dtype)


def add_relu(x: jax.Array, residual: jax.Array | None, relu: bool) -> jax.Array:
    """Adds `residual`, if there is one, then applies ReLU, if `relu`."""
    total = x if residual is None else residual + x
    return nn.relu(total) if relu else total
