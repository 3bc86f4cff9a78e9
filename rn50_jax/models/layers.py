"""The layers of a network that are not convolutions: linear layers, pooling, sums."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from rn50_jax.models import pool
from rn50_jax.models.norm import add_relu

ACTIVATIONS = {"": lambda x: x, "relu": nn.relu, "sigmoid": nn.sigmoid}


class Linear(nn.Module):
    """Float32 linear layer, parameters `kernel` [C, features] and `bias` [features]; `activation`: of `ACTIVATIONS`."""

    features: int
    activation: str = ""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [B, features] of [B, C]."""
        kernel = self.param("kernel", nn.initializers.zeros, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        with jax.named_scope("linear"):
            y = jnp.dot(x, kernel, precision=lax.Precision.HIGHEST) + bias
            return ACTIVATIONS[self.activation](y)


class MeanPool(nn.Module):
    """The mean over all pixels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns float32 [B, C] of [B, H, W, C]."""
        return pool.mean_pool(x)


class AveragePool(nn.Module):
    """The means of 2x2 windows, see `pool.average_pool`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [B, ceil(H / 2), ceil(W / 2), C] of [B, H, W, C]."""
        return pool.average_pool(x)


class Gate(nn.Module):
    """Channels times their gates."""

    @nn.compact
    def __call__(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        """Returns `x` [B, H, W, C] times `gate` [B, C], in the dtype of `x`."""
        return x * gate[:, None, None, :].astype(x.dtype)


class AddRelu(nn.Module):
    """The shortcut's sum where something stands between it and the last convolution."""

    @nn.compact
    def __call__(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        """Returns max(x + residual, 0)."""
        return add_relu(x, residual, relu=True)
