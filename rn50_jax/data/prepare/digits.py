"""The built-in data: scikit-learn's 1,797 real handwritten digits as JPEG class folders."""

from pathlib import Path

import numpy as np
from PIL import Image

from rn50_jax.errors import UserError
from rn50_jax.io.files import folder_written_whole

NUM_TRAIN = 1500
SIZE = 32  # pixels; the digits come as 8x8


def write_digits(root: Path) -> None:
    """Writes `root/train/<digit>/<number>.jpg` (1,500 images) and `root/val/...` (297), a fixed random split.

    The folder appears complete or not at all, also if several processes write it at once.

    Raises:
      UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # takes a second to import, needed once
    except ModuleNotFoundError as error:
        raise UserError(
            f"{root} is made from scikit-learn's digits, and {error.name} is not installed: pip install scikit-learn, "
            "copy the folder from another machine, or use images of your own with --config.data.dir=DIR"
        ) from error

    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.images))
    with folder_written_whole(root) as unfinished:
        for rank, index in enumerate(order):
            split = "train" if rank < NUM_TRAIN else "val"
            folder = unfinished / split / str(digits.target[index])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
            image = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            image.save(folder / f"{index:04d}.jpg", quality=95)
