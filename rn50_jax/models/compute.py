"""How layers compute: in which types, for which kind of device, by which code."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from rn50_jax.models.norm import NormSync


class Compute(NamedTuple):
    """How the layers of a network compute what they are; none of it changes the results but for rounding.

    dtype: of convolutions and activations. matmul: how matrix units may round float32 inputs.
    platform: "cpu" or "gpu", for what is written otherwise for each. impl: a key of `conv_norm.IMPLS`.
    sync: devices that share BatchNorm's statistics in training; None if none do.
    """

    dtype: jnp.dtype
    matmul: lax.Precision
    platform: str = "cpu"
    impl: str = "xla"
    sync: NormSync | None = None


# On Ampere and later GPUs, DEFAULT lets float32 convolutions run in TensorFloat-32; HIGHEST forbids it.
PRECISIONS = {
    "fp32": Compute(jnp.dtype(jnp.float32), lax.Precision.HIGHEST),
    "tf32": Compute(jnp.dtype(jnp.float32), lax.Precision.DEFAULT),
    "bf16": Compute(jnp.dtype(jnp.bfloat16), lax.Precision.DEFAULT),
    "fp16": Compute(jnp.dtype(jnp.float16), lax.Precision.DEFAULT),
}
