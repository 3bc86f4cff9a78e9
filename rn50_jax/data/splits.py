"""Whether a data folder holds train/ and val/, or classes without a split; no image is opened."""

from pathlib import Path

from rn50_jax.data.folder import PICTURES, is_folder, kind_of, visible_entries
from rn50_jax.data.shards import has_shards

SPLITS = ("train", "val")


def is_split(folder: Path) -> bool:
    """Returns whether a folder holds class folders with pictures, or tar shards."""
    return is_folder(folder) and (has_shards(folder) or bool(_classes(folder)))


def is_unsplit(root: Path) -> bool:
    """Returns whether a data folder holds classes or tar shards itself, and neither train/ nor val/ does.

    A folder of pictures called train or val is a class, if there are other classes beside it.
    """
    if any(is_split(root / name) for name in SPLITS):
        return False
    return has_shards(root) or bool(_classes(root).difference(SPLITS))


def _classes(folder: Path) -> set[str]:
    """Names of the folders with pictures in a folder."""
    inside = (entry for entry in visible_entries(folder) if kind_of(entry) == "folder")
    return {entry.name for entry in inside if _has_pictures(Path(entry.path))}


def _has_pictures(folder: Path) -> bool:
    return any(entry.name.lower().endswith(PICTURES) for entry in visible_entries(folder))
