"""Convolutions as they are written for each kind of device, against PyTorch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rn50_jax.models.conv import conv2d, fast_conv2d

HIGHEST = jax.lax.Precision.HIGHEST
WAYS = {
    "plain": partial(conv2d, matmul=HIGHEST),
    "cpu": partial(fast_conv2d, matmul=HIGHEST, platform="cpu"),
    "gpu": partial(fast_conv2d, matmul=HIGHEST, platform="gpu"),
}


def torch_conv(x: np.ndarray, k: np.ndarray, weight: np.ndarray, stride: int, groups: int) -> list[np.ndarray]:
    """The result, and the gradients of its sum times `weight` by `x` and `k`; all in our layout."""
    leaves = [torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)]
    leaves += [torch.tensor(k.transpose(3, 2, 0, 1).copy(), requires_grad=True)]
    y = torch.nn.functional.conv2d(*leaves, stride=stride, padding=k.shape[0] // 2, groups=groups)
    y.backward(torch.from_numpy(weight.transpose(0, 3, 1, 2).copy()))
    assert leaves[0].grad is not None and leaves[1].grad is not None
    found = ((y, (0, 2, 3, 1)), (leaves[0].grad, (0, 2, 3, 1)), (leaves[1].grad, (2, 3, 1, 0)))
    return [tensor.detach().numpy().transpose(axes) for tensor, axes in found]


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "groups"),
    [(1, 1, 8, 1), (1, 2, 9, 1), (3, 1, 7, 1), (3, 2, 8, 1), (3, 2, 1, 1), (7, 2, 9, 1), (3, 1, 7, 3), (3, 2, 8, 3)],
)
def test_every_way_equals_torch(kernel: int, stride: int, size: int, groups: int) -> None:
    rng, out = np.random.default_rng(0), -(-size // stride)
    x, weight = rng.standard_normal((2, size, size, 9)), rng.standard_normal((2, out, out, 6))
    k = rng.standard_normal((kernel, kernel, 9 // groups, 6))
    wanted = torch_conv(x, k, weight, stride, groups)
    with jax.enable_x64(True):
        for way, conv in WAYS.items():
            y, back = jax.vjp(partial(conv, stride=stride, groups=groups), x, k)
            for found, value in zip((y, *back(weight)), wanted, strict=True):
                np.testing.assert_allclose(found, value, rtol=1e-10, atol=1e-11, err_msg=way)


# Small whole numbers, whose sums are exact in float32: however it is computed, only the last rounding is left.
@pytest.mark.parametrize("size", [32, 33, (40, 31), 224])
def test_the_image_with_a_fourth_channel_gives_the_same(size: int | tuple[int, int]) -> None:
    shape = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(0)
    x, k = rng.integers(-2, 3, (1, *shape, 3)), rng.integers(-1, 2, (7, 7, 3, 8))
    weight = rng.integers(-2, 3, (1, *((n + 1) // 2 for n in shape), 8))
    wanted = torch_conv(*(v.astype(np.float32) for v in (x, k, weight)), 2, 1)
    conv = partial(WAYS["gpu"], stride=2, groups=1)
    image, kernel, gradient = (jnp.asarray(v, jnp.bfloat16) for v in (x, k, weight))
    assert "7x7x4x8xbf16" in jax.jit(conv).lower(image, kernel).as_text()
    y, back = jax.vjp(conv, image, kernel)
    for found, value in zip((y, *back(gradient)), wanted, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, jnp.asarray(value, jnp.bfloat16))
