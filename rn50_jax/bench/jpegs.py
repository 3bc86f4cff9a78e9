"""JPEG files for those who have no photographs at hand: noise on gradients, 500 x 375 pixels, 110 kB on average."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from rn50_jax.errors import UserError
from rn50_jax.io.files import folder_written_whole
from rn50_jax.io.text import first_line
from rn50_jax.runtime.jax_setup import user_cache

CLASSES = 10
SIZE = (500, 375)  # width and height of most of ImageNet's photographs
_VERSION = 2  # of the drawing: other images have another folder


def generated_folder(count: int, *, cache: Path | None = None) -> Path:
    """Returns a folder `train/<class>/<image>.jpg` of `count` images, and one of each class in `val/`; made once, kept.

    Args:
      cache: where such folders are kept; by default the user's cache.

    Raises:
      UserError: too few for the classes, or the folder cannot be written.
    """
    if count < CLASSES:
        raise UserError(f"--generated {count}: at least {CLASSES} images are needed, one for each class")
    home = cache or user_cache()
    if home is None:
        raise UserError("--generated keeps its images in the user's cache, and there is no home folder; set HOME")
    folder = home / f"jpegs-{_VERSION}-{count}"
    if folder.is_dir():
        return folder
    try:
        with folder_written_whole(folder) as unfinished:
            files = [unfinished / "train" / f"class{i % CLASSES}" / f"{i:06}.jpg" for i in range(count)]
            files += [unfinished / "val" / f"class{i}" / f"{count + i:06}.jpg" for i in range(CLASSES)]
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
                list(threads.map(write_jpeg, files, range(len(files))))
    except OSError as error:
        raise UserError(f"cannot write the generated images to {folder}: {first_line(error)}") from error
    return folder


def write_jpeg(path: Path, seed: int) -> None:
    """Writes one image; the same seed gives the same drawing.

    Strength of the noise and quality are chosen so that the files have 60 to 150 kB and 110 kB on average.
    """
    rng = np.random.default_rng([_VERSION, seed])
    width, height = SIZE
    colors = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    noise = rng.integers(0, 256, (height // 2, width // 2, 3), np.uint8)
    grain = Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.blend(colors, grain, rng.uniform(0.1, 0.7)).save(path, "JPEG", quality=94)
