"""What happens to pixels inside the compiled step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mixing(NamedTuple):
    """How the examples of a batch are mixed with others of it, the same way for all.

    pixels: share of an image's own pixels, float32 [] or [H, W, 1]. labels: share of its own target, float32 [].
    order: int32 [B], whom it is mixed with.
    """

    pixels: jax.Array
    labels: jax.Array
    order: jax.Array


def mix(images: jax.Array, targets: jax.Array, mixing: Mixing) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with another one: c * x + (1 - c) * x[order], targets likewise.

    Args:
      images: float32 [B, H, W, 3].
      targets: float32 [B, K].
    """
    c, k, order = mixing
    return c * images + (1 - c) * images[order], k * targets + (1 - k) * targets[order]


def draw_mixing(key: jax.Array, shape: tuple[int, ...], *, mixup: float, cutmix: float) -> Mixing:
    """Draws for a whole batch what mixup, CutMix, or one of them with equal probability, needs.

    Args:
      shape: B, H, W.
      mixup, cutmix: alphas; 0 for never. At least one is above 0.
    """
    if mixup > 0:
        coefficient, order = draw_mixup(key, mixup, shape[0])
        mixed = Mixing(coefficient, coefficient, order)
        if cutmix == 0:
            return mixed
    # Children of the key that mixup's draw, which takes the first two, does not use.
    cut = draw_cutmix(jax.random.fold_in(key, 2), cutmix, shape)
    if mixup == 0:
        return cut
    choice = jax.random.uniform(jax.random.fold_in(key, 3)) < 0.5
    return Mixing(*(jnp.where(choice, a, b) for a, b in zip(cut, mixed, strict=True)))


def draw_mixup(key: jax.Array, alpha: float, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Draws mixup (Zhang et al. 2018, arXiv:1710.09412) for the whole batch, as in the reference.

    Returns:
      One coefficient ~ Beta(alpha, alpha), float32 [], and a permutation, int32 [B].
    """
    coefficient_key, order_key = jax.random.split(key)
    return jax.random.beta(coefficient_key, alpha, alpha), jax.random.permutation(order_key, batch_size)


def draw_cutmix(key: jax.Array, alpha: float, shape: tuple[int, ...]) -> Mixing:
    """Draws CutMix (Yun et al. 2019, arXiv:1905.04899): a box of the other image, the same for the whole batch.

    Of c ~ Beta(alpha, alpha) the box has the sides H * sqrt(1 - c) and W * sqrt(1 - c), rounded down, and its middle
    anywhere in the image, which cuts off what sticks out. The target's share is exactly that of the pixels.
    """
    batch_size, height, width = shape
    coefficient_key, order_key, row_key, column_key = jax.random.split(key, 4)
    scale = jnp.sqrt(1 - jax.random.beta(coefficient_key, alpha, alpha))

    def inside(key: jax.Array, size: int) -> jax.Array:
        half = jnp.floor(size * scale).astype(jnp.int32) // 2
        middle, place = jax.random.randint(key, (), 0, size), jnp.arange(size)
        return (place >= middle - half) & (place < middle + half)

    rows, columns = inside(row_key, height), inside(column_key, width)
    area = jnp.sum(rows) * jnp.sum(columns)
    own = ~(rows[:, None] & columns)
    return Mixing(
        pixels=own.astype(scale.dtype)[..., None],
        labels=1 - area.astype(scale.dtype) / (height * width),
        order=jax.random.permutation(order_key, batch_size),
    )


class Boxes(NamedTuple):
    """A box in each image: int32 [B] each; one of height and width 0 is none."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


_ERASED_AREA, _ERASED_ASPECT, _ATTEMPTS = (0.02, 0.4), (0.3, 1 / 0.3), 10


def draw_boxes(key: jax.Array, probability: float, shape: tuple[int, ...]) -> Boxes:
    """Draws for each image the box of random erasing (Zhong et al. 2017, arXiv:1708.04896).

    With `probability` a box of 2 to 40 % of the area and of height over width from 0.3 to 1 / 0.3, as in the paper, at
    any place where it fits. As in torchvision, the aspect is log-uniform, and the first of 10 sizes that is smaller
    than the image counts; if none is, nothing is erased.

    Args:
      shape: B, H, W.
    """
    batch_size, height, width = shape
    hit_key, area_key, aspect_key, row_key, column_key = jax.random.split(key, 5)
    tries = (batch_size, _ATTEMPTS)
    area = height * width * jax.random.uniform(area_key, tries, minval=_ERASED_AREA[0], maxval=_ERASED_AREA[1])
    low, high = (jnp.log(bound) for bound in _ERASED_ASPECT)
    aspect = jnp.exp(jax.random.uniform(aspect_key, tries, minval=low, maxval=high))
    heights = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits, axis=1)
    hit = jnp.any(fits, axis=1) & (jax.random.uniform(hit_key, (batch_size,)) < probability)

    def chosen(sizes: jax.Array) -> jax.Array:
        return jnp.where(hit, jnp.take_along_axis(sizes, first[:, None], axis=1)[:, 0], 0)

    h, w = chosen(heights), chosen(widths)
    top = jax.random.randint(row_key, (batch_size,), 0, height - h + 1)
    left = jax.random.randint(column_key, (batch_size,), 0, width - w + 1)
    return Boxes(top, left, h, w)


def erase(images: jax.Array, boxes: Boxes) -> jax.Array:
    """Sets a box of each image, normalized float32 [B, H, W, 3], to the mean color, 0."""

    def inside(start: jax.Array, size: jax.Array, length: int) -> jax.Array:
        place = jnp.arange(length)
        return (place >= start[:, None]) & (place < (start + size)[:, None])

    rows = inside(boxes.top, boxes.height, images.shape[1])
    columns = inside(boxes.left, boxes.width, images.shape[2])
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0.0, images)
