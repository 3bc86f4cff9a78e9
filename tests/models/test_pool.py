"""The stem's maximum and its derivative, against torch and XLA's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rn50_jax.models.pool import max_pool, mean_pool

LOWERINGS = ("native", "indexed")


def values(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if kind == "relu":
        return np.maximum(x, 0)  # whole windows of zeros
    if kind == "ties":
        return np.round(x)  # a handful of values: several maxima in most windows
    return x


def pooled(x: np.ndarray, weight: np.ndarray, dtype: str, lowering: str) -> tuple[np.ndarray, np.ndarray]:
    y, back = jax.vjp(partial(max_pool, lowering=lowering), jnp.asarray(x, dtype))
    (dx,) = back(jnp.asarray(weight, dtype))
    assert y.dtype == dx.dtype == jnp.dtype(dtype)
    return np.asarray(y, np.float32), np.asarray(dx, np.float32)


# Small integers as gradients: their sums are exact in any order and type, so that a wrong place cannot hide.
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["plain", "relu", "ties"])
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (1, 2), (3, 16)])
def test_it_equals_torch_and_xla(size: tuple[int, int], kind: str, dtype: str) -> None:
    x = values(kind, (3, *size, 5))
    x = np.asarray(jnp.asarray(x, dtype), np.float32)  # what the type can hold, for torch too
    out = tuple((n + 1) // 2 for n in size)
    weight = np.random.default_rng(1).integers(-9, 10, (3, *out, 5)).astype(np.float32)
    leaf = torch.tensor(x.transpose(0, 3, 1, 2).copy(), dtype=getattr(torch, dtype), requires_grad=True)
    wanted = torch.nn.functional.max_pool2d(leaf, 3, 2, padding=1)
    wanted.backward(torch.from_numpy(weight.transpose(0, 3, 1, 2).copy()).to(wanted.dtype))
    assert leaf.grad is not None
    for lowering in LOWERINGS:
        y, dx = pooled(x, weight, dtype, lowering)
        np.testing.assert_array_equal(y, wanted.detach().float().numpy().transpose(0, 2, 3, 1), err_msg=lowering)
        np.testing.assert_array_equal(dx, leaf.grad.float().numpy().transpose(0, 2, 3, 1), err_msg=lowering)


def test_float64_gradients_keep_their_digits() -> None:
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 10, 10, 3)))
        weight = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, 5, 3)))
        gradients = [jax.vjp(partial(max_pool, lowering=name), x)[1](weight)[0] for name in LOWERINGS]
    np.testing.assert_allclose(*gradients, rtol=1e-15)


def test_only_one_byte_per_maximum_is_kept_and_nothing_is_scattered() -> None:
    x = jax.ShapeDtypeStruct((2, 16, 16, 4), jnp.bfloat16)

    def forward(x: jax.Array) -> object:
        return jax.vjp(partial(max_pool, lowering="indexed"), x)[1]

    kept = [v for v in jax.tree.leaves(jax.eval_shape(forward, x)) if v.size]
    assert [(v.shape, str(v.dtype)) for v in kept] == [((2, 8, 8, 4), "uint8")]
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, lowering="indexed").astype(jnp.float32)))
    assert "scatter" not in jax.jit(gradient).lower(x).as_text()


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_not_a_number_reaches_its_windows(lowering: str) -> None:
    x = np.ones((1, 8, 8, 1), np.float32)
    x[0, 3, 3] = np.nan
    y, _ = jax.vjp(partial(max_pool, lowering=lowering), x)
    found = np.isnan(np.asarray(y)[0, :, :, 0])
    wanted = np.zeros((4, 4), bool)
    wanted[1:3, 1:3] = True  # rows and columns 2 to 4 and 3 to 5 hold pixel 3
    np.testing.assert_array_equal(found, wanted)


def test_mean_pool_is_in_float32() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 7, 3)).astype(np.float32)
    means = mean_pool(jnp.asarray(x, jnp.bfloat16))
    assert means.dtype == jnp.float32
    np.testing.assert_allclose(means, np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32).mean((1, 2)), rtol=1e-5)
