"""The official archives of ILSVRC2012: their content, and their images as class folders."""

import gzip
import hashlib
import io
import re
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rn50_jax.data.formats.tars import Member, read_members
from rn50_jax.errors import UserError
from rn50_jax.io.files import UNFINISHED, folder_written_whole, open_regular

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
# As published with the archives.
MD5 = {
    TRAIN: "1d675b47d978889d74fa0da5fadfb00e",
    VAL: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
}
_META = "data/meta.mat"
_LABELS = "data/ILSVRC2012_validation_ground_truth.txt"
_MOST = 10**8  # bytes of an image, and of the devkit when it is unpacked
_IMAGE_NAME = re.compile(r"(n[0-9]{8}_[0-9]{1,9}|ILSVRC2012_val_[0-9]{8})\.JPEG")

Advance = Callable[[int], None]


class Devkit(NamedTuple):
    """synsets: the classes, sorted. train_images: how many each has. val_synsets: the class of each image, in order."""

    synsets: tuple[str, ...]
    train_images: dict[str, int]
    val_synsets: tuple[str, ...]


class Part(NamedTuple):
    """A piece of work: the images of one class and split.

    folder: where they go. archive: where they are. images, size: how many, and their bytes, or a little more.
    list_images: gives their places in the archive.
    """

    folder: Path
    archive: Path
    images: int
    size: int
    list_images: Callable[[], Sequence[Member]]


def plan(train: Path, val: Path, out: Path, devkit: Devkit) -> list[Part]:
    """Lists what is to be extracted: every class of both splits whose folder is not there.

    Raises:
      UserError: an archive is damaged, cut off, or has other classes.
    """
    parts = []
    train_tars = _find_class_tars(train, devkit)
    for name, tar in train_tars.items():
        list_images = partial(_list_class, train, tar)
        parts.append(Part(out / "train" / name, train, devkit.train_images[name], tar.size, list_images))
    if any(not (out / "val" / name).is_dir() for name in devkit.synsets):
        for name, images in _list_val(val, devkit).items():
            size = sum(image.size for image in images)
            parts.append(Part(out / "val" / name, val, len(images), size, partial(tuple, images)))
    return [part for part in parts if not part.folder.is_dir()]


def read_devkit(archive: Path) -> Devkit:
    """Reads the classes and the validation labels.

    Raises:
      UserError: it is damaged, or not this devkit.
    """
    from scipy.io import loadmat

    found: dict[str, bytes] = {}
    try:
        with open_regular(archive) as packed, gzip.open(packed) as file:
            data = file.read(_MOST + 1)
        if len(data) > _MOST:
            raise ValueError(f"more than {_MOST // 10**6} MB when it is unpacked")
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                if member.size < 0:  # some versions of tarfile would read on and on
                    raise ValueError(f"{member.name} of {member.size} bytes")
                name = next((name for name in (_META, _LABELS) if member.name.endswith(name)), None)
                if name and member.isreg() and (content := tar.extractfile(member)):
                    found[name] = content.read()
        synsets = np.atleast_1d(loadmat(io.BytesIO(found[_META]), squeeze_me=True)["synsets"])
        # Inner nodes of the tree of synsets have children; the classes are its leaves, numbered from 1.
        leaves = [row for row in synsets if int(row["num_children"]) == 0]
        synset_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
        train_images = {str(row["WNID"]): int(row["num_train_images"]) for row in leaves}
        val_synsets = tuple(synset_of[int(line)] for line in found[_LABELS].split())
    except KeyError as error:
        raise UserError(f"{archive} has no {error.args[0]!r}; is it ILSVRC2012's devkit for tasks 1 and 2?") from error
    except Exception as error:  # of all kinds, most of them from inside of MATLAB's format
        raise UserError(f"{archive} cannot be read ({error}); get it again") from error
    if sorted(synset_of) != list(range(1, len(leaves) + 1)) or len(set(synset_of.values())) != len(leaves):
        raise UserError(f"{archive}: its {len(leaves)} classes are not numbered from 1")
    for name in train_images:
        if not re.fullmatch(r"n[0-9]{8}", name):
            raise UserError(f"{archive}: {name!r} is no synset")
    return Devkit(tuple(sorted(train_images)), train_images, val_synsets)


def _find_class_tars(archive: Path, devkit: Devkit) -> dict[str, Member]:
    """Where in the archive of training images each class's own archive is."""
    tars = (member for member in read_members(archive) if member.suffix == "tar")
    found = {member.key: member for member in _unique(str(archive), tars)}
    if set(found) != set(devkit.synsets):
        wrong = sorted(set(found) ^ set(devkit.synsets))
        raise UserError(f"{archive} does not have the devkit's classes (see {wrong[0]!r} and {len(wrong) - 1} more)")
    return {name: found[name] for name in devkit.synsets}


def _list_class(archive: Path, tar: Member) -> tuple[Member, ...]:
    """The images in the archive of one class, which lies in `archive`."""
    where = f"{archive}: {tar.name}"
    members = read_members(archive, inside=tar, refuse=partial(_refuse, where))
    return tuple(_unique(where, _images(where, members)))


def _list_val(archive: Path, devkit: Devkit) -> dict[str, tuple[Member, ...]]:
    """The validation images of each class: the devkit labels them by number."""
    members = sorted(_images(str(archive), read_members(archive)), key=lambda member: member.name)
    if len(members) != len(devkit.val_synsets):
        raise UserError(f"{archive} has {len(members)} images, and the devkit labels of {len(devkit.val_synsets)}")
    images: dict[str, list[Member]] = {name: [] for name in devkit.synsets}
    for number, (member, synset) in enumerate(zip(members, devkit.val_synsets, strict=True), 1):
        if member.name != f"ILSVRC2012_val_{number:08d}.JPEG":
            raise UserError(f"{archive} lacks image number {number}; get it again")
        images[synset].append(member)
    return {synset: tuple(found) for synset, found in images.items()}


def _images(where: str, members: Iterable[Member]) -> Iterator[Member]:
    """The same; also keeps names such as ../../x from being written anywhere."""
    for member in members:
        if not _IMAGE_NAME.fullmatch(member.name):
            _refuse(where, member.name)
        if member.size > _MOST:
            raise UserError(f"{where}: {member.name} has {member.size} bytes, which is no image of ILSVRC2012")
        yield member


def _refuse(where: str, name: str) -> None:
    raise UserError(f"{where} holds {name[:200]!r}, which is no image of ILSVRC2012")


def _unique(where: str, members: Iterable[Member]) -> Iterator[Member]:
    names: set[str] = set()
    for member in members:
        if member.name in names:
            raise UserError(f"{where} holds {member.name!r} twice; get it again")
        names.add(member.name)
        yield member


def extract(parts: Sequence[Part], *, workers: int, advance: Advance) -> None:
    """Writes each part's folder, complete or not at all.

    Raises:
      UserError: an archive is damaged, or holds something else.
      OSError: something cannot be written.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_extract_one, part, stop, advance) for part in parts]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _extract_one(part: Part, stop: threading.Event, advance: Advance) -> None:
    for left in part.folder.parent.glob(f".{part.folder.name}{UNFINISHED}-*"):  # by a killed process
        shutil.rmtree(left)
    with part.archive.open("rb") as archive, folder_written_whole(part.folder) as unfinished:
        for image in part.list_images():
            if stop.is_set():
                raise CancelledError
            archive.seek(image.offset)
            data = archive.read(image.size)
            if len(data) != image.size:
                raise UserError(f"{part.archive} is cut off; get it again")
            (unfinished / image.name).write_bytes(data)
            advance(1)


def wrong_md5(file: Path, advance: Advance) -> str | None:
    """Returns the MD5 of an archive if it is not the published one; `advance` is called with the bytes read."""
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as opened:
        for block in iter(partial(opened.read, 2**22), b""):
            digest.update(block)
            advance(len(block))
    return None if digest.hexdigest() == MD5[file.name] else digest.hexdigest()
