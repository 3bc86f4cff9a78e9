"""The data set that a config names."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rn50_jax.data.digits import write_digits
from rn50_jax.data.folder import Dataset, ImageSet, check_same_classes, scan_split
from rn50_jax.data.synthetic import synthetic_dataset
from rn50_jax.errors import UserError


def open_dataset(config: ConfigDict, *, need_train: bool = True, need_val: bool = True) -> Dataset:
    """The data set that the config names, checked for everything that can be seen without opening an image.

    A split that is not needed may be missing and is then empty.

    Raises:
      UserError: folder missing or empty, a class without images, train and val classes that differ, or another
        class count than `model.num_classes`.
    """
    if config.data.backend == "synthetic":
        return synthetic_dataset(config)
    root = Path(config.data.dir).expanduser()
    if config.data.builtin == "digits" and need_train and not root.exists():
        print(f"writing scikit-learn's handwritten digits to {root}")
        write_digits(root)
    if not root.is_dir():
        raise UserError(f"config.data.dir={config.data.dir!r} is not a folder; pass --config.data.dir=DIR")
    nothing = ((), ImageSet((), np.zeros(0, np.int32)))
    train_classes, train = scan_split(root / "train") if need_train else nothing
    val_classes, val = scan_split(root / "val") if need_val else nothing
    if need_train and need_val:
        check_same_classes(root, train_classes, val_classes)
    class_names = train_classes or val_classes
    if config.model.num_classes not in (0, len(class_names)):
        raise UserError(
            f"config.model.num_classes={config.model.num_classes}, but {root} has {len(class_names)} class folders; "
            "use 0 to take their number"
        )
    return Dataset(train, val, class_names)
