"""Normalizing, mixup, CutMix and random erasing against NumPy, given the same draws; and what the draws are."""

from functools import partial

import jax
import numpy as np

from rn50_jax.data.normalize import normalize
from rn50_jax.training.augment import Boxes, draw_boxes, draw_cutmix, draw_mixing, draw_mixup, erase, mix

SHAPE = (8, 12, 10)
both = partial(draw_mixing, shape=SHAPE, mixup=0.4, cutmix=1.0)


def test_normalize() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    wanted = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    result = normalize(images)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, wanted, atol=1e-5)


def test_mixup_mixes_images_and_targets_alike() -> None:
    # Images that carry their own one-hot target: whatever is drawn, both must have been mixed the same way.
    targets = np.eye(8, dtype=np.float32)
    images = np.broadcast_to(targets[:, None, None, :], (8, 2, 2, 8))
    drawn = draw_mixing(jax.random.key(3), (8, 2, 2), mixup=0.2, cutmix=0.0)
    mixed_images, mixed_targets = mix(images, targets, drawn)
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


def test_cutmix_is_a_box_of_the_other_image_and_the_target_its_exact_area() -> None:
    # Written from the paper's algorithm, with the same four draws.
    batch, height, width = SHAPE
    rng = np.random.default_rng(0)
    images = rng.standard_normal((*SHAPE, 3)).astype(np.float32)
    targets = np.eye(batch, dtype=np.float32)
    for key in jax.random.split(jax.random.key(1), 20):
        keys = jax.random.split(key, 4)
        scale = np.sqrt(np.float32(1) - np.asarray(jax.random.beta(keys[0], 0.7, 0.7)))
        order = np.asarray(jax.random.permutation(keys[1], batch))
        y, x = int(jax.random.randint(keys[2], (), 0, height)), int(jax.random.randint(keys[3], (), 0, width))
        cut_h, cut_w = int(height * scale), int(width * scale)
        top, bottom = np.clip([y - cut_h // 2, y + cut_h // 2], 0, height)
        left, right = np.clip([x - cut_w // 2, x + cut_w // 2], 0, width)
        wanted = images.copy()
        wanted[:, top:bottom, left:right] = images[order, top:bottom, left:right]
        other = (bottom - top) * (right - left) / (height * width)
        mixed, mixed_targets = mix(images, targets, draw_cutmix(key, 0.7, SHAPE))
        assert np.array_equal(mixed, wanted)
        np.testing.assert_allclose(mixed_targets, (1 - other) * targets + other * targets[order], atol=1e-6)


def test_cutmix_boxes_are_of_all_sizes_and_places() -> None:
    drawn = jax.vmap(lambda key: draw_cutmix(key, 1.0, (2, 32, 32)))(jax.random.split(jax.random.key(0), 4000))
    other = 1 - np.asarray(drawn.pixels)[..., 0]  # [4000, 32, 32]
    np.testing.assert_allclose(1 - other.mean((1, 2)), drawn.labels, atol=1e-6)
    # Beta(1, 1) is uniform, and of a side r the border leaves r - r**2 / 4 on average: an area of 0.321, and less in
    # whole pixels, which are rounded down.
    assert 0.28 < other.mean() < 0.321
    assert other.mean(0).min() > 0.1  # corners are in fewer boxes than the middle
    assert np.quantile(other.mean((1, 2)), 0.02) < 0.02
    assert (
        other.mean((1, 2)).max() == (30 / 32) ** 2
    )  # of 31 pixels half, twice: the largest that the paper's code cuts


def test_one_of_mixup_and_cutmix_is_drawn() -> None:
    keys = jax.random.split(jax.random.key(5), 400)
    drawn = jax.vmap(both)(keys)
    pixels = np.asarray(drawn.pixels)[..., 0]
    # A share of the pixels that is neither 0 nor 1 is mixup's; CutMix's label is the mean of its mask.
    is_cutmix = np.all((pixels == 0) | (pixels == 1), axis=(1, 2))
    assert abs(is_cutmix.mean() - 0.5) < 0.07
    np.testing.assert_allclose(pixels.mean((1, 2)), drawn.labels, atol=1e-5)
    # Alone, mixup draws what it always did: a run with it goes on with the same bits.
    for number in np.flatnonzero(~is_cutmix)[:3]:
        coefficient, order = draw_mixup(keys[number], 0.4, SHAPE[0])
        assert float(drawn.labels[number]) == float(coefficient)
        assert np.array_equal(drawn.order[number], order)


def test_erasing_sets_the_box_to_the_mean_colour() -> None:
    images = np.random.default_rng(0).standard_normal((3, 6, 7, 3)).astype(np.float32)
    boxes = Boxes(*(np.array(x, np.int32) for x in ([1, 0, 2], [2, 0, 0], [3, 0, 4], [5, 0, 1])))
    wanted = images.copy()
    wanted[0, 1:4, 2:7] = 0
    wanted[2, 2:6, 0:1] = 0
    assert np.array_equal(erase(images, boxes), wanted)


def test_boxes_have_the_papers_sizes_and_lie_within_the_image() -> None:
    top, left, height, width = map(np.asarray, draw_boxes(jax.random.key(0), 0.25, (20_000, 64, 64)))
    hit = height > 0
    assert np.array_equal(hit, width > 0)
    assert abs(hit.mean() - 0.25) < 0.01
    top, left, height, width = (x[hit] for x in (top, left, height, width))
    assert top.min() == left.min() == 0
    assert (top + height).max() == (left + width).max() == 64
    area, aspect = height * width / 64**2, height / width
    assert 0.015 < area.min() < 0.025 and 0.38 < area.max() < 0.41
    assert abs(area.mean() - 0.21) < 0.01  # uniform from 0.02 to 0.4
    assert 0.25 < aspect.min() < 0.35 and 2.9 < aspect.max() < 3.8
    assert abs(np.log(aspect).mean()) < 0.02
    # The places are uniform over what is left beside the box.
    assert abs((top / (64 - height)).mean() - 0.5) < 0.02


def test_boxes_are_the_numpy_formula_of_the_draws() -> None:
    shape, key = (200, 40, 30), jax.random.key(9)
    keys = jax.random.split(key, 5)
    area = 40 * 30 * np.asarray(jax.random.uniform(keys[1], (200, 10), minval=0.02, maxval=0.4))
    low, high = np.log(np.float32(0.3)), np.log(np.float32(1 / 0.3))
    aspect = np.exp(np.asarray(jax.random.uniform(keys[2], (200, 10), minval=low, maxval=high)))
    hit = np.asarray(jax.random.uniform(keys[0], (200,))) < 0.5
    boxes = [np.asarray(x) for x in draw_boxes(key, 0.5, shape)]
    retried = 0
    for image in range(200):
        sizes = [
            (round(np.sqrt(a * r)), round(np.sqrt(a / r))) for a, r in zip(area[image], aspect[image], strict=True)
        ]
        fitting = [(h, w) for h, w in sizes if h < 40 and w < 30]
        retried += hit[image] and fitting[0] != sizes[0]
        wanted = fitting[0] if hit[image] and fitting else (0, 0)
        assert np.allclose((boxes[2][image], boxes[3][image]), wanted, atol=1)  # a half may round either way
    assert retried > 0
