"""What happens to pixels inside the compiled step."""

import jax
import jax.numpy as jnp

# Channel means and standard deviations of ImageNet's RGB pixels on the 0-255 scale, as the reference has them.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def normalise(images: jax.Array) -> jax.Array:
    """(x - mean) / std per channel: uint8 [..., 3] to float32 [..., 3]."""
    return (images.astype(jnp.float32) - jnp.asarray(MEAN)) / jnp.asarray(STD)


def draw_mixup(key: jax.Array, alpha: float, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """What mixup leaves to chance: one coefficient ~ Beta(alpha, alpha), float32 [], and a permutation, int32 [B]."""
    coefficient_key, order_key = jax.random.split(key)
    return jax.random.beta(coefficient_key, alpha, alpha), jax.random.permutation(order_key, batch_size)


def mixup(
    images: jax.Array, targets: jax.Array, coefficient: jax.Array, order: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with another one of the batch (Zhang et al. 2018, arXiv:1710.09412).

    c * x + (1 - c) * x[order], targets likewise; one coefficient for the whole batch, as in the reference.

    Args:
      images: float32 [B, H, W, 3].
      targets: float32 [B, K].
      coefficient, order: from `draw_mixup`.
    """
    c = coefficient
    return c * images + (1 - c) * images[order], c * targets + (1 - c) * targets[order]
