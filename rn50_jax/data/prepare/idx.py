"""The IDX files of MNIST and its kin. (DALI's `.idx` files, beside tar shards, are another thing.)

The format is LeCun's: two zero bytes, a byte for the type, a byte for the number of dimensions, their sizes as
big-endian int32, and the numbers, big-endian, the last dimension fastest.
"""

import gzip
import hashlib
import math
import re
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rn50_jax.errors import UserError
from rn50_jax.io.file_kinds import sniff
from rn50_jax.io.files import open_regular
from rn50_jax.io.text import counted, shell, size_text

MIN_SIDE, MAX_SIDE = 8, 4096  # pixels
_MOST = 1 << 31  # bytes of a file when it is unpacked; the largest, of EMNIST, has 547 MB
_PIECE = 1 << 20
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_QMNIST_COLUMNS = 8  # of its labels: the class, and where a digit comes from
_CALLED = {"train": "train", "val": "t10k or test"}
_MARK = {"train": "train", "val": "(t10k|test)"}
_USUAL = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (or test-...)"
)

Shape = tuple[int, ...]


class SplitFiles(NamedTuple):
    """The two files of a split."""

    images: Path
    labels: Path


class Idx(NamedTuple):
    """What is in a file. numbers: as it says. md5: of its content, unpacked."""

    numbers: np.ndarray
    md5: str


def find_files(folder: Path) -> dict[str, SplitFiles]:
    """Returns the files of "train" and "val", by the names that MNIST, Fashion-MNIST, EMNIST, KMNIST and QMNIST have.

    Such are `train-images-idx3-ubyte`, `emnist-letters-test-labels-idx1-ubyte.gz` and `t10k-images.idx3-ubyte`. Of a
    file that is there packed and unpacked, the packed one is taken: it has a checksum.

    Raises:
      UserError: there is none or more than one of a kind, or they are of several data sets.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}; pass the folder with the IDX files") from error
    of_kind = {(split, kind): _named(names, split, kind) for split in _MARK for kind in ("images", "labels")}
    for (split, kind), files in of_kind.items():
        if not files:
            raise UserError(
                f"{folder} has no file of {_CALLED[split]} {kind}; it needs four, gzipped or not, whose names end in "
                f"{_USUAL}"
            )
        if len(files) > 1:
            raise UserError(f"{folder} has several files of {_CALLED[split]} {kind}: {_choose_one(folder, files)}")
    chosen = {name: begin for files in of_kind.values() for name, begin in files.items()}
    if len(set(chosen.values())) > 1:
        raise UserError(f"{folder} has files of several data sets: {_choose_one(folder, chosen)}")
    train_images, train_labels, val_images, val_labels = (folder / name for name in chosen)
    return {"train": SplitFiles(train_images, train_labels), "val": SplitFiles(val_images, val_labels)}


def _named(names: list[str], split: str, kind: str) -> dict[str, str]:
    """The files of one split and kind, and how their names begin: with the data set."""
    pattern = re.compile(rf"(?P<begin>.*?){_MARK[split]}-{kind}[-.]idx\d-\w+(\.gz)?", re.IGNORECASE)
    found = {name: match["begin"] for name in names if (match := pattern.fullmatch(name))}
    return {name: begin for name, begin in found.items() if f"{name}.gz" not in found}


def _choose_one(folder: Path, files: dict[str, str]) -> str:
    """Names files of which some are too many, and says how to choose."""
    begin = next(filter(None, files.values()), "")
    own = Path(begin.strip("-_.") or "own")
    copy = f"{shell(['mkdir', own])} && {shell(['cp', folder / begin])}* {shell([own])}"
    example = f", for example: {copy}" if begin else ""
    return f"{', '.join(files)}; put the four of one data set into a folder of their own{example}"


def read_images(file: Path) -> Idx:
    """Reads images: uint8 [N, H, W], or [N, H, W, 3] of colors.

    Raises:
      UserError: it is something else, damaged or cut short, or the images are of fewer than 8 or more than 4096 pixels
        a side.
    """

    def complaint(dtype: np.dtype, shape: Shape) -> str:
        if dtype.str != "|u1" or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
            return f"holds {_told(dtype, shape)}, and images are N x H x W or N x H x W x 3 of uint8; give such a file"
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in shape[1:3]):
            return f"holds images of {shape[2]} x {shape[1]} pixels; a side must have from {MIN_SIDE} to {MAX_SIDE}"
        return ""

    return _read(file, complaint)


def read_labels(file: Path, images: Path, count: int) -> Idx:
    """Reads the labels of `count` images: int64 [N], from 0 on. Of QMNIST's, int32 [N, 8], they are the first column.

    Args:
      images: where the images are.

    Raises:
      UserError: it is something else, damaged or cut short, of another number of images, or a label is negative.
    """

    def complaint(dtype: np.dtype, shape: Shape) -> str:
        if dtype.kind not in "iu" or not (len(shape) == 1 or (len(shape) == 2 and shape[1] == _QMNIST_COLUMNS)):
            return (
                f"holds {_told(dtype, shape)}, and labels are N whole numbers, or N x {_QMNIST_COLUMNS} of QMNIST; "
                "give such a file"
            )
        if shape[0] != count:
            return (
                f"has {counted(shape[0], 'label')}, and {images.name} {counted(count, 'image')}; get those that belong "
                "together"
            )
        return ""

    numbers, md5 = _read(file, complaint)
    labels = (numbers if numbers.ndim == 1 else numbers[:, 0]).astype(np.int64)
    if labels.min() < 0:
        raise UserError(f"{file} has the label {labels.min()}; labels count from 0; get the file again")
    return Idx(labels, md5)


def _told(dtype: np.dtype, shape: Shape) -> str:
    return f"{' x '.join(map(str, shape)) or 'no'} numbers of {dtype.name}"


def _read(file: Path, complaint: Callable[[np.dtype, Shape], str]) -> Idx:
    """Reads a file, gzipped or not by its content; no more of it than its header announces and one byte.

    Args:
      complaint: says of type and sizes what is wrong with them, if anything is.
    """
    try:
        with open_regular(file) as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            with gzip.open(plain) if packed else nullcontext(plain) as stream:
                return _parse(stream.read, complaint)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file} is damaged or cut short (gzip: {error}); get it again") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file} {error}") from error


def _parse(read: Callable[[int], bytes], complaint: Callable[[np.dtype, Shape], str]) -> Idx:
    """Reads the content from its beginning; raises ValueError, whose text goes on after the file's name."""
    head = read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES:
        kind = sniff(head + read(252)) if head else "empty"
        raise ValueError(f"is no IDX file, but {kind or 'something else'}; get it again")
    dtype = np.dtype(_TYPES[head[2]])
    head += read(4 * head[3])
    if len(head) < 4 + 4 * head[3]:
        raise ValueError("is cut short: it ends in its header; get it again")
    shape = tuple(np.frombuffer(head[4:], ">i4").tolist())
    if wrong := complaint(dtype, shape):
        raise ValueError(wrong)
    size = math.prod(shape) * dtype.itemsize
    if min(shape) < 1 or size > _MOST:
        raise ValueError(
            f"announces {_told(dtype, shape)}; there must be one at least, and {size_text(_MOST)} at most; give another"
        )
    # Piece by piece: memory is taken for what is there, not for what is announced.
    data = bytearray()
    while piece := read(min(_PIECE, size + 1 - len(data))):
        data += piece
    if len(data) != size:
        there = "more" if len(data) > size else f"{len(data):,}"
        raise ValueError(
            f"is damaged or cut short: its header announces {size:,} bytes and there are {there}; get it again"
        )
    digest = hashlib.md5(head, usedforsecurity=False)
    digest.update(data)
    return Idx(np.frombuffer(data, dtype).reshape(shape), digest.hexdigest())
