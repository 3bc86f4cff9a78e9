"""What happens to pixels inside the compiled step."""

import jax
import jax.numpy as jnp

# Channel means and standard deviations of ImageNet's RGB pixels on the 0-255 scale, as the reference has them.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def normalise(images: jax.Array) -> jax.Array:
    """(x - mean) / std per channel: uint8 [..., 3] to float32 [..., 3]."""
    return (images.astype(jnp.float32) - jnp.asarray(MEAN)) / jnp.asarray(STD)


def mixup(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with another one of the batch (Zhang et al. 2018, arXiv:1710.09412).

    One coefficient c ~ Beta(alpha, alpha) and one permutation for the whole batch, as the reference draws them:
    c * x + (1 - c) * x[permutation], targets likewise.

    Args:
      key: PRNG key of this device, step and micro-batch.
      images: float32 [B, H, W, 3].
      targets: float32 [B, K].
    """
    coefficient_key, order_key = jax.random.split(key)
    c = jax.random.beta(coefficient_key, alpha, alpha)
    order = jax.random.permutation(order_key, images.shape[0])
    return c * images + (1 - c) * images[order], c * targets + (1 - c) * targets[order]
