"""Convolution and what follows it: BatchNorm, the shortcut's sum, ReLU, pooling. The seam where kernels are put in.

`ConvNorm` owns the parameters and the running statistics; `conv_norm` computes, by one of `IMPLS`: `plain` to be read,
`xla` to be fast.
"""

from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from rn50_jax.models.compute import PRECISIONS, Compute
from rn50_jax.models.norm import Statistics
from rn50_jax.models.plain import plain
from rn50_jax.models.xla import xla

MOMENTUM = 0.9  # weight of the old running average; torch calls its complement, 0.1, the momentum


class Implementation(Protocol):
    """A function that computes `conv_norm`, see there."""

    def __call__(
        self,
        x: jax.Array,
        kernel: jax.Array,
        scale: jax.Array | None,
        bias: jax.Array,
        residual: jax.Array | None,
        running: Statistics | None,
        *,
        stride: int,
        groups: int,
        relu: bool,
        pool: bool,
        compute: Compute,
    ) -> tuple[jax.Array, Statistics | None]: ...


# A faster one is a function in a file of its own, a line here, and a name in `compute.impl`.
IMPLS: dict[str, Implementation] = {"xla": xla, "plain": plain}


def conv_norm(
    x: jax.Array,
    kernel: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array,
    residual: jax.Array | None = None,
    running: Statistics | None = None,
    *,
    stride: int = 1,
    groups: int = 1,
    relu: bool = False,
    pool: bool = False,
    compute: Compute,
) -> tuple[jax.Array, Statistics | None]:
    """Convolves, normalizes, adds the shortcut, applies ReLU and pools, in this order: a pure function.

    With all of them, max_pool(max(BN(conv(x, kernel)) + residual, 0)), see `pool.max_pool`. BatchNorm (Ioffe & Szegedy
    2015, arXiv:1502.03167) is (y - mean) / sqrt(var + 1e-5) * scale + bias for each channel, in at least float32. With
    `compute.sync`, statistics are those of all devices of a group; gradients of `x` are then of the sum of all their
    losses, of `scale` and `bias` only this device's part, to be averaged like all others.

    Args:
      x: [B, H, W, C] of any float type.
      kernel: [k, k, C / groups, N], padded by (k - 1) // 2 on each side.
      scale, bias: [N]. Without `scale` there is no BatchNorm, only the bias (see `fold`).
      residual: [B, ceil(H / stride), ceil(W / stride), N] in `compute.dtype`; None to add nothing.
      running: mean and variance [N] to normalize with; None for those of the batch.
      relu: False for the sum as it is. pool: whether the maximum over 3x3 windows at stride 2 follows.

    Returns:
      The result in `compute.dtype`; and the statistics that were used: of the batch, in at least float32 and with the
      biased variance, or `running`, or without `scale` None. No gradient flows through them.
    """
    implementation = IMPLS[compute.impl]
    options: dict[str, Any] = {"stride": stride, "groups": groups, "relu": relu, "pool": pool}
    return implementation(x, kernel, scale, bias, residual, running, **options, compute=compute)


class ConvNorm(nn.Module):
    """A convolution with its BatchNorm, and what follows them: see `conv_norm`.

    Parameter `kernel` [size, size, C / groups, features]; beside it, in the submodule `norm` of the module that this
    one is in, `scale` and `bias` and the running averages `mean` and `var` (collection `batch_stats`), all float32
    [features]. So names and places are those of torch's two modules. Instead of these there may be `kernel` and `bias`
    alone, as `fold.fold` makes them, or `packed` [features, size, size, C / groups] and `bias`, see `fold.pack`.

    As torch, and unlike `flax.linen.BatchNorm`, the running `var` averages the unbiased batch variance (n / (n - 1)
    times the biased one that normalizes the batch), so that weights travel both ways unchanged.

    norm: name of the BatchNorm; "" for a submodule of this one. train: whether the batch's own statistics are used.
    fan, zero_scale: of the initial values, which `initial.initial_variables` draws; `init` gives zeros.
    """

    features: int
    size: int
    stride: int = 1
    groups: int = 1
    relu: bool = False
    pool: bool = False
    norm: str = ""
    fan: str = "fan_in"
    zero_scale: bool = False
    train: bool = False
    compute: Compute = PRECISIONS["fp32"]

    @nn.compact
    def __call__(self, x: jax.Array, residual: jax.Array | None = None) -> jax.Array:
        """Returns [B, H', W', features] in `compute.dtype`, see `conv_norm`."""
        if self.size % 2 == 0:
            raise ValueError(f"ConvNorm has kernels of odd sizes, not {self.size}")
        call = partial(
            conv_norm,
            x,
            stride=self.stride,
            groups=self.groups,
            relu=self.relu,
            pool=self.pool,
            compute=self.compute,
        )
        if self.has_variable("params", "bias"):  # folded
            packed = self.has_variable("params", "packed")
            kernel = self.get_variable("params", "packed" if packed else "kernel")
            kernel = kernel.transpose(1, 2, 3, 0) if packed else kernel
            bias = self.get_variable("params", "bias")
            return call(kernel, None, bias, residual)[0]
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", nn.initializers.zeros, shape, jnp.float32)
        parent = self.parent if self.norm else self
        scale, bias, mean, var = _Norm(name=self.norm or "norm", parent=parent)(self.features)
        batch, height, width = x.shape[0], *(-(-pixels // self.stride) for pixels in x.shape[1:3])
        if self.is_initializing():  # shapes are enough, and tracing the rest would take as long as tracing a step
            y = jnp.zeros((batch, height, width, self.features), self.compute.dtype)
            return y[:, ::2, ::2] if self.pool else y
        running = None if self.train else (mean.value, var.value)
        y, statistics = call(kernel, scale, bias, residual, running)
        if self.train and statistics is not None:
            values = batch * height * width * (self.compute.sync.size if self.compute.sync else 1)
            unbiased = statistics[1] * (values / max(values - 1, 1))
            mean.value = MOMENTUM * mean.value + (1 - MOMENTUM) * statistics[0]
            var.value = MOMENTUM * var.value + (1 - MOMENTUM) * unbiased
        return y


class _Norm(nn.Module):
    """The variables of a BatchNorm: scale, bias and the running averages of mean and variance, float32 [channels]."""

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array, nn.Variable, nn.Variable]:
        return (
            self.param("scale", nn.initializers.ones, (channels,), jnp.float32),
            self.param("bias", nn.initializers.zeros, (channels,), jnp.float32),
            self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32),
            self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32),
        )
