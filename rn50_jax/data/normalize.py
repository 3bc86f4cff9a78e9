"""Pixels as the model is to see them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Channel means and standard deviations of ImageNet's RGB pixels on the 0-255 scale, as the reference has them.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


class Normalization(NamedTuple):
    """Means and standard deviations of red, green and blue on the 0-255 scale."""

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


IMAGENET = Normalization()


@jax.named_scope("augment")
def normalize(images: jax.Array, constants: Normalization = IMAGENET) -> jax.Array:
    """(x - mean) / std per channel: uint8 [..., 3] to float32 [..., 3]."""
    return (images.astype(jnp.float32) - jnp.asarray(constants.mean)) / jnp.asarray(constants.std)


def pixel_normalization(mean: Sequence[float], std: Sequence[float]) -> Normalization:
    """Returns the normalization by means and standard deviations per channel that are given in 0 to 1."""
    return Normalization(*(tuple(255 * value for value in values) for values in (mean, std)))
