"""Pooling: the stem's maximum with a derivative that needs no scatter, and the mean over all pixels."""

import itertools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

_WINDOW = list(itertools.product(range(3), range(3)))  # rows and columns in the order in which torch looks at them


def mean_pool(x: jax.Array) -> jax.Array:
    """Mean over the pixels of [B, H, W, C]: [B, C] in float32 (for float64 input, in that)."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


def max_pool(x: jax.Array, *, lowering: str) -> jax.Array:
    """Maximum over 3x3 windows at stride 2 with a border of one pixel, torch's `MaxPool2d(3, 2, padding=1)`.

    The gradient of each window goes to its maximum, of several equal ones to the first in reading order.

    Args:
      x: [B, H, W, C], not all -inf in any window.
      lowering: "native" keeps `x` and its derivative is XLA's select-and-scatter, which nothing fuses with; "indexed"
        keeps one byte per result, where in its window it stood, and its derivative is a sum of nine elementwise terms.

    Returns:
      [B, ceil(H / 2), ceil(W / 2), C].
    """
    return _indexed_max_pool(x) if lowering == "indexed" else _native_max_pool(x)


def _native_max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


@jax.custom_vjp
def _indexed_max_pool(x: jax.Array) -> jax.Array:
    return _native_max_pool(x)


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    batch, height, width, channels = x.shape
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    padded = jnp.pad(wide, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    ends = [2 * ((size + 1) // 2) - 1 for size in (height, width)]
    largest, index = jnp.array(-jnp.inf, wide.dtype), jnp.array(0, jnp.uint8)
    for number, (row, col) in enumerate(_WINDOW):
        limits = (batch, row + ends[0], col + ends[1], channels)
        value = lax.slice(padded, (0, row, col, 0), limits, (1, 2, 2, 1))
        larger = (value > largest) | jnp.isnan(value)  # as torch: what is not a number wins
        largest, index = jnp.where(larger, value, largest), jnp.where(larger, jnp.uint8(number), index)
    # Of x, only its shape is needed.
    return largest.astype(x.dtype), (index, jnp.zeros((0, height, width, 0), x.dtype))


def _max_pool_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    index, shape = kept
    wide = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    zero = jnp.zeros((), wide.dtype)
    total: jax.Array | None = None
    for number, window in enumerate(_WINDOW):
        part = jnp.where(index == number, wide, zero)
        # Spread to every second pixel and moved to its place in the window; a negative edge cuts off the border.
        edges = [
            (offset - 1, size - (offset - 1) - (2 * count - 1), 1)
            for offset, size, count in zip(window, shape.shape[1:3], index.shape[1:3], strict=True)
        ]
        part = lax.pad(part, zero, [(0, 0, 0), *edges, (0, 0, 0)])
        total = part if total is None else total + part
    assert total is not None
    return (total.astype(gradient.dtype),)


_indexed_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
