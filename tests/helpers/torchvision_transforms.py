"""torchvision's transforms of Pillow's images: torchvision's own where it is installed, and as documented.

It cannot be among the requirements: it stops at its import beside a PyTorch that was built otherwise, as the CPU build.
"""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, width, height
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


class Transforms(NamedTuple):
    """Of one random generator.

    box: of a RandomResizedCrop, by width and height of the image. crop: RandomResizedCrop to so many pixels and
    RandomHorizontalFlip, uint8 [S, S, 3].
    """

    box: Callable[[int, int], Box]
    crop: Callable[[Image.Image, int], np.ndarray]


def documented(seed: int) -> Transforms:
    """Returns the transforms written out from torchvision's documentation."""
    rng = np.random.default_rng(seed)

    def crop(image: Image.Image, size: int) -> np.ndarray:
        left, top, width, height = random_box(rng, *image.size)
        part = image.crop((left, top, left + width, top + height))
        pixels = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))
        return pixels[:, ::-1] if rng.random() < 0.5 else pixels

    return Transforms(lambda width, height: random_box(rng, width, height), crop)


def random_box(rng: np.random.Generator, width: int, height: int) -> Box:
    """Draws the box of `RandomResizedCrop(scale=AREA, ratio=ASPECT)`: ten attempts, then the middle of the image."""
    for _ in range(10):
        area = width * height * rng.uniform(*AREA)
        aspect = np.exp(rng.uniform(*np.log(ASPECT)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w, h = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def resize_and_center_crop(image: Image.Image, resize: int, crop: int) -> np.ndarray:
    """Returns what the documentation says of Resize(resize) and CenterCrop(crop), in Pillow's own calls."""
    width, height = image.size
    longer = int(resize * max(width, height) / min(width, height))
    size = (resize, longer) if width <= height else (longer, resize)
    image = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    top, left = round((image.height - crop) / 2), round((image.width - crop) / 2)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


def installed() -> ModuleType | None:
    """Returns torchvision's transforms, or None if it cannot be imported."""
    try:
        from torchvision import transforms
    except (ImportError, RuntimeError):  # RuntimeError: it is of another build than torch
        return None
    return transforms


def torchvisions(transforms: ModuleType, seed: int) -> Transforms:
    """Returns the transforms of torchvision itself, which draw from torch's one generator."""
    torch.manual_seed(seed)

    def box(width: int, height: int) -> Box:
        top, left, h, w = transforms.RandomResizedCrop.get_params(Image.new("L", (width, height)), AREA, ASPECT)
        return left, top, w, h

    flip = transforms.RandomHorizontalFlip()
    return Transforms(box, lambda image, size: np.asarray(flip(transforms.RandomResizedCrop(size)(image))))
