"""Batch normalisation with torch's running statistics."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

MOMENTUM = 0.9  # weight of the old running average; torch calls its complement, 0.1, the momentum
EPSILON = 1e-5


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015, arXiv:1502.03167).

    Parameters `scale` and `bias`, running averages `mean` and `var` (collection `batch_stats`), all float32 [C].
    Statistics are those of the device's own batch, computed in float32 (for float64 input, in that).

    As torch, and unlike `flax.linen.BatchNorm`, the running `var` averages the unbiased batch variance
    (n / (n - 1) times the biased one that normalises the batch), so that weights travel both ways unchanged.
    """

    use_running_average: bool
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [B, H, W, C] of any float type; returns the same shape in `dtype`."""
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if self.use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            mean = jnp.mean(wide, axis=(0, 1, 2))
            var = jnp.maximum(jnp.mean(jnp.square(wide), axis=(0, 1, 2)) - jnp.square(mean), 0.0)
            if not self.is_initializing():
                count = x.size // channels
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
                running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * unbiased
        return ((x - mean) * (lax.rsqrt(var + EPSILON) * scale) + bias).astype(self.dtype)
