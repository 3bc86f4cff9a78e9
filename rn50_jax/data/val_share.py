"""Sets a share of each class apart for validation, for data that comes without a split."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rn50_jax.data.formats.file_list import read_list, write_list
from rn50_jax.data.image_set import Dataset, ImageSet, names_from_root
from rn50_jax.errors import UserError
from rn50_jax.io.messages import warn

VAL_IMAGES = "val_images.tsv"  # in a work folder: the images that its run validates on


def validation_mask(
    names: Sequence[str], labels: np.ndarray, class_names: Sequence[str], *, share: float, seed: int
) -> np.ndarray:
    """Chooses the validation images: of each class, those whose names have the smallest hashes with the seed.

    An image's side depends on its name, not on its place among others, so that a few more images move few others.

    Args:
      names: N, which differ. labels: int [N], positions in `class_names`.
      share: of each class, rounded to whole images, one at least and all but one at most.

    Returns:
      bool [N].

    Raises:
      UserError: a class has fewer than two images.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    if np.any(small := counts[np.unique(labels)] < 2):
        name = class_names[np.unique(labels)[small][0]]
        others = f" (so have {small.sum() - 1} other classes)" if small.sum() > 1 else ""
        raise UserError(
            f"class {name!r} has 1 image{others}, too few to train on one and validate on another; add images, or "
            "remove the class"
        )
    wanted = np.clip(np.floor(share * counts + 0.5).astype(np.int64), 1, np.maximum(counts - 1, 1))
    hashes = np.fromiter((_hash(seed, name) for name in names), np.uint64, len(names))
    order = np.lexsort((hashes, labels))
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names)) - (np.cumsum(counts) - counts)[labels[order]]
    mask: np.ndarray = rank < wanted[labels]
    return mask


def _hash(seed: int, name: str) -> int:
    data = f"{seed}\0{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def set_apart(
    images: ImageSet, class_names: tuple[str, ...], *, share: float, seed: int, chosen: frozenset[str] | None = None
) -> Dataset:
    """Splits images into those to train on and those to validate on.

    Args:
      chosen: names from their root of the validation images of an earlier split, which then stay the same; images that
        were not there at that time are trained on.

    Raises:
      UserError: see `validation_mask`; or none of the chosen images is there.
    """
    names = names_from_root(images)
    if chosen is None:
        chosen = _choose(names, images.labels, class_names, share=share, seed=seed)
    else:
        if gone := len(chosen.difference(names)):
            if gone == len(chosen):
                raise UserError(
                    f"none of the {gone} validation images that the run set apart is in {images.root}; give the data "
                    "that it was trained on (rn50_jax.evaluate takes all images of another folder with "
                    "--config.data.val_share=0)"
                )
            first = min(chosen.difference(names))
            warn(f"{gone} of {len(chosen)} validation images of this run are gone from {images.root}, such as {first}")
    mask = np.fromiter((name in chosen for name in names), bool, len(names))
    val = select(images, mask)._replace(not_read=())  # they count once
    return Dataset(select(images, ~mask), val, class_names)


def _choose(
    names: Sequence[str], labels: np.ndarray, class_names: Sequence[str], *, share: float, seed: int
) -> frozenset[str]:
    """The names that `validation_mask` chooses; an image that a list names twice is one."""
    places = list({name: place for place, name in reversed(list(enumerate(names)))}.values())
    unique = [names[place] for place in places]
    mask = validation_mask(unique, labels[places], class_names, share=share, seed=seed)
    return frozenset(unique[place] for place in np.flatnonzero(mask))


def select(images: ImageSet, mask: np.ndarray) -> ImageSet:
    """Returns the images for which the mask, bool [N], is True, in their order."""
    members = images.members
    if members is not None:
        members = members._replace(tar=members.tar[mask], offset=members.offset[mask], size=members.size[mask])
    files = tuple(images.files[index] for index in np.flatnonzero(mask))
    return images._replace(files=files, labels=images.labels[mask], members=members)


def write_val_images(workdir: Path, dataset: Dataset) -> None:
    """Records the validation images of a run in its work folder, as a file list with paths from the data folder.

    Raises:
      UserError: a name cannot be in a list.
      OSError: it cannot be written.
    """
    labels = dataset.val.labels.tolist()
    write_list(workdir / VAL_IMAGES, dataset.class_names, names_from_root(dataset.val), labels)


def read_val_images(workdir: Path) -> frozenset[str] | None:
    """Reads the names that `write_val_images` recorded; None if there is no such file.

    Raises:
      UserError: the file is damaged.
    """
    file = workdir / VAL_IMAGES
    return frozenset(name.removeprefix("./") for name in read_list(file).files) if file.exists() else None
