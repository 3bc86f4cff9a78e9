"""A compiled-anywhere function, `jax.export`'s StableHLO with the weights inside, for CPU and CUDA."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rn50_jax.exporting.check import Run
from rn50_jax.exporting.form import Exportable

PLATFORMS = ("cpu", "cuda")


def write_stablehlo(exportable: Exportable, path: Path) -> None:
    """Writes the model for all `PLATFORMS`, whatever this machine has; the number of images is left open.

    `jax.export.deserialize` reads the file in any later jax, for at least six months (jax's promise).

    Raises:
      OSError: the file cannot be written.
    """
    form, image_size = exportable.form, exportable.image_size
    (batch,) = jax.export.symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((batch, *form.shape(image_size)), jnp.dtype(form.input))
    exported = jax.export.export(jax.jit(exportable.call), platforms=PLATFORMS)(image)
    path.write_bytes(exported.serialize())


def load_stablehlo(path: Path) -> Run:
    """Loads the function in a file, compiled for this machine's device."""
    call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: np.asarray(call(images))
