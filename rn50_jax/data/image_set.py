"""Images with labels, wherever they lie, and the sets of a run."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rn50_jax.data.images.headers import MAX_BYTES, ImageProblem
from rn50_jax.errors import UserError
from rn50_jax.io.files import open_regular
from rn50_jax.io.messages import warn
from rn50_jax.io.text import counted


class Members(NamedTuple):
    """The places of N images inside tar files.

    tars: paths. tar: int32 [N], whose member an image is. offset, size: int64 [N], bytes of it in the tar.
    """

    tars: tuple[str, ...]
    tar: np.ndarray
    offset: np.ndarray
    size: np.ndarray


class Source(NamedTuple):
    """The place of an image's bytes: `size` from `offset` of a file, or all of it (-1)."""

    path: str
    offset: int = 0
    size: int = -1


class ImageSet(NamedTuple):
    """Images of one split, sorted by class and name.

    files: N paths, or names inside tars (none for synthetic data). labels: int32 [N]. members: None for plain files.
    root: of plain files, the data's folder, as the paths begin with it. not_read: pictures beside them whose format is
    not read.
    """

    files: tuple[str, ...]
    labels: np.ndarray
    members: Members | None = None
    root: str = ""
    not_read: tuple[str, ...] = ()


def root_of(images: ImageSet) -> str:
    """Returns the folder that images are named from: the data's root, or else what their paths have in common."""
    if images.members is not None:
        return ""
    root, files = images.root, images.files
    if root and any(file.startswith(f"{root.rstrip('/')}/") for file in files):
        return root
    if not files or not all(file.startswith("/") for file in files):
        return ""
    return os.path.commonpath([os.path.dirname(min(files)), os.path.dirname(max(files))])  # noqa: PTH120


def names_from_root(images: ImageSet) -> Sequence[str]:
    """Returns the images' paths from their root, by which they are known wherever it lies.

    Files outside of it have their whole path. Images in tars have the names that they were packed by.
    """
    root = root_of(images)
    return [file.removeprefix(f"{root.rstrip('/')}/") for file in images.files] if root else images.files


def read_image(images: ImageSet, index: int) -> bytes:
    """Reads the encoded bytes of one image.

    Raises:
      OSError: it cannot be read, or is no plain file.
      ImageProblem: it has more than 600 MB.
    """
    if images.members is None:
        return read_source(Source(images.files[index]))
    tars, tar, offset, size = images.members
    return read_source(Source(tars[tar[index]], int(offset[index]), int(size[index])))


def sources_of(images: ImageSet) -> list[Source]:
    """Returns where the bytes of all images are, in their order."""
    if images.members is None:
        return [Source(file) for file in images.files]
    tars, tar, offset, size = images.members
    columns = zip(tar.tolist(), offset.tolist(), size.tolist(), strict=True)
    return [Source(tars[number], first, count) for number, first, count in columns]


def read_source(source: Source) -> bytes:
    """Reads the encoded bytes of an image; raises as `read_image`."""
    path, offset, size = source
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size if size < 0 else size
        if size > MAX_BYTES:
            raise ImageProblem("too large", f"more than {MAX_BYTES // 10**6} MB")
        return os.pread(file.fileno(), size, offset)


class Dataset(NamedTuple):
    """Both splits and the class names, whose position is the label."""

    train: ImageSet
    val: ImageSet
    class_names: tuple[str, ...]


def fingerprint(images: ImageSet, class_names: Sequence[str] = ()) -> str:
    """Returns the number of images and a hash of their order, names and labels, and of the class names."""
    digest = hashlib.sha256()
    for names in (names_from_root(images), class_names):
        # With lengths, so that no character in a name makes two sets equal.
        digest.update(np.fromiter(map(len, names), np.int64, len(names)).tobytes())
        digest.update("".join(names).encode("utf-8", "surrogatepass"))
    digest.update(images.labels.astype(np.int64).tobytes())
    return f"{len(images.labels)} images with names and labels {digest.hexdigest()[:16]}"


def check_same_classes(root: Path, train: tuple[str, ...], val: tuple[str, ...]) -> None:
    """Refuses splits with different class folders."""
    for name in sorted(set(train) ^ set(val)):
        here, missing = ("train", "val") if name in train else ("val", "train")
        raise UserError(f"{root}: class {name!r} is in {here}/ but not in {missing}/; both need the same class folders")


def check_class_names(found: tuple[str, ...], trained: tuple[str, ...], data_dir: str) -> None:
    """Refuses data whose class folders are not those that a checkpoint was trained on."""
    if found == trained:
        return
    detail = f"{counted(len(found), 'class')} instead of {len(trained)}"
    for name in sorted(set(found) ^ set(trained)):
        detail = f"class {name!r} is " + ("new" if name in found else "missing")
        break
    raise UserError(f"the class folders of {data_dir} are not those that the checkpoint was trained on: {detail}")


def with_classes(dataset: Dataset, trained: tuple[str, ...], data_dir: str) -> Dataset:
    """Returns a data set whose labels are those of a trained model: classes are matched by name.

    The data may have some of the model's classes only, and says so then.

    Raises:
      UserError: it has a class that the model does not know.
    """
    found = dataset.class_names
    if found == trained:
        return dataset
    if set(found) - set(trained):
        check_class_names(found, trained, data_dir)
    label_of = {name: label for label, name in enumerate(trained)}
    labels = np.array([label_of[name] for name in found], np.int32)
    if len(found) < len(trained):
        warn(f"{data_dir} has {len(found)} of the {len(trained)} classes; the model still chooses among all of them")
    train, val = (images._replace(labels=labels[images.labels]) for images in (dataset.train, dataset.val))
    return Dataset(train, val, trained)
