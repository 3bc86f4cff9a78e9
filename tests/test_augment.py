import jax
import numpy as np

from rn50_jax.augment import draw_mixup, mixup, normalise


def test_normalise() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    wanted = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    result = normalise(images)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, wanted, atol=1e-5)


def test_mixup_mixes_images_and_targets_alike() -> None:
    # Images that carry their own one-hot target: whatever is drawn, both must have been mixed the same way.
    targets = np.eye(8, dtype=np.float32)
    images = np.broadcast_to(targets[:, None, None, :], (8, 2, 2, 8))
    mixed_images, mixed_targets = mixup(images, targets, *draw_mixup(jax.random.key(3), 0.2, 8))
    np.testing.assert_allclose(mixed_images[:, 0, 0], mixed_targets, atol=1e-6)
    np.testing.assert_allclose(mixed_targets.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(mixed_targets.sum(0), 1, atol=1e-6)  # a permutation uses each image once
    own = np.diag(mixed_targets)
    coefficient = np.median(own)
    assert np.all(np.isclose(own, coefficient, atol=1e-6) | np.isclose(own, 1, atol=1e-6))


def test_mixup_coefficient_has_the_moments_of_beta() -> None:
    keys = jax.random.split(jax.random.key(0), 4000)
    draws, orders = jax.vmap(lambda key: draw_mixup(key, 0.4, 3))(keys)
    assert abs(float(draws.mean()) - 0.5) < 0.02
    assert abs(float(draws.var()) - 1 / (4 * (2 * 0.4 + 1))) < 0.01  # the variance of Beta(a, a)
    assert np.all(np.sort(orders, axis=1) == np.arange(3))
    assert len(np.unique(orders, axis=0)) == 6
