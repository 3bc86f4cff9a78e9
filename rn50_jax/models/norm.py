"""Batch normalisation with torch's running statistics, over one device's batch or that of several."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

MOMENTUM = 0.9  # weight of the old running average; torch calls its complement, 0.1, the momentum
EPSILON = 1e-5


class NormSync(NamedTuple):
    """Which devices' batches are normalised together: all of a mapped axis, or groups of `size` neighbours on it."""

    axis_name: str
    groups: tuple[tuple[int, ...], ...] | None
    size: int


def norm_sync(axis_name: str, num_devices: int, group: int) -> NormSync | None:
    """The groups of `recipe.bn_group`: 1, each device alone (None); 0, all; else that many, a divisor of all."""
    size = group or num_devices
    if size == 1:
        return None
    starts = range(0, num_devices, size)
    groups = None if size == num_devices else tuple(tuple(range(start, start + size)) for start in starts)
    return NormSync(axis_name, groups, size)


def _mean_over(sync: NormSync | None, tree: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    if sync is None:
        return tree
    # Gathered and added in order, not all-reduced: as fast for so few numbers, and the same bits on any machines.
    gathered = lax.all_gather(tree, sync.axis_name, axis_index_groups=sync.groups)
    return tuple(jnp.sum(x, axis=0) / sync.size for x in gathered)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, dtype: jnp.dtype, sync: NormSync | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises with the batch's own statistics (Ioffe & Szegedy 2015, arXiv:1502.03167).

    The derivative is written out: of the activations it keeps `x` alone, in its own dtype, where the derived one
    keeps float32 copies. With `sync`, gradients of `x` are those of the sum of all devices' losses; of `scale` and
    `bias` only this device's part, to be averaged like all others.

    Args:
      x: [..., C].
      scale, bias: float32 [C].
      dtype: of the result.
      sync: devices that share statistics.

    Returns:
      The result [..., C], and the batch's mean and biased variance [C], in float32 (for float64 input, in that),
      through which no gradient flows.
    """
    return _batch_norm_forward(x, scale, bias, dtype, sync)[0]


def _batch_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, dtype: jnp.dtype, sync: NormSync | None
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean, square = _mean_over(sync, (jnp.mean(wide, axis=axes), jnp.mean(jnp.square(wide), axis=axes)))
    var = jnp.maximum(square - jnp.square(mean), 0.0)
    inverse = lax.rsqrt(var + EPSILON)
    y = ((wide - mean) * (inverse * scale) + bias).astype(dtype)
    return (y, mean, var), (x, scale, mean, inverse)


def _batch_norm_backward(
    dtype: jnp.dtype, sync: NormSync | None, kept: tuple[jax.Array, ...], gradients: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, mean, inverse = kept
    wide = x.astype(mean.dtype)
    dy = gradients[0].astype(mean.dtype)
    axes = tuple(range(x.ndim - 1))
    normalised = (wide - mean) * inverse
    sum_dy, sum_dy_x = jnp.sum(dy, axis=axes), jnp.sum(dy * normalised, axis=axes)
    count = x.size // x.shape[-1]
    mean_dy, mean_dy_x = _mean_over(sync, (sum_dy / count, sum_dy_x / count))
    dx = (inverse * scale) * (dy - mean_dy - normalised * mean_dy_x)
    return dx.astype(x.dtype), sum_dy_x.astype(scale.dtype), sum_dy.astype(scale.dtype)


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def add_relu(x: jax.Array, residual: jax.Array | None, relu: bool) -> jax.Array:
    """What may follow a BatchNorm: the shortcut is added, negative values become 0."""
    total = x if residual is None else residual + x
    return nn.relu(total) if relu else total


class FoldedNorm(nn.Module):
    """Stands where a BatchNorm was folded into the convolution before it: only what may follow is left."""

    def __call__(self, x: jax.Array, residual: jax.Array | None = None, *, relu: bool = False) -> jax.Array:
        """As `BatchNorm`, without normalising."""
        return add_relu(x, residual, relu)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last.

    Parameters `scale` and `bias`, running averages `mean` and `var` (collection `batch_stats`), all float32 [C].
    Statistics are those of the device's own batch, or with `sync` of its group's, computed in float32.

    As torch, and unlike `flax.linen.BatchNorm`, the running `var` averages the unbiased batch variance
    (n / (n - 1) times the biased one that normalises the batch), so that weights travel both ways unchanged.
    """

    use_running_average: bool
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    sync: NormSync | None = None

    @nn.compact
    def __call__(self, x: jax.Array, residual: jax.Array | None = None, *, relu: bool = False) -> jax.Array:
        """Normalises, adds, cuts off what is negative: max(BN(x) + residual, 0).

        Args:
          x: [B, H, W, C] of any float type.
          residual: [B, H, W, C] in `dtype`; None to add nothing.
          relu: False for the sum as it is.

        Returns:
          [B, H, W, C] in `dtype`.
        """
        return add_relu(self._normalise(x), residual, relu)

    def _normalise(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if self.use_running_average:
            mean, var = running_mean.value, running_var.value
            return ((x - mean) * (lax.rsqrt(var + EPSILON) * scale) + bias).astype(self.dtype)
        y, mean, var = batch_norm(x, scale, bias, self.dtype, self.sync)
        if not self.is_initializing():
            count = x.size // channels * (self.sync.size if self.sync else 1)
            unbiased = var * (count / max(count - 1, 1))
            running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
            running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * unbiased
        return y
