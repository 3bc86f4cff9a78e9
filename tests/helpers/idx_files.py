"""IDX files, written number by number as LeCun's page describes them."""

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
# The type's byte in the header, and how struct calls it.
UINT8, INT8, INT16, INT32, FLOAT, DOUBLE = (0x08, "B"), (0x09, "b"), (0x0B, "h"), (0x0C, "i"), (0x0D, "f"), (0x0E, "d")


def idx(sizes: Sequence[int], numbers: Sequence[int], kind: tuple[int, str] = UINT8) -> bytes:
    """The file's bytes; the sizes need not fit the numbers."""
    code, letter = kind
    head = bytes([0, 0, code, len(sizes)]) + struct.pack(f">{len(sizes)}i", *sizes)
    return head + struct.pack(f">{len(numbers)}{letter}", *numbers)


def make_images(count: int, height: int = 9, width: int = 11, *, colors: int = 0, seed: int = 0) -> np.ndarray:
    """Random images: uint8 [count, height, width], or [..., colors]."""
    shape = (count, height, width, *([colors] if colors else []))
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def image_file(images: np.ndarray) -> bytes:
    """An IDX file of uint8 [N, H, W] or [N, H, W, 3]."""
    return idx(images.shape, images.ravel().tolist())


def write_set(
    folder: Path,
    train: tuple[np.ndarray, Sequence[int]],
    val: tuple[np.ndarray, Sequence[int]],
    names: Sequence[str] = MNIST,
) -> None:
    """Writes the four files of images and labels; those whose names end in .gz are gzipped."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = [file for images, labels in (train, val) for file in (image_file(images), idx([len(labels)], labels))]
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
