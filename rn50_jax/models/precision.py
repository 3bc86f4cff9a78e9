"""Compute types."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax


class Precision(NamedTuple):
    """Type of convolutions and activations, and how matrix units may round float32 inputs."""

    compute: jnp.dtype
    matmul: lax.Precision


# On Ampere and later GPUs, DEFAULT lets float32 convolutions run in TensorFloat-32; HIGHEST forbids it.
PRECISIONS = {
    "fp32": Precision(jnp.dtype(jnp.float32), lax.Precision.HIGHEST),
    "tf32": Precision(jnp.dtype(jnp.float32), lax.Precision.DEFAULT),
    "bf16": Precision(jnp.dtype(jnp.bfloat16), lax.Precision.DEFAULT),
    "fp16": Precision(jnp.dtype(jnp.float16), lax.Precision.DEFAULT),
}
