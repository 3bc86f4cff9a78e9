"""The data set of a run, opened."""

from functools import partial
from pathlib import Path

import numpy as np

from rn50_jax.config.schema import Config
from rn50_jax.config.sections.data import DataConfig
from rn50_jax.data.formats.class_folders import is_folder, scan_split
from rn50_jax.data.formats.file_list import read_list
from rn50_jax.data.formats.imagenet_names import imagenet_notes
from rn50_jax.data.formats.shards import has_shards, scan_shards
from rn50_jax.data.formats.splits import is_split, is_unsplit
from rn50_jax.data.image_set import Dataset, ImageSet, check_same_classes
from rn50_jax.data.prepare.digits import write_digits
from rn50_jax.data.synthetic import synthetic_dataset
from rn50_jax.data.val_share import set_apart
from rn50_jax.errors import UserError
from rn50_jax.io.messages import say, warn
from rn50_jax.io.text import counted, shell

_SAME = 0.9  # share of a run's validation images by which a folder is known as the same data, moved or copied
_NOTHING: tuple[tuple[str, ...], ImageSet] = ((), ImageSet((), np.zeros(0, np.int32)))


def open_dataset(
    config: Config,
    *,
    need_train: bool = True,
    need_val: bool = True,
    val_images: frozenset[str] | None = None,
) -> Dataset:
    """Opens the config's data set, checked for everything that can be seen without opening an image.

    A split that is not needed may be missing and is then empty. If only one is needed and the folder has neither
    train/ nor val/ but classes, all of its images are that split.

    Args:
      val_images: with `val_share`, the validation images of an earlier start of the run, see `set_apart`.

    Raises:
      UserError: folder missing or empty, a class without images, train and val classes that differ, another class
        count than `model.num_classes`, or a class too small to set a share of it apart.
    """
    data, num_classes = config.data, config.model.num_classes
    if data.backend == "synthetic":
        return synthetic_dataset(*data.synthetic_images, num_classes)
    root = data.root
    if data.builtin == "digits" and need_train and not root.exists():
        say(f"writing scikit-learn's handwritten digits to {root}")
        write_digits(root)
    if not is_folder(root):
        raise UserError(f"config.data.dir={data.dir!r} is not a folder; pass --config.data.dir=DIR")
    if data.val_share:
        dataset = _open_unsplit(root, data, config.seed, val_images, notes=need_train)
    else:
        both = need_train and need_val
        open_split = partial(_open_split, root, alone=not both, notes=need_train)
        train = open_split("train", data.train_list) if need_train else _NOTHING
        val = open_split("val", data.val_list) if need_val else _NOTHING
        if both:
            check_same_classes(root, train[0], val[0])
        dataset = Dataset(train[1], val[1], train[0] or val[0])
    class_names = dataset.class_names
    if need_train and not len(dataset.train.labels):
        raise UserError(f"{root} has no images to train on beside the run's validation images; give --config.data.dir")
    if need_train and num_classes not in (0, len(class_names)):
        raise UserError(
            f"config.model.num_classes={num_classes}, but {root} has "
            f"{counted(len(class_names), 'class')}; use 0 to take their number"
        )
    for note in imagenet_notes(class_names):
        warn(note)
    return dataset


def misfits(data: DataConfig, *, val_images: frozenset[str] | None) -> list[tuple[str, str]]:
    """Returns the keys that tell a trained model's splits apart and do not fit the images of another `dir`.

    These are file lists that are not there, and a share for validation of which few images are there.

    Args:
      val_images: that the run recorded, if any.

    Returns:
      Keys of the config, and the text of the value without effect.
    """
    root = data.root
    lists = {"data.train_list": data.train_list, "data.val_list": data.val_list}
    found = [(key, "") for key, name in lists.items() if name and not _lists_images(root, name)]
    elsewhere = val_images is not None and not _is_same_data(root, val_images)
    if data.val_share and (elsewhere or is_split(root / "val")):
        found.append(("data.val_share", "0"))
    return found


def _is_same_data(root: Path, val_images: frozenset[str]) -> bool:
    if has_shards(root) or has_shards(root / "train"):  # names inside tars are no paths
        return True
    return sum((root / name).exists() for name in val_images) >= _SAME * len(val_images)


def _lists_images(root: Path, name: str) -> bool:
    file = root / name
    return file.exists() and (root / read_list(file).files[0]).exists()


def _open_unsplit(
    root: Path, data: DataConfig, seed: int, val_images: frozenset[str] | None, *, notes: bool
) -> Dataset:
    """Images that come without a split, of which `val_share` of each class is for validation."""
    share = f"config.data.val_share={data.val_share:g}"
    if data.val_list:
        raise UserError(f"config.data.val_list={data.val_list!r} and {share} exclude each other; drop one")
    if data.train_list:
        class_names, images = _open_split(root, "train", data.train_list)
    else:
        if is_split(root / "val"):
            raise UserError(f"{root / 'val'} has validation images already; leave {share} out, or remove that folder")
        folder = root / "train" if is_split(root / "train") else root
        class_names, images = _scan(folder, root, notes=notes)
    return set_apart(images, class_names, share=data.val_share, seed=seed, chosen=val_images)


def _open_split(
    root: Path, split: str, file_list: str, *, alone: bool = False, notes: bool = True
) -> tuple[tuple[str, ...], ImageSet]:
    """Class names and images of one split: of a file list, of tar shards, or of class folders.

    Args:
      alone: no other split is needed, so that the data folder itself may be it.
      notes: note the pictures that are not read.
    """
    if file_list:
        listed = read_list(root / file_list)
        files = tuple(str(root / file) for file in listed.files)
        if not Path(files[0]).exists():
            raise UserError(
                f"{root / file_list} lists {files[0]}, which does not exist; its paths are relative to config.data.dir"
            )
        return listed.class_names, ImageSet(files, listed.labels, root=str(root))
    other = "val" if split == "train" else "train"
    if is_unsplit(root):
        if not alone:
            raise UserError(_no_split(root, "no split into train/ and val/, but classes"))
        names, images = _scan(root, root, notes=notes)
        say(f"{root} has no {split}/: all {counted(len(images.labels), 'image')} of its classes are taken")
        return names, images
    if is_folder(root / split):
        return _scan(root / split, root, notes=notes)
    if split == "val" and is_split(root / other):
        raise UserError(_no_split(root, "train/, but no val/"))
    return scan_split(root / split, notes=notes)


def _no_split(root: Path, found: str) -> str:
    return (
        f"{root} has {found}; validate on a fifth of each class with --config.data.val_share=0.2, or make both "
        f"folders with: {shell(['python', '-m', 'rn50_jax.check_data', root, '--split', 0.2])}"
    )


def _scan(folder: Path, root: Path, *, notes: bool = True) -> tuple[tuple[str, ...], ImageSet]:
    """Class names and images of a folder with class folders or tar shards; `root` is where names begin."""
    if has_shards(folder):
        return scan_shards(folder)
    class_names, images = scan_split(folder, notes=notes)
    return class_names, images._replace(root=str(root))
