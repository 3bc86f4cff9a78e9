"""Convolution with torch's symmetric padding and a choice of lowering."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

# The reference's names (`--model-config`) for the fan of He's initialisation; its grp-* do as their plain namesakes.
INITS = {"classic": "fan_out", "fanin": "fan_in", "grp-fanin": "fan_in", "grp-fanout": "fan_out"}

# Pixels: on larger images XLA's own 3x3 convolution is as fast on CPU, or faster.
_LARGEST_MATMUL_SIZE = 16


def conv2d(
    x: jax.Array, kernel: jax.Array, stride: int, *, groups: int = 1, lowering: str, precision: lax.Precision
) -> jax.Array:
    """2-D convolution, zero-padded by (k - 1) // 2 on each side as torch does, also when strided.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C / groups, N], k odd, same dtype as `x`; output channels are ordered by group, as in torch.
      lowering: "native" hands XLA a convolution; "matmul" writes 1x1 as one and small 3x3 as nine
        shifted matrix products, 2-3 times faster on CPU. Both compute the same sums in another order.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), N], in the dtype of `x`.
    """
    size = kernel.shape[0]
    if lowering == "matmul" and (size == 1 or (size == 3 and x.shape[1] <= _LARGEST_MATMUL_SIZE)):
        return _shifted_matmuls(x, kernel, stride, groups, precision)
    pad = (size - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=precision,
    )


def _shifted_matmuls(x: jax.Array, kernel: jax.Array, stride: int, groups: int, precision: lax.Precision) -> jax.Array:
    size, _, channels, features = kernel.shape
    pad = (size - 1) // 2
    batch, height, width, _ = x.shape
    out_height, out_width = -(-height // stride), -(-width // stride)
    pixels = batch * out_height * out_width
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    total = jnp.zeros((pixels, features), x.dtype)
    for row in range(size):
        for col in range(size):
            last = (row + (out_height - 1) * stride + 1, col + (out_width - 1) * stride + 1)
            window = lax.slice(x, (0, row, col, 0), (batch, *last, x.shape[3]), (1, stride, stride, 1))
            if groups == 1:
                total += jnp.dot(window.reshape(pixels, channels), kernel[row, col], precision=precision)
                continue
            inputs = window.reshape(pixels, groups, channels)
            weights = kernel[row, col].reshape(channels, groups, features // groups)
            total += jnp.einsum("pgc,cgf->pgf", inputs, weights, precision=precision).reshape(pixels, features)
    return total.reshape(batch, out_height, out_width, features)


class Conv(nn.Module):
    """Convolution, parameter `kernel` [k, k, C / groups, features] float32, and with `bias` also `bias` [features].

    Initialised from the un-truncated normal N(0, 2 / fan) (He et al. 2015; torch `kaiming_normal_`), with
    fan_in = k * k * C / groups or fan_out = k * k * features, as `fan` says.
    """

    features: int
    size: int
    stride: int = 1
    groups: int = 1
    bias: bool = False
    fan: str = "fan_in"
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    precision: lax.Precision = lax.Precision.DEFAULT
    lowering: str = "native"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.variance_scaling(2.0, self.fan, "normal")
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", init, shape, jnp.float32)
        y = conv2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            self.stride,
            groups=self.groups,
            lowering=self.lowering,
            precision=self.precision,
        )
        if self.bias:
            # In the compute type: XLA makes convolution, bias, sum and ReLU one cuDNN call only if all have the same.
            y += self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return y
