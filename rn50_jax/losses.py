"""Losses and accuracy, per example."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, targets: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Label-smoothed cross-entropy, as the reference has it (Szegedy et al. 2016, arXiv:1512.00567).

    -(1 - s) * sum_k t_k log p_k  -  s / K * sum_k log p_k, with s the smoothing and K the number of classes:
    the true class has the target 1 - s + s / K.

    Args:
      logits: float32 [B, K].
      targets: int32 [B] class indices, or float32 [B, K] class probabilities.

    Returns:
      float32 [B].
    """
    log_p = jax.nn.log_softmax(logits)
    if targets.ndim == 1:
        hit = -jnp.take_along_axis(log_p, targets[:, None], axis=1)[:, 0]
    else:
        hit = -jnp.sum(targets * log_p, axis=1)
    if label_smoothing == 0.0:
        return hit
    return (1.0 - label_smoothing) * hit - label_smoothing * jnp.mean(log_p, axis=1)


def top_k_hits(logits: jax.Array, labels: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Whether the label is the best, and among the best `k`, of an example's logits; ties go to the lower index.

    Args:
      logits: float32 [B, K].
      labels: int32 [B].
      k: at most K counts; a larger one is cut to K.

    Returns:
      Two bool [B]: top-1 and top-k.
    """
    _, best = jax.lax.top_k(logits, min(k, logits.shape[1]))
    hits = best == labels[:, None]
    return hits[:, 0], jnp.any(hits, axis=1)
