"""Data folders with train/ and val/, and those with classes but no split.

No image is opened, and a folder is listed up to its first picture only: class folders may hold a million on a network.
"""

import os
from collections.abc import Collection
from pathlib import Path

from rn50_jax.data.formats.class_folders import PICTURES, is_folder, kind_of, visible_entries
from rn50_jax.data.formats.shards import has_shards

SPLITS = ("train", "val")


def is_split(folder: Path) -> bool:
    """Returns whether a folder holds class folders with pictures, or tar shards."""
    return is_folder(folder) and (has_shards(folder) or _has_classes(folder))


def is_unsplit(root: Path) -> bool:
    """Returns whether a data folder holds classes or tar shards itself, and neither train/ nor val/ does.

    A folder of pictures called train or val is a class, if there are other classes beside it.
    """
    if any(is_split(root / name) for name in SPLITS):
        return False
    return has_shards(root) or _has_classes(root, besides=SPLITS)


def _has_classes(folder: Path, besides: Collection[str] = ()) -> bool:
    entries = (entry for entry in visible_entries(folder) if entry.name not in besides)
    return any(kind_of(entry) == "folder" and _has_pictures(entry.path) for entry in entries)


def _has_pictures(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(not entry.name.startswith(".") and entry.name.lower().endswith(PICTURES) for entry in entries)
    except OSError:  # whoever reads the class says what is wrong
        return False
