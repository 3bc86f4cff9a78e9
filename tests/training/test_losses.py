import numpy as np
import pytest
import torch
from torch.nn import functional

from rn50_jax.training.losses import binary_cross_entropy, cross_entropy, top_k_hits


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_equals_torch(smoothing: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((16, 7)).astype(np.float32) * 5
    labels = rng.integers(0, 7, 16)
    ours = cross_entropy(logits, labels, smoothing)
    theirs = functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels), label_smoothing=smoothing, reduction="none"
    )
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)


def test_cross_entropy_of_mixed_targets() -> None:
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((5, 4)).astype(np.float32)
    targets = rng.dirichlet(np.ones(4), 5).astype(np.float32)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = -0.9 * (targets * log_p).sum(1) - 0.1 / 4 * log_p.sum(1)
    np.testing.assert_allclose(cross_entropy(logits, targets, 0.1), wanted, rtol=1e-5)


@pytest.mark.parametrize(("smoothing", "threshold"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.2), (0.1, 0.2)])
def test_binary_cross_entropy_equals_torch(smoothing: float, threshold: float) -> None:
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((16, 7)).astype(np.float32) * 20
    labels, others = rng.integers(0, 7, 16), rng.integers(0, 7, 16)
    mixed = 0.7 * np.eye(7)[labels] + 0.3 * np.eye(7)[others]
    for targets, probabilities in ((labels, np.eye(7)[labels]), (mixed.astype(np.float32), mixed)):
        if threshold:
            probabilities = (probabilities > threshold).astype(float)  # both classes of a mixed image count in full
        wanted = torch.nn.BCEWithLogitsLoss(reduction="none")(
            torch.from_numpy(logits), torch.from_numpy((1 - smoothing) * probabilities + smoothing / 7).float()
        )
        ours = binary_cross_entropy(logits, targets, smoothing, threshold)
        np.testing.assert_allclose(ours, wanted.mean(1).numpy(), rtol=1e-5, atol=1e-7)


def test_top_k() -> None:
    logits = np.array([[5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0]], np.float32)
    top1, top5 = top_k_hits(logits, np.array([0, 0, 0]), 5)
    assert top1.tolist() == [True, False, True]
    assert top5.tolist() == [True, False, True]
    # Equal logits are no reason to call every label right.
    top1, top5 = top_k_hits(logits, np.array([1, 1, 5]), 5)
    assert top1.tolist() == [False, False, False]
    assert top5.tolist() == [True, True, False]


def test_top_5_of_three_classes() -> None:
    _, top5 = top_k_hits(np.zeros((2, 3), np.float32), np.array([0, 2]), 5)
    assert top5.tolist() == [True, True]
