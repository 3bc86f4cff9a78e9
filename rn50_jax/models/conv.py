"""Convolutions with torch's symmetric padding, as XLA computes them fastest on each kind of device."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

# Pixels; the train step of 64 px did not get faster on CPU with 16. docs/performance.md
_LARGEST_MATMUL_SIZE = 8


def conv2d(x: jax.Array, kernel: jax.Array, stride: int, *, groups: int = 1, matmul: lax.Precision) -> jax.Array:
    """Convolves in 2-D, zero-padded by (k - 1) // 2 on each side as torch does, also when strided.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C / groups, N], k odd, same dtype as `x`; output channels are ordered by group, as in torch.
      matmul: how matrix units may round float32 inputs.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), N], in the dtype of `x`.
    """
    pad = (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=matmul,
    )


def fast_conv2d(
    x: jax.Array, kernel: jax.Array, stride: int, *, groups: int, matmul: lax.Precision, platform: str
) -> jax.Array:
    """Convolves as `conv2d`, written for XLA otherwise where that is faster: the same sums in another order.

    On a CPU, 1x1 and small 3x3 kernels are one product of the image's patches. On a GPU in bfloat16, an image's three
    channels get a fourth.
    """
    size, channels = kernel.shape[0], x.shape[-1]
    if platform == "cpu" and (size == 1 or (size == 3 and max(x.shape[1:3]) <= _LARGEST_MATMUL_SIZE)):
        return _patch_matmul(x, kernel, stride, groups, matmul)
    if platform == "gpu" and x.dtype == jnp.bfloat16 and channels < 4:
        # cuDNN has kernels for four channels, none for three. XLA pads by itself in float16 alone
        # (`cudnn_pad_for_convolutions`).
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 4 - channels)))
        kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 4 - channels), (0, 0)))
    return conv2d(x, kernel, stride, groups=groups, matmul=matmul)


def _patch_matmul(x: jax.Array, kernel: jax.Array, stride: int, groups: int, matmul: lax.Precision) -> jax.Array:
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
        y = jnp.dot(patches.reshape(pixels, -1), kernel.reshape(-1, features), precision=matmul)
    else:
        patches = patches.reshape(pixels, len(windows), groups, channels)
        kernel = kernel.reshape(len(windows), channels, groups, features // groups)
        y = jnp.einsum("ptgc,tcgf->pgf", patches, kernel, precision=matmul)
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
