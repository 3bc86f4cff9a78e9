"""`conv_norm` for speed: in the form that XLA computes in the fewest passes over memory."""

import jax

from rn50_jax.models.compute import Compute
from rn50_jax.models.conv import cast_kernel, fast_conv2d
from rn50_jax.models.norm import Statistics, add_relu, batch_norm, batch_norm_max_pool, normalize
from rn50_jax.models.pool import max_pool


def xla(
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
    """Computes `conv_norm`, see there, with derivatives that are written out where they pay."""
    with jax.named_scope("conv"):
        x, kernel = x.astype(compute.dtype), cast_kernel(kernel, compute.dtype)
        y = fast_conv2d(x, kernel, stride, groups=groups, matmul=compute.matmul, platform=compute.platform)
    with jax.named_scope("norm"):
        if scale is None or running is not None:
            y = add_relu(normalize(y, scale, bias, running, compute.dtype), residual, relu)
        elif pool and relu and residual is None:
            y, mean, var = batch_norm_max_pool(y, scale, bias, compute.dtype, compute.sync)
            return y, (mean, var)
        else:
            y, mean, var = batch_norm(y, scale, bias, residual, compute.dtype, compute.sync, relu)
            running = mean, var
    return max_pool(y) if pool else y, running
