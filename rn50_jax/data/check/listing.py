"""The content of a data set, without opening an image: what training would see, and what it would not, and why."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rn50_jax.data.formats.class_folders import OTHER_PICTURES, RAW, SUFFIXES, is_folder, kind_of
from rn50_jax.data.formats.file_list import FileList, listable, read_list
from rn50_jax.data.formats.shards import has_shards, index_tar, scan_shards
from rn50_jax.data.formats.splits import SPLITS, is_unsplit
from rn50_jax.data.image_set import ImageSet, Members
from rn50_jax.data.images.headers import DECODABLE, PICTURES
from rn50_jax.errors import UserError
from rn50_jax.io.file_kinds import sniff

# What is wrong with the order of a data set, and what to do.
PROBLEMS = {
    "dangling link": "points to nothing; training leaves it out",
    "no plain file": "a folder, pipe or device named like an image; training leaves it out",
    "unreadable folder": "see its permissions",
    "empty class": "training refuses class folders without images; remove it",
    "class in one split only": "training refuses splits of different classes",
    "class names alike": "they differ in case or Unicode form only; on other file systems they are one",
    "image in no class": "training leaves images outside of class folders out",
    "image in a subfolder": "training leaves what is below class folders out",
    "image of unknown suffix": f"training leaves it out; rename it (it reads {' '.join(SUFFIXES)})",
    "name not UTF-8": "rename it",
    "bad shards": "training refuses them",
}
NOTES = {"stray file": "no image; training leaves it out"}


class Finding(NamedTuple):
    """A problem or note. kind: a key of PROBLEMS or NOTES here, of those of `image_file`, or of `check_data`."""

    kind: str
    path: str
    detail: str = ""


class Split(NamedTuple):
    """The images of a split. kind: how they are kept. names: N, relative to the data folder, or of members of tars."""

    kind: str
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    images: ImageSet

    @property
    def labels(self) -> np.ndarray:
        """Positions in class_names, int32 [N]."""
        return self.images.labels


def list_dataset(root: Path, lists: Iterable[Path] = ()) -> tuple[dict[str, Split], list[Finding]]:
    """Lists `root/train` and `root/val`, or `root` as a single split, or the images that file lists name.

    Raises:
      UserError: there is nothing of this kind, or what `scan_shards` and `read_list` raise.
    """
    if not is_folder(root):
        raise UserError(f"{root} is not a folder; pass a folder with train/ and val/")
    findings: list[Finding] = []
    splits = {file.stem: _list_listed(root, read_list(file), findings) for file in lists}
    if not splits:
        split = [] if is_unsplit(root) else [root / name for name in SPLITS if is_folder(root / name)]
        parts = split or [root]
        splits = {part.name or "data": _list_split(root, part, findings) for part in parts}
    if not any(split.names for split in splits.values()) and not findings:
        raise UserError(
            f"{root} holds no class folders and no tar shards; put images into {root}/train/<class>/<image>"
        )
    _compare_classes(splits, findings)
    return splits, findings


def _list_split(root: Path, folder: Path, findings: list[Finding]) -> Split:
    if not has_shards(folder):
        return _list_folders(root, folder, findings)
    try:
        class_names, images = scan_shards(folder)
    except UserError as error:
        findings.append(Finding("bad shards", _relative(root, str(folder)), str(error)))
        return _list_good_tars(root, folder, findings)
    return Split("tar shards", class_names, images.files, images)


def _list_good_tars(root: Path, folder: Path, findings: list[Finding]) -> Split:
    """What can be read of shards of which some are damaged, missing or unfinished."""
    names: list[str] = []
    rows = [np.zeros((0, 4), np.int64)]  # tar, offset, size, label
    tars = sorted(folder.glob("*.tar"))
    for number, tar in enumerate(tars):
        try:
            found, members = index_tar(tar)
        except UserError as error:
            findings.append(Finding("bad shards", _relative(root, str(tar)), str(error)))
            continue
        names += [f"{tar.name}/{member}" for member in members]
        rows.append(np.insert(found, 0, number, axis=1))
    number_of, offsets, sizes, labels = np.concatenate(rows).T
    class_names = tuple(map(str, range(labels.max(initial=-1) + 1)))
    places = Members(tuple(map(str, tars)), number_of, offsets, sizes)
    return Split("tar shards", class_names, tuple(names), ImageSet(tuple(names), labels.astype(np.int32), places))


def _list_listed(root: Path, listed: FileList, findings: list[Finding]) -> Split:
    for name, count in Counter(listed.files).items():
        if count > 1:
            findings.append(Finding("listed twice", name))
    files = tuple(str(root / name) for name in listed.files)
    return Split("file list", listed.class_names, listed.files, ImageSet(files, listed.labels))


def _list_folders(root: Path, split_dir: Path, findings: list[Finding]) -> Split:
    """The class folders of a split; `class_folders.scan_split` finds the same images where nothing is wrong."""
    class_names = []
    for entry in sorted(_entries(root, split_dir, findings), key=lambda entry: entry.name):
        kind = kind_of(entry)
        name = _relative(root, entry.path)
        if kind == "folder":
            class_names.append(entry.name)
        elif kind == "file":
            picture = _sniff(entry.path) in (*DECODABLE, *PICTURES)
            findings.append(Finding("image in no class" if picture else "stray file", name))
        else:
            findings.append(Finding("dangling link" if kind == "link" else "stray file", name))

    def list_one(name: str) -> tuple[list[str], list[Finding]]:
        found: list[Finding] = []
        return _list_class(root, split_dir / name, found), found

    # Network file systems answer slowly, but many questions at a time.
    with ThreadPoolExecutor(16) as pool:
        per_class = list(pool.map(list_one, class_names))
    for name, (files, found) in zip(class_names, per_class, strict=True):
        findings.extend(found)
        if not files and not any(finding.kind == "unreadable folder" for finding in found):
            findings.append(Finding("empty class", _relative(root, str(split_dir / name))))
    paths = tuple(path for files, _ in per_class for path in files)
    labels = np.repeat(np.arange(len(class_names), dtype=np.int32), [len(files) for files, _ in per_class])
    names = tuple(_relative(root, path) for path in paths)
    findings.extend(Finding("name not UTF-8", name) for name in names if not listable(name))
    strange = [finding.path for _, found in per_class for finding in found if finding.kind == "unknown format"]
    not_read = tuple(path for path in strange if path.lower().endswith(OTHER_PICTURES))
    return Split("class folders", tuple(class_names), names, ImageSet(paths, labels, not_read=not_read))


def _list_class(root: Path, folder: Path, findings: list[Finding]) -> list[str]:
    files = []
    for entry in sorted(_entries(root, folder, findings), key=lambda entry: entry.path):
        name, kind = _relative(root, entry.path), kind_of(entry)
        named_image = entry.name.lower().endswith(SUFFIXES)
        if named_image and kind == "file":
            files.append(entry.path)
        elif kind == "link":
            findings.append(Finding("dangling link", name))
        elif named_image:
            findings.append(Finding("no plain file", name, kind))
        elif kind == "folder":
            findings.append(_look_below(root, Path(entry.path), name))
        else:
            findings.append(_look_at_stray(entry.path, name) if kind == "file" else Finding("stray file", name))
    return files


def _look_below(root: Path, folder: Path, name: str) -> Finding:
    below: list[Finding] = []
    images = sum(entry.name.lower().endswith(SUFFIXES) for entry in _entries(root, folder, below))
    return Finding("image in a subfolder", name, f"images: {images}") if images else Finding("stray file", name)


def _entries(root: Path, folder: Path, findings: list[Finding]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        findings.append(Finding("unreadable folder", _relative(root, str(folder)), error.strerror or ""))
        return []


def _relative(root: Path, path: str) -> str:
    return path.removeprefix(f"{root}/")


def _look_at_stray(path: str, name: str) -> Finding:
    """What a file without an image's suffix is: an image that training could use, one that it could not, or neither."""
    found = _sniff(path)
    if path.lower().endswith(RAW):  # most are TIFF by their first bytes
        return Finding("unknown format", name, "it is a raw photograph")
    if found in DECODABLE:
        return Finding("image of unknown suffix", name)
    if found in PICTURES:
        return Finding("unknown format", name, f"it is {found}")
    return Finding("unknown format" if path.lower().endswith(OTHER_PICTURES) else "stray file", name)


def _sniff(path: str) -> str:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return sniff(file.read(256))
    except OSError:
        return ""


def _compare_classes(splits: dict[str, Split], findings: list[Finding]) -> None:
    """Classes that only one split has, and names that are easily one."""
    for name, split in splits.items():
        for other, others in splits.items():
            for missing in sorted(set(split.class_names) - set(others.class_names)):
                findings.append(Finding("class in one split only", f"{name}/{missing}", f"not in {other}"))
        alike: dict[str, str] = {}
        for class_name in split.class_names:
            plain = unicodedata.normalize("NFC", class_name).casefold().strip()
            if plain in alike:
                findings.append(Finding("class names alike", f"{name}/{class_name}", f"and {alike[plain]!r}"))
            alike[plain] = class_name
