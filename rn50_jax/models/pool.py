"""Pooling: maximum and means; and the parts of a maximum whose derivative needs no scatter."""

import itertools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

_WINDOW = list(itertools.product(range(3), range(3)))  # rows and columns in the order in which torch looks at them


@jax.named_scope("pool")
def mean_pool(x: jax.Array) -> jax.Array:
    """Averages over the pixels of [B, H, W, C]: [B, C] in float32 (for float64 input, in that)."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


@jax.named_scope("pool")
def average_pool(x: jax.Array) -> jax.Array:
    """Averages over 2x2 windows at stride 2: [B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), C], in the dtype of `x`.

    At an odd edge over those pixels that there are: torch's `AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)`.
    """
    edges = ((0, x.shape[1] % 2), (0, x.shape[2] % 2))
    return nn.avg_pool(x, (2, 2), strides=(2, 2), padding=edges, count_include_pad=False)


@jax.named_scope("pool")
def max_pool(x: jax.Array) -> jax.Array:
    """Takes the maximum over 3x3 windows at stride 2 with a border of one pixel, torch's `MaxPool2d(3, 2, padding=1)`.

    The gradient of each window goes to its maximum, of several equal ones to the first in reading order. XLA computes
    it as a select-and-scatter, which nothing fuses with: in training, `norm.batch_norm_max_pool` is faster.

    Args:
      x: [B, H, W, C], not all -inf in any window.

    Returns:
      [B, ceil(H / 2), ceil(W / 2), C].
    """
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


@jax.named_scope("pool")
def largest_in_windows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the maximum of each window of [B, H, W, C] and its first place in it, in reading order: uint8, 0 to 8.

    Elementwise over nine shifted views, so that XLA can compute `x` in the same kernel. As in torch, the last of what
    is not a number wins.
    """
    batch, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    ends = [2 * ((size + 1) // 2) - 1 for size in (height, width)]
    largest, index = jnp.array(-jnp.inf, x.dtype), jnp.array(0, jnp.uint8)
    for number, (row, col) in enumerate(_WINDOW):
        limits = (batch, row + ends[0], col + ends[1], channels)
        value = lax.slice(padded, (0, row, col, 0), limits, (1, 2, 2, 1))
        larger = (value > largest) | jnp.isnan(value)
        largest, index = jnp.where(larger, value, largest), jnp.where(larger, jnp.uint8(number), index)
    return largest, index


@jax.named_scope("pool")
def put_back(values: jax.Array, index: jax.Array, height: int, width: int) -> jax.Array:
    """Returns the sums, [B, height, width, C], that the windows' places `index` get of `values` [B, H', W', C], float.

    Elementwise too, over nine views with a gap after each value.
    """
    zero = jnp.zeros((), values.dtype)
    total: jax.Array | None = None
    for number, window in enumerate(_WINDOW):
        # The first row and column of a window may lie in the border: a negative edge cuts that off.
        edges = [
            (offset - 1, size - (offset - 1) - (2 * count - 1), 1)
            for offset, size, count in zip(window, (height, width), index.shape[1:3], strict=True)
        ]
        part = lax.pad(jnp.where(index == number, values, zero), zero, [(0, 0, 0), *edges, (0, 0, 0)])
        total = part if total is None else total + part
    assert total is not None
    return total
