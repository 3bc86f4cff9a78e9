"""Writes a data set's split into training and validation images as folders of links, or as file lists."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from rn50_jax.data.check.listing import Split
from rn50_jax.data.formats.class_folders import is_folder
from rn50_jax.data.formats.file_list import write_list
from rn50_jax.data.val_share import validation_mask
from rn50_jax.errors import UserError

LIST_SUFFIX = ".tsv"


def write_split(
    root: Path, split: Split, *, share: float, seed: int, drop: Collection[int], out: Path
) -> dict[Path, int]:
    """Splits images as `data.val_share` does and writes both parts, without the images to drop.

    Args:
      root: the data folder, from which the split's names begin.
      share: of each class, for validation. seed: that draws it.
      drop: positions of images that neither part gets; they do not move others.
      out: a folder that is made, with train/<class>/<link> and val/<class>/<link>; or a name that ends in .tsv, for
        file lists NAME.train.tsv and NAME.val.tsv of `root`.

    Returns:
      The images of each part, by the folder or list.

    Raises:
      UserError: the split is not of files, a class has too few images, or `out` cannot be written.
    """
    if split.images.members is not None:
        raise UserError(f"--split is for files; train on {root} with --config.data.val_share={share:g} instead")
    is_val = validation_mask(split.names, split.labels, split.class_names, share=share, seed=seed)
    kept = np.ones(len(split.names), bool)
    kept[list(drop)] = False
    parts = {"train": np.flatnonzero(kept & ~is_val), "val": np.flatnonzero(kept & is_val)}
    for name, indices in parts.items():
        for label in set(split.labels.tolist()).difference(split.labels[indices].tolist()):
            raise UserError(
                f"class {split.class_names[label]!r} has too few good images to train on some and validate on others: "
                f"none is for {name}; add images, or remove the class"
            )
    try:
        if out.suffix == LIST_SUFFIX:
            return write_lists(out, split.class_names, {name: (split, part.tolist()) for name, part in parts.items()})
        return _write_links(split, parts, out)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or out}: {error.strerror}") from error


def check_new(out: Path, root: Path) -> None:
    """Refuses a folder to write to that has something in it, or lies in the data.

    Raises:
      UserError: it does, or it is no folder.
    """
    if out.suffix == LIST_SUFFIX:
        return
    if root.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"--out {out} lies in {root} and would be a class of it; choose a folder outside")
    if not os.path.lexists(out):
        return
    try:
        if not is_folder(out) or any(out.iterdir()):
            raise UserError(f"{out} exists and is not empty; give another folder with --out, or remove it")
    except OSError as error:
        raise UserError(f"{out} cannot be read: {error.strerror}; give another folder with --out") from error


def write_lists(
    file: Path, class_names: Sequence[str], parts: dict[str, tuple[Split, Sequence[int]]]
) -> dict[Path, int]:
    """Writes file lists of the given images of splits: FILE of one, or else FILE.train.tsv and so on.

    Returns:
      The number of images by the list.
    """
    written = {}
    file.parent.mkdir(parents=True, exist_ok=True)
    label_of = {name: label for label, name in enumerate(class_names)}
    for name, (split, indices) in parts.items():
        target = file if len(parts) == 1 else file.with_name(f"{file.stem}.{name}{file.suffix or LIST_SUFFIX}")
        labels = [label_of[split.class_names[label]] for label in split.labels[indices].tolist()]
        write_list(target, class_names, [split.names[index] for index in indices], labels)
        written[target] = len(labels)
    return written


def _write_links(split: Split, parts: dict[str, np.ndarray], out: Path) -> dict[Path, int]:
    written = {}
    for name, indices in parts.items():
        for label in np.unique(split.labels[indices]):
            (out / name / split.class_names[label]).mkdir(parents=True)
        for index in indices.tolist():
            file = Path(split.images.files[index])
            link = out / name / split.class_names[split.labels[index]] / file.name
            if link.is_symlink():
                raise UserError(
                    f"two images of class {split.class_names[split.labels[index]]!r} are called {file.name}; rename "
                    f"one, or write lists with --out {out.name}{LIST_SUFFIX}"
                )
            # Relative, so that images and links may be moved together.
            link.symlink_to(os.path.relpath(file.parent.resolve() / file.name, link.parent.resolve()))
        written[out / name] = len(indices)
    return written
