"""The best that the device can do, timed in the same run: a large matrix product and a copy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rn50_jax.bench.timing import time_single
from rn50_jax.models.compute import PRECISIONS

# Sides of the matrices and bytes of the array, by platform; far beyond the caches.
_SIDES = {"cpu": (512, 1024), "gpu": (4096, 8192)}
_BYTES = {"cpu": 2**26, "gpu": 2**30}


class Ceiling(NamedTuple):
    """The fastest repetition of each: a matrix product in the precision, and a copy, bytes read and written counted."""

    tflops: float
    gbytes_per_second: float


def measure_ceiling(
    device: jax.Device, precision: str, *, sides: tuple[int, ...] = (), nbytes: int = 0, repeats: int = 12
) -> Ceiling:
    """Times both on one device, on random numbers.

    Args:
      precision: a key of `compute.PRECISIONS`.
      sides: of the square matrices, of which the fastest counts; nbytes: of the array. By default large ones.
    """
    dtype, matmul = PRECISIONS[precision][:2]
    rng = np.random.default_rng(0)
    best = 0.0
    multiply = jax.jit(lambda a, b: jnp.dot(a, b, precision=matmul))
    for side in sides or _SIDES[device.platform]:
        numbers = rng.standard_normal((2, side, side), np.float32)
        a, b = (jax.device_put(x.astype(dtype), device) for x in numbers)
        best = max(best, 2 * side**3 / _fastest(multiply, a, b, repeats=repeats))
    width = 2**10
    rows = (nbytes or _BYTES[device.platform]) // (width * dtype.itemsize)
    row = jax.device_put(rng.standard_normal((1, width), np.float32).astype(dtype), device)
    array = jax.jit(lambda x: jnp.tile(x, (rows, 1)))(row)
    copied = _fastest(jax.jit(jnp.copy), array, repeats=repeats)
    return Ceiling(tflops=best / 1e12, gbytes_per_second=2 * array.nbytes / copied / 1e9)


def _fastest(function: Callable[..., jax.Array], *args: Any, repeats: int) -> float:
    time_single(lambda: function(*args), 2)
    return min(time_single(lambda: function(*args), repeats))
