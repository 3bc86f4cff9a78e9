"""JPEG files as large and as wide as ImageNet's, made here, for those who have no ImageNet at hand."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from rn50_jax.errors import UserError
from rn50_jax.io.files import folder_written_whole
from rn50_jax.io.text import first_line
from rn50_jax.runtime.jax_setup import user_cache

CLASSES = 10
_VERSION = 1  # of what is drawn: other images have another folder

# Width, height and share of ImageNet's training images: most were scaled to a longer side of 500 pixels.
_SHAPES = (
    ((500, 375), 0.46),
    ((500, 333), 0.18),
    ((375, 500), 0.12),
    ((333, 500), 0.06),
    ((500, 400), 0.04),
    ((400, 300), 0.04),
    ((640, 480), 0.05),
    ((1024, 768), 0.02),
    ((250, 200), 0.03),
)
_MEDIAN_BYTES_PER_PIXEL = 0.52  # with the shapes above, files of about 110 kB on average
_SPREAD = 0.33  # standard deviation of its logarithm


def generated_folder(count: int, *, cache: Path | None = None) -> Path:
    """A folder `train/<class>/<image>.jpg` of `count` images, and one of each class in `val/`; made once and kept.

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
            _write(unfinished, count)
    except OSError as error:
        raise UserError(f"cannot write the generated images to {folder}: {first_line(error)}") from error
    return folder


def _write(root: Path, count: int) -> None:
    # Processes, since drawing holds the interpreter's lock; of their own, since JAX must not be forked.
    parts = len(os.sched_getaffinity(0))
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent)}
    command = [sys.executable, "-m", "rn50_jax.bench.jpegs", str(root), str(count), str(parts)]
    running = [subprocess.Popen([*command, str(part)], env=env) for part in range(parts)]
    codes = [process.wait() for process in running]
    if any(codes):
        raise OSError("a process that draws them failed")


def write_part(root: Path, count: int, parts: int, part: int) -> None:
    """Every `parts`-th image of a folder, from the `part`-th on."""
    names = [("train", number) for number in range(count)] + [("val", count + number) for number in range(CLASSES)]
    for split, number in names[part::parts]:
        path = root / split / f"class{number % CLASSES}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_jpeg(number))


def make_jpeg(seed: int) -> bytes:
    """One encoded image; the same seed gives the same drawing.

    Shapes under a texture whose power falls with the square of the frequency, as that of photographs does (Field 1987),
    with as much fine texture as makes the file as large as drawn from a log-normal distribution, at quality 91 to 96.
    """
    rng = np.random.default_rng([_VERSION, seed])
    shapes, shares = zip(*_SHAPES, strict=True)
    width, height = shapes[rng.choice(len(shapes), p=np.asarray(shares) / sum(shares))]
    detail = float(np.exp(rng.normal(0.0, _SPREAD)))
    wanted = width * height * _MEDIAN_BYTES_PER_PIXEL * detail
    pixels = _drawing(rng, width, height) + detail * _texture(rng, width, height)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    low, high = 85, 97
    while low < high:  # the lowest quality that makes the file large enough
        middle = (low + high) // 2
        low, high = (middle + 1, high) if len(_encode(image, middle)) < wanted else (low, middle)
    return _encode(image, low)


def _clouds(rng: np.random.Generator, width: int, height: int, cell: int, strength: float) -> np.ndarray:
    """float32 [H, W, 3]: smooth noise of cells of so many pixels; colours vary less than brightness."""
    shape = (max(height // cell, 1) + 1, max(width // cell, 1) + 1)
    noise = rng.normal(0.0, strength, (*shape, 1)) + rng.normal(0.0, 0.4 * strength, (*shape, 3))
    layers = [Image.fromarray(np.ascontiguousarray(noise[..., c], np.float32)) for c in range(3)]
    return np.stack([np.asarray(x.resize((width, height), Image.Resampling.BICUBIC)) for x in layers], axis=-1)


def _drawing(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """float32 [H, W, 3]: large clouds, and a few shapes with sharp edges half as strong."""
    total = np.full((height, width, 3), 118.0, np.float32)
    for cell in (128, 64, 32, 16):
        total += _clouds(rng, width, height, cell, 34.0 * (cell / 128) ** 0.5)
    image = Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 14))):
        corners = (rng.random((int(rng.integers(3, 7)), 2)) * 0.4 + rng.random(2) * 0.8 - 0.1) * (width, height)
        draw.polygon([tuple(corner) for corner in corners], fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return 0.55 * total + 0.45 * np.asarray(image, np.float32)


def _texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """float32 [H, W, 3]: the clouds' finer scales, stronger in some places than in others."""
    total = np.zeros((height, width, 3), np.float32)
    for cell in (8, 4, 2, 1):
        total += _clouds(rng, width, height, cell, 34.0 * (cell / 128) ** 0.3)
    mask = Image.fromarray(rng.uniform(0.2, 1.8, (5, 7)).astype(np.float32))
    return total * np.asarray(mask.resize((width, height), Image.Resampling.BICUBIC))[..., None]


def _encode(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


if __name__ == "__main__":
    write_part(Path(sys.argv[1]), *map(int, sys.argv[2:]))
