"""The index of a class-folder tree: `train/<class>/<image>` and `val/<class>/<image>`."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rn50_jax.data.digits import write_digits
from rn50_jax.errors import UserError

# What DALI decodes, by the names that people give such files.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2")


class ImageSet(NamedTuple):
    """Images of one split, sorted by class and name. files: N paths (none for synthetic data). labels: int32 [N]."""

    files: tuple[str, ...]
    labels: np.ndarray


class Dataset(NamedTuple):
    """Both splits and the class names, whose position is the label."""

    train: ImageSet
    val: ImageSet
    class_names: tuple[str, ...]


def open_dataset(config: ConfigDict, *, need_train: bool = True, need_val: bool = True) -> Dataset:
    """The data set that the config names, checked for everything that can be seen without opening an image.

    A split that is not needed may be missing and is then empty.

    Raises:
      UserError: folder missing or empty, a class without images, train and val classes that differ, or another
        class count than `model.num_classes`.
    """
    if config.data.backend == "synthetic":
        return _synthetic(config)
    root = Path(config.data.dir).expanduser()
    if config.data.builtin == "digits" and not root.exists():
        write_digits(root)
    if not root.is_dir():
        raise UserError(f"config.data.dir={config.data.dir!r} is not a folder; pass --config.data.dir=DIR")
    names: dict[str, tuple[str, ...]] = {}
    images = {"train": _NO_IMAGES, "val": _NO_IMAGES}
    for split, needed in (("train", need_train), ("val", need_val)):
        if needed:
            names[split], images[split] = scan_split(root / split)
    if need_train and need_val:
        _check_same_classes(root, names["train"], names["val"])
    class_names = names["train" if need_train else "val"]
    if config.model.num_classes not in (0, len(class_names)):
        raise UserError(
            f"config.model.num_classes={config.model.num_classes}, but {root} has {len(class_names)} class folders; "
            "use 0 to take their number"
        )
    return Dataset(images["train"], images["val"], class_names)


_NO_IMAGES = ImageSet((), np.zeros(0, np.int32))


def _synthetic(config: ConfigDict) -> Dataset:
    num_train, num_val = config.data.synthetic_images
    num_classes = config.model.num_classes or 1000
    return Dataset(
        ImageSet((), np.zeros(num_train, np.int32)),
        ImageSet((), np.zeros(num_val, np.int32)),
        tuple(str(label) for label in range(num_classes)),
    )


def scan_split(split_dir: Path) -> tuple[tuple[str, ...], ImageSet]:
    """Lists the class folders of a split and the images directly in them.

    Hidden files and folders and files without an image suffix are left out; classes and images are sorted by name.
    """
    if not split_dir.is_dir():
        raise UserError(f"{split_dir} does not exist; put images into {split_dir}/<class>/<image>")
    with os.scandir(split_dir) as entries:
        class_names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not class_names:
        raise UserError(f"{split_dir} has no class folders; put images into {split_dir}/<class>/<image>")
    # Network file systems answer slowly, but many questions at a time.
    with ThreadPoolExecutor(16) as pool:
        per_class = list(pool.map(_list_images, [split_dir / name for name in class_names]))
    empty = [name for name, files in zip(class_names, per_class, strict=True) if not files]
    if empty:
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise UserError(f"class folder {split_dir / empty[0]}{more} has no images; add some or remove the folder")
    labels = np.repeat(np.arange(len(class_names), dtype=np.int32), [len(files) for files in per_class])
    return tuple(class_names), ImageSet(tuple(file for files in per_class for file in files), labels)


def _list_images(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            e.path
            for e in entries
            if e.name.lower().endswith(SUFFIXES) and not e.name.startswith(".") and e.is_file()
        )


def _check_same_classes(root: Path, train: tuple[str, ...], val: tuple[str, ...]) -> None:
    for name in sorted(set(train) ^ set(val)):
        here, missing = ("train", "val") if name in train else ("val", "train")
        raise UserError(f"{root}: class {name!r} is in {here}/ but not in {missing}/; both need the same class folders")


def check_class_names(found: tuple[str, ...], trained: tuple[str, ...], data_dir: str) -> None:
    """Refuses data whose class folders are not those that a checkpoint was trained on."""
    if found == trained:
        return
    detail = f"{len(found)} classes instead of {len(trained)}"
    for name in sorted(set(found) ^ set(trained)):
        detail = f"class {name!r} is " + ("new" if name in found else "missing")
        break
    raise UserError(f"the class folders of {data_dir} are not those that the checkpoint was trained on: {detail}")
