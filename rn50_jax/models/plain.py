"""`conv_norm` as one reads it in the papers; derivatives are left to JAX."""

import jax
import jax.numpy as jnp
from jax import lax

from rn50_jax.models.compute import Compute
from rn50_jax.models.conv import conv2d
from rn50_jax.models.norm import Statistics, add_relu, mean_over, normalize
from rn50_jax.models.pool import max_pool


def plain(
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
) -> tuple[jax.Array, Statistics | None]:
    """Computes `conv_norm`, see there, in as few lines as it takes."""
    with jax.named_scope("conv"):
        y = conv2d(x.astype(compute.dtype), kernel.astype(compute.dtype), stride, groups=groups, matmul=compute.matmul)
    with jax.named_scope("norm"):
        if scale is not None and running is None:
            wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
            (mean,) = mean_over(compute.sync, (jnp.mean(wide, axis=(0, 1, 2)),))
            (var,) = mean_over(compute.sync, (jnp.mean(jnp.square(wide - mean), axis=(0, 1, 2)),))
            running = mean, var
        y = normalize(y, scale, bias, running, compute.dtype)
        y = add_relu(y, residual, relu)
    return max_pool(y) if pool else y, lax.stop_gradient(running)
