"""Convolution with torch's symmetric padding and a choice of lowering."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

# The reference's names (`--model-config`) for the fan of He's initialization; its grp-* do as their plain namesakes.
INITS = {"classic": "fan_out", "fanin": "fan_in", "grp-fanin": "fan_in", "grp-fanout": "fan_out"}

# Pixels; the train step of 64 px did not get faster on CPU with 16. docs/performance.md
_LARGEST_MATMUL_SIZE = 8

LOWERINGS = ("native", "matmul", "dot1x1")
STEMS = ("conv", "padded", "space_to_depth")


def conv2d(
    x: jax.Array, kernel: jax.Array, stride: int, *, groups: int = 1, lowering: str, precision: lax.Precision
) -> jax.Array:
    """Convolves in 2-D, zero-padded by (k - 1) // 2 on each side as torch does, also when strided.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C / groups, N], k odd, same dtype as `x`; output channels are ordered by group, as in torch.
      lowering: how it is written for XLA; all compute the same sums in another order.
        "native": a convolution. "dot1x1": 1x1 as one matrix product, in whose kernel XLA on GPUs can compute what is
        elementwise before and after. "matmul": also small 3x3, as a product of its patches; for CPU.
        "padded" and "space_to_depth" are for few channels C, see below; ungrouped.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), N], in the dtype of `x`.
    """
    size = kernel.shape[0]
    if lowering == "matmul" and (size == 1 or (size == 3 and x.shape[1] <= _LARGEST_MATMUL_SIZE)):
        return _patch_matmul(x, kernel, stride, groups, precision)
    if lowering == "dot1x1" and size == groups == 1:
        return _patch_matmul(x, kernel, stride, groups, precision)
    if lowering == "space_to_depth" and stride == 2 and size % 4 == 3:
        return _space_to_depth(x, kernel, precision)
    pad = (size - 1) // 2
    if lowering == "padded":
        # Up to a multiple of four channels: cuDNN has kernels for four, none for an image's three. XLA does so by
        # itself in float16 alone (`cudnn_pad_for_convolutions`).
        missing = -x.shape[-1] % 4
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))
        kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, missing), (0, 0)))
    return _convolve(x, kernel, stride, (pad, pad), groups, precision)


def _convolve(
    x: jax.Array, kernel: jax.Array, stride: int, pad: tuple[int, int], groups: int, precision: lax.Precision
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=(pad, pad),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=precision,
    )


def _space_to_depth(x: jax.Array, kernel: jax.Array, precision: lax.Precision) -> jax.Array:
    """A k x k convolution at stride 2 as one of half the size at stride 1, of 2x2 pixels with all their channels.

    The kernel gets a row and a column of zeros in front: k + 1 is even. Images of odd size get a border of zeros.
    """
    x = _to_depth(jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0))))
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    kernel = _to_depth(kernel.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)
    before = kernel.shape[0] // 2  # the outermost tap stands two of these larger pixels before the centre
    return _convolve(x, kernel, 1, (before, before - 1), 1, precision)


def _to_depth(x: jax.Array) -> jax.Array:
    """[N, H, W, C] to [N, H / 2, W / 2, 4 * C]."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(count, height // 2, width // 2, 4 * channels)


def _patch_matmul(x: jax.Array, kernel: jax.Array, stride: int, groups: int, precision: lax.Precision) -> jax.Array:
    """One product of all patches (im2col) with the kernel, without the taps that see nothing but padding."""
    size, _, channels, features = kernel.shape
    pad = (size - 1) // 2
    batch, height, width, _ = x.shape
    out_height, out_width = -(-height // stride), -(-width // stride)
    pixels = batch * out_height * out_width
    rows, cols = _taps_on_pixels(size, height, stride), _taps_on_pixels(size, width, stride)
    kernel = kernel[rows.start : rows.stop, cols.start : cols.stop]
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = []
    for row in rows:
        for col in cols:
            last = (row + (out_height - 1) * stride + 1, col + (out_width - 1) * stride + 1)
            windows.append(lax.slice(x, (0, row, col, 0), (batch, *last, x.shape[3]), (1, stride, stride, 1)))
    patches = jnp.concatenate(windows, axis=3)
    if groups == 1:
        y = jnp.dot(patches.reshape(pixels, -1), kernel.reshape(-1, features), precision=precision)
    else:
        patches = patches.reshape(pixels, len(windows), groups, channels)
        kernel = kernel.reshape(len(windows), channels, groups, features // groups)
        y = jnp.einsum("ptgc,tcgf->pgf", patches, kernel, precision=precision)
    return y.reshape(batch, out_height, out_width, features)


def _taps_on_pixels(size: int, pixels: int, stride: int) -> range:
    """The rows (or columns) of a kernel that meet a pixel anywhere: of a 3x3 on a single pixel, the middle one."""
    pad = (size - 1) // 2
    last_start = (-(-pixels // stride) - 1) * stride
    return range(max(0, pad - last_start), min(size, pixels + pad))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def cast_kernel(kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns `kernel.astype(dtype)`; its gradient comes back in the order of the parameter.

    cuDNN gives a kernel's gradient with the input channels last. Left alone, XLA on GPUs carries that order through
    the whole update, and then must copy parameters and momentum back: a quarter more traffic than to turn the gradient.
    """
    return kernel.astype(dtype)


def _cast_kernel_forward(kernel: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    return kernel.astype(dtype), jnp.zeros((0,), kernel.dtype)


def _cast_kernel_backward(dtype: jnp.dtype, kept: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    flat = lax.optimization_barrier(gradient.reshape(-1))
    return (flat.reshape(gradient.shape).astype(kept.dtype),)


cast_kernel.defvjp(_cast_kernel_forward, _cast_kernel_backward)


class Conv(nn.Module):
    """Convolution, parameter `kernel` [k, k, C / groups, features] float32, and with `bias` also `bias` [features].

    With `packed`, `kernel` is [features, k, k, C / groups], as cuDNN reads it, and both may be in `dtype` already.
    """

    features: int
    size: int
    stride: int = 1
    groups: int = 1
    bias: bool = False
    packed: bool = False
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    precision: lax.Precision = lax.Precision.DEFAULT
    lowering: str = "native"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        if self.packed:
            shape = (shape[3], *shape[:3])
        kernel = self.param("kernel", nn.initializers.zeros, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32) if self.bias else None
        if self.is_initializing():  # shapes are enough, and tracing the rest would take as long as tracing a step
            height, width = (-(-pixels // self.stride) for pixels in x.shape[1:3])
            return jnp.zeros((x.shape[0], height, width, self.features), self.dtype)
        if self.packed:
            kernel = kernel.transpose(1, 2, 3, 0)
        y = conv2d(
            x.astype(self.dtype),
            cast_kernel(kernel, self.dtype),
            self.stride,
            groups=self.groups,
            lowering=self.lowering,
            precision=self.precision,
        )
        if bias is not None:
            # In the compute type: XLA makes convolution, bias, sum and ReLU one cuDNN call only if all have the same.
            y += bias.astype(self.dtype)
        return y
