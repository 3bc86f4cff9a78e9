"""Losses and accuracy, per example."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, targets: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Returns the label-smoothed cross-entropy of the reference (Szegedy et al. 2016, arXiv:1512.00567).

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


def binary_cross_entropy(
    logits: jax.Array, targets: jax.Array, label_smoothing: float = 0.0, threshold: float = 0.0
) -> jax.Array:
    """Returns the cross-entropy of the classes' sigmoids, averaged over them (Wightman et al. 2021, arXiv:2110.00476).

    The mean over the classes, not their sum, is timm's. Smoothing is that of `cross_entropy`: the targets become
    (1 - s) * t + s / K.

    Args:
      logits: float32 [B, K].
      targets: int32 [B] class indices, or float32 [B, K] class probabilities.
      threshold: above 0, every class whose target exceeds it gets the target 1 and all others 0, before any smoothing:
        both classes of a mixed image count in full. (timm thresholds after its smoothing, which is then lost.)

    Returns:
      float32 [B].
    """
    classes = logits.shape[1]
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, classes, dtype=logits.dtype)
    if threshold > 0:
        targets = (targets > threshold).astype(logits.dtype)
    targets = (1.0 - label_smoothing) * targets + label_smoothing / classes
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), axis=1)


def top_k_hits(logits: jax.Array, labels: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Returns whether the label is the best, and among the best `k`, of its logits; ties go to the lower index.

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
