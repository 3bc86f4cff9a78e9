"""Class folders made of the IDX files of MNIST and its kin."""

import io
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from rn50_jax.data.formats.file_list import listable
from rn50_jax.data.prepare.class_names import FASHION_MNIST
from rn50_jax.data.prepare.idx import MAX_SIDE, SplitFiles, find_files, read_images, read_labels
from rn50_jax.data.prepare.output import require_space, telling_of_the_disk
from rn50_jax.errors import UserError
from rn50_jax.io.files import folder_written_whole
from rn50_jax.io.messages import say
from rn50_jax.io.text import counted
from rn50_jax.runtime.progress_bar import progress

# Of the unpacked files: images and labels of train and val. Packed as they are published, their MD5 sums are
# 8d4fb7e6c68d591d4c3dfef9ec88bf0d, 25c81989df183df01b3e8a0aad5dffbe, bef4ecab320f06d8554ea6380940ec79 and
# bb300cfdad3c16e7a12a480ee83cd310; others, such as Debian, pack the same again.
FASHION_MNIST_MD5 = (
    "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "9018921c3c673c538a1fc5bad174d6f9",
    "8181f5470baa50b63fa0f6fddb340f0a",
    "15d484375f8d13e6eb1aabb0c3f46965",
)
_BLOCK = 4096  # bytes, the least that a file takes on most disks


class Split(NamedTuple):
    """Images of a split.

    images: uint8 [N, H, W] or [N, H, W, 3]. labels: int64 [N]. digits: of the numbers that their files are called by.
    """

    images: np.ndarray
    labels: np.ndarray
    digits: int


def prepare_idx(
    folder: Path,
    out: Path,
    *,
    class_names: Sequence[str] | None = None,
    pad: int = 0,
    transpose: bool = False,
    train_images: int | None = None,
) -> None:
    """Writes `out/train/<class>/<number>.png` and `out/val/...`, complete or not at all, and says what there is.

    The number is the image's position in its file, from 0 on.

    Args:
      folder: holds the four files, see `find_files`.
      out: folder to write, which `check_new` lets pass.
      class_names: by label; None: Fashion-MNIST's if it is that, or else the labels, in as many digits as the largest.
      pad: pixels of black around each image.
      transpose: change rows and columns, for EMNIST, whose images lie on their side.
      train_images: only the first so many of train.

    Raises:
      UserError: a file is missing, damaged or not of the others; a class has no name, or images in one split only;
        `out` cannot be written.
    """
    splits: dict[str, Split] = {}
    sums: list[str] = []
    files = find_files(folder)
    for name, split in files.items():
        images, images_md5 = read_images(split.images)
        labels, labels_md5 = read_labels(split.labels, split.images, len(images))
        _check_split(split, images.shape, labels, class_names, pad)
        count = train_images if name == "train" else None
        images = images.swapaxes(1, 2) if transpose else images
        splits[name] = Split(images[:count], labels[:count], len(str(len(images) - 1)))
        sums += [images_md5, labels_md5]
    shapes = [split.images.shape[1:] for split in splits.values()]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{files['val'].images} has images of {_size(shapes[1])}, and {files['train'].images.name} of "
            f"{_size(shapes[0])}; get files that belong together"
        )
    if train_images is not None and train_images > len(splits["train"].labels):
        say(f"there are {counted(len(splits['train'].labels), 'training image')}, fewer than --train_images")
    if class_names is None and tuple(sums) == FASHION_MNIST_MD5:
        say(f"{folder} is Fashion-MNIST, whose classes have names")
        class_names = FASHION_MNIST
    folder_of = _name_classes(splits, class_names)
    _check_classes(files, splits, folder_of, train_images)
    _write(out, splits, folder_of, pad)
    height, width = (side + 2 * pad for side in splits["train"].images.shape[1:3])
    say(
        f"{out}: {len(splits['train'].labels):,} + {len(splits['val'].labels):,} images of "
        f"{counted(len(folder_of), 'class')}, {width} x {height} pixels"
    )
    names = sorted(folder_of.values())
    if names != list(folder_of.values()):
        say(f"training counts classes by their sorted names: 0 is {names[0]}, and {len(names) - 1} is {names[-1]}")


def check_new(out: Path, instead: str = "") -> None:
    """Refuses a folder to write to that has something in it.

    Args:
      instead: what else to do about it.

    Raises:
      UserError: it has, or it is no folder, or cannot be looked into.
    """
    place = Path(os.path.realpath(out))
    if place == Path.cwd() or place in Path.cwd().parents:
        raise UserError(f"{out} is the folder you are in, or above it, and would be replaced; give one that is new")
    try:
        if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists and is not an empty folder; remove it, or give another{instead}")
    except OSError as error:
        raise UserError(f"{out} cannot be read: {error.strerror}; give another folder") from error


def _check_split(
    files: SplitFiles, shape: tuple[int, ...], labels: np.ndarray, class_names: Sequence[str] | None, pad: int
) -> None:
    if max(shape[1:3]) + 2 * pad > MAX_SIDE:
        raise UserError(f"--pad {pad} makes images of more than {MAX_SIDE} pixels a side; choose less")
    if class_names is not None and labels.max() >= len(class_names):
        raise UserError(
            f"{files.labels} has the label {labels.max()}, and --class_names has "
            f"{counted(len(class_names), 'name')}, of label 0 and so on; add the others"
        )


def _check_classes(
    files: dict[str, SplitFiles], splits: dict[str, Split], folder_of: dict[int, str], train_images: int | None
) -> None:
    """Refuses a class with images in one split only, as training does."""
    for name, other in (("train", "val"), ("val", "train")):
        for label in set(splits[other].labels.tolist()).difference(splits[name].labels.tolist()):
            lacking = f"class {folder_of[label]!r} has images in {other}, but none in {name}"
            if name == "train" and train_images is not None:
                raise UserError(f"{lacking}, of which --train_images takes {train_images:,}; take more")
            raise UserError(f"{files[name].labels}: {lacking}; get files that belong together")


def _name_classes(splits: dict[str, Split], class_names: Sequence[str] | None) -> dict[int, str]:
    """Returns the folder's name of each label that there is, in the order of labels."""
    labels = sorted(set().union(*(split.labels.tolist() for split in splits.values())))
    if class_names is None:
        return {label: f"{label:0{len(str(labels[-1]))}d}" for label in labels}
    folder_of = {label: class_names[label] for label in labels}
    for name in folder_of.values():
        if name.startswith(".") or "/" in name or len(name.encode(errors="replace")) > 255 or not listable(name):
            raise UserError(f"--class_names: {name!r} cannot be the name of a class's folder; change it")
    return folder_of


def _write(out: Path, splits: dict[str, Split], folder_of: dict[int, str], pad: int) -> None:
    """Writes all images to a folder beside `out`, which takes its name at the end."""
    place = Path(os.path.realpath(out))  # a link to an empty folder cannot be replaced
    needed = sum(len(split.labels) * _room(split.images.shape, pad) for split in splits.values())
    with telling_of_the_disk(out, goes_on=False):
        with folder_written_whole(place) as unfinished:
            require_space(place.parent, needed)
            made = unfinished.stat()
            with progress("writing images", sum(len(split.labels) for split in splits.values())) as advance:
                for name, split in splits.items():
                    _write_split(unfinished / name, split, folder_of, pad, advance)
        if not os.path.samestat(made, place.stat()):
            raise UserError(f"{out} is in use, as a mounted disk is or another command's; give another folder")


def _write_split(
    folder: Path, split: Split, folder_of: dict[int, str], pad: int, advance: Callable[[int], None]
) -> None:
    for name in folder_of.values():
        (folder / name).mkdir(parents=True)
    _, height, width, *colors = split.images.shape
    canvas = np.zeros((height + 2 * pad, width + 2 * pad, *colors), np.uint8)
    for number, (pixels, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
        canvas[pad : pad + height, pad : pad + width] = pixels
        png = io.BytesIO()
        Image.fromarray(canvas).save(png, "PNG")
        (folder / folder_of[label] / f"{number:0{split.digits}d}.png").write_bytes(png.getvalue())
        advance(1)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels{' in color' if len(shape) == 3 else ''}"


def _room(shape: tuple[int, ...], pad: int) -> int:
    """Bytes of disk for an image, which PNG makes smaller most often, in whole blocks."""
    _, height, width, *colors = shape
    return -(-(height + 2 * pad) * (width + 2 * pad) * math.prod(colors) // _BLOCK) * _BLOCK
