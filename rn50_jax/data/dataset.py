"""The data set that a config names."""

import os
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rn50_jax.data.digits import write_digits
from rn50_jax.data.filelist import find_odd, read_list
from rn50_jax.data.folder import Dataset, ImageSet, Members, check_same_classes, is_folder, scan_split
from rn50_jax.data.names import imagenet_notes
from rn50_jax.data.shards import has_shards, scan_shards
from rn50_jax.data.synthetic import synthetic_dataset
from rn50_jax.errors import UserError, say, warn
from rn50_jax.text import counted


def root_of(config: ConfigDict) -> Path:
    """The folder `data.dir`, with `~` for the user's home, if there is one."""
    return Path(os.path.expanduser(config.data.dir))  # noqa: PTH111, that of Path raises where there is none


def open_dataset(config: ConfigDict, *, need_train: bool = True, need_val: bool = True) -> Dataset:
    """The data set that the config names, checked for everything that can be seen without opening an image.

    A split that is not needed may be missing and is then empty.

    Raises:
      UserError: folder missing or empty, a class without images, train and val classes that differ, or another
        class count than `model.num_classes`.
    """
    if config.data.backend == "synthetic":
        return synthetic_dataset(config)
    root = root_of(config)
    if config.data.builtin == "digits" and need_train and not root.exists():
        say(f"writing scikit-learn's handwritten digits to {root}")
        write_digits(root)
    if not is_folder(root):
        raise UserError(f"config.data.dir={config.data.dir!r} is not a folder; pass --config.data.dir=DIR")
    nothing = ((), ImageSet((), np.zeros(0, np.int32)))
    train_classes, train = _open_split(root, "train", config.data.train_list) if need_train else nothing
    val_classes, val = _open_split(root, "val", config.data.val_list) if need_val else nothing
    if need_train and need_val:
        check_same_classes(root, train_classes, val_classes)
    class_names = train_classes or val_classes
    if config.model.num_classes not in (0, len(class_names)):
        raise UserError(
            f"config.model.num_classes={config.model.num_classes}, but {root} has "
            f"{counted(len(class_names), 'class')}; use 0 to take their number"
        )
    for note in imagenet_notes(class_names):
        warn(note)
    return Dataset(train, val, class_names)


def _open_split(root: Path, split: str, file_list: str) -> tuple[tuple[str, ...], ImageSet]:
    """Class names and images of one split: of a file list, of tar shards, or of class folders."""
    if file_list:
        listed = read_list(root / file_list)
        files = tuple(str(root / file) for file in listed.files)
        if not Path(files[0]).exists():
            raise UserError(
                f"{root / file_list} lists {files[0]}, which does not exist; its paths are relative to config.data.dir"
            )
        if odd := find_odd(files):
            raise UserError(f"{root / file_list} lists {odd}, which is a folder, pipe or device; remove that line")
        return listed.class_names, ImageSet(files, listed.labels, root=str(root))
    if has_shards(root / split):
        class_names, shards = scan_shards(root / split)
        members = Members(shards.tars, shards.shard, shards.offsets, shards.sizes)
        return class_names, ImageSet(shards.names, shards.labels, members)
    return scan_split(root / split)
