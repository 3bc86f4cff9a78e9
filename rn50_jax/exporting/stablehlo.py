"""A compiled-anywhere function, `jax.export`'s StableHLO with the weights inside, for CPU and CUDA."""

import jax
import numpy as np

from rn50_jax.exporting.check import Run
from rn50_jax.exporting.form import Exportable

PLATFORMS = ("cpu", "cuda")


def to_stablehlo(exportable: Exportable) -> bytes:
    """Returns the model for all `PLATFORMS`, whatever this machine has; the number of images is left open.

    `jax.export.deserialize` reads it in any later jax, for at least six months (jax's promise).
    """
    (batch,) = jax.export.symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((batch, *exportable.form.shape(exportable.image_size)), exportable.form.input)
    return bytes(jax.export.export(jax.jit(exportable.call), platforms=PLATFORMS)(image).serialize())


def load_stablehlo(data: bytes) -> Run:
    """Loads the function in a file's content, compiled for this machine's device."""
    call = jax.jit(jax.export.deserialize(bytearray(data)).call)
    return lambda images: np.asarray(call(images))
