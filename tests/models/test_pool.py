"""The stem's maximum, its parts that stand in for a scatter, and the means, against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rn50_jax.models.pool import average_pool, largest_in_windows, max_pool, mean_pool, put_back


def values(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if kind == "relu":
        return np.maximum(x, 0)  # whole windows of zeros
    if kind == "ties":
        return np.round(x)  # a handful of values: several maxima in most windows
    return x


def whole(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maxima and the gradient of their weighted sum, of which JAX makes a scatter."""
    y, back = jax.vjp(max_pool, x)
    return y, back(weight)[0]


def in_parts(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same by the places of the maxima."""
    y, index = largest_in_windows(x)
    assert index.dtype == jnp.uint8
    return y, put_back(weight, index, *x.shape[1:3])


BOTH = [whole, in_parts]


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.detach().float().numpy().transpose(0, 2, 3, 1)


# Small integers as gradients: their sums are exact in any order and type, so that a wrong place cannot hide.
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["plain", "relu", "ties"])
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (1, 2), (3, 16)])
def test_the_maximum_equals_torch(size: tuple[int, int], kind: str, dtype: str) -> None:
    x = jnp.asarray(values(kind, (3, *size, 5)), dtype)
    out = tuple((n + 1) // 2 for n in size)
    weight = np.random.default_rng(1).integers(-9, 10, (3, *out, 5)).astype(np.float32)
    leaf = nchw(np.asarray(x, np.float32)).to(getattr(torch, dtype)).requires_grad_()
    wanted = torch.nn.functional.max_pool2d(leaf, 3, 2, padding=1)
    wanted.backward(nchw(weight).to(wanted.dtype))
    assert leaf.grad is not None
    for function in BOTH:
        y, dx = function(x, jnp.asarray(weight, dtype))
        assert y.dtype == dx.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(np.asarray(y, np.float32), nhwc(wanted), err_msg=function.__name__)
        np.testing.assert_array_equal(np.asarray(dx, np.float32), nhwc(leaf.grad), err_msg=function.__name__)


def test_float64_gradients_keep_their_digits() -> None:
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 10, 10, 3)))
        weight = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, 5, 3)))
        gradients = [function(x, weight)[1] for function in BOTH]
    np.testing.assert_allclose(*gradients, rtol=1e-15)


def test_in_parts_nothing_is_scattered() -> None:
    x, weight = jnp.zeros((2, 16, 16, 4)), jnp.zeros((2, 8, 8, 4))
    assert ["scatter" in jax.jit(function).lower(x, weight).as_text() for function in BOTH] == [True, False]


@pytest.mark.parametrize("function", BOTH)
def test_not_a_number_reaches_its_windows(function: object) -> None:
    assert callable(function)
    x = np.ones((1, 8, 8, 1), np.float32)
    x[0, 3, 3] = np.nan
    y, _ = function(jnp.asarray(x), jnp.ones((1, 4, 4, 1)))
    wanted = np.zeros((4, 4), bool)
    wanted[1:3, 1:3] = True  # rows and columns 2 to 4 and 3 to 5 hold pixel 3
    np.testing.assert_array_equal(np.isnan(np.asarray(y)[0, :, :, 0]), wanted)


def test_mean_pool_is_in_float32() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 7, 3)).astype(np.float32)
    means = mean_pool(jnp.asarray(x, jnp.bfloat16))
    assert means.dtype == jnp.float32
    np.testing.assert_allclose(means, np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32).mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 3)])
def test_the_average_equals_torch(size: tuple[int, int]) -> None:
    x = values("plain", (2, *size, 3))
    y, back = jax.vjp(average_pool, jnp.asarray(x))
    leaf = nchw(x).requires_grad_()
    wanted = torch.nn.functional.avg_pool2d(leaf, 2, 2, ceil_mode=True, count_include_pad=False)
    weight = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    wanted.backward(nchw(weight))
    assert leaf.grad is not None
    np.testing.assert_allclose(y, nhwc(wanted), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(back(jnp.asarray(weight))[0], nhwc(leaf.grad), rtol=1e-6, atol=1e-6)
