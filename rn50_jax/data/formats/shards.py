"""The index of WebDataset tar shards: where in which tar each image lies, so that it is read with a single `pread`.

A sample is `<key>.<image suffix>` and `<key>.cls`, the number of its class in ASCII digits. `python -m rn50_jax.pack`
writes such shards, and `index.npz` beside them, from which 1.28 million samples are known in about a second. Without it
the headers of the tars are read. The index files of DALI's `wds2idx` (`<shard>.idx`) are for other programs: to verify
what they say takes as long as the headers.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from rn50_jax.config.limits import MOST_CLASSES
from rn50_jax.data.formats.class_folders import OTHER_PICTURES, SUFFIXES, is_folder, kind_of, visible_entries
from rn50_jax.data.formats.file_list import list_file, read_list
from rn50_jax.data.formats.tars import group_members, read_members
from rn50_jax.data.image_set import ImageSet, Members
from rn50_jax.errors import UserError
from rn50_jax.io.files import UNFINISHED, open_regular, written_whole
from rn50_jax.io.json_files import read_json
from rn50_jax.io.messages import warn
from rn50_jax.io.text import shell

INDEX_FILE = "index.npz"
DATASET_FILE = "dataset.json"
JOURNAL = DATASET_FILE + ".partial"  # of a pack that is not done yet


class Shard(TypedDict):
    """A tar that `dataset.json` lists. sha256: if `pack` wrote it."""

    file: str
    images: NotRequired[int]
    bytes: NotRequired[int]
    sha256: NotRequired[str]


class SplitDescription(TypedDict):
    """A split in `dataset.json`."""

    images: NotRequired[int]
    shards: list[Shard]


class Description(TypedDict, total=False):
    """The content of `dataset.json`. plan: a hash of the files that `pack` packed."""

    format: str
    plan: str
    class_names: list[str]
    splits: dict[str, SplitDescription]


def has_shards(split_dir: Path) -> bool:
    """Returns whether a folder holds tar files, finished or not, and no folders: beside those, tars are left-overs."""
    if not is_folder(split_dir):
        return False
    entries = visible_entries(split_dir)
    tars = any(entry.name.endswith((".tar", f".tar{UNFINISHED}")) for entry in entries)
    return tars and not any(kind_of(entry) == "folder" for entry in entries)


def list_tars(split_dir: Path) -> list[Path]:
    """Lists the tar files of a split, sorted, without hidden ones.

    Raises:
      UserError: there are none, or `pack` has not finished them.
    """
    if not split_dir.is_dir():
        raise UserError(f"{split_dir} does not exist; put tar shards into {split_dir}/*.tar")
    tars = sorted(path for path in split_dir.glob("*.tar") if not path.name.startswith(".") and path.is_file())
    plan = split_dir.parent / JOURNAL
    if plan.exists() or any(split_dir.glob(f"*.tar{UNFINISHED}")):
        raise UserError(f"{split_dir.parent} is not packed to its end; run the same rn50_jax.pack command again")
    if not tars:
        raise UserError(f"{split_dir} has no tar shards")
    return tars


def scan_shards(split_dir: Path) -> tuple[tuple[str, ...], ImageSet]:
    """Lists the class names and images in the tar files of a split.

    Of shards that `pack` wrote, images have the names and the order of the files that were packed. Of other shards,
    names are `<tar>/<member>`, and images come in their order in the tars.

    Class names are those of `dataset.json` in the folder above; without it, the numbers from 0 to the largest found.
    Reads no image. Safe to call in several processes at a time: it writes nothing.

    Raises:
      UserError: no tars, unfinished, missing or cut off ones, a sample without image or label, or a label that is no
        number or has no class name.
    """
    tars = list_tars(split_dir)
    described = read_description(split_dir)
    split = described.get("splits", {}).get(split_dir.name)
    for shard in split["shards"] if split else []:
        if not (split_dir / shard["file"]).is_file():
            raise UserError(
                f"{split_dir / shard['file']} is missing: {DATASET_FILE} lists it; copy it again or pack again"
            )
    images = read_index(split_dir, tars)
    if images is None:
        images = index_tars(split_dir, tars)
    num_classes = int(images.labels.max()) + 1
    class_names = tuple(described.get("class_names") or map(str, range(num_classes)))
    if num_classes > len(class_names):
        at = int(images.labels.argmax())
        raise UserError(
            f"{images.files[at]} has label {num_classes - 1}, but {split_dir.parent / DATASET_FILE} names only "
            f"{len(class_names)} classes, from 0"
        )
    return class_names, images


def read_description(split_dir: Path) -> Description:
    """Reads `dataset.json` in the folder above a split; nothing if there is none.

    Raises:
      UserError: it cannot be read, or does not say that.
    """
    file = split_dir.parent / DATASET_FILE
    try:
        described = read_json(file, Description)
        names = described.get("class_names", ["?"])
        if not names or "" in names or len(set(names)) < len(names):
            raise ValueError("class_names has none, an empty one or one twice")
        return described
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        renew = shell(["python", "-m", "rn50_jax.pack", "--index", file.parent, "--class_names", "NAMES"])
        raise UserError(f"{file} is damaged ({error}); remove it, and write it again: {renew}") from error


def read_index(split_dir: Path, tars: Sequence[Path]) -> ImageSet | None:
    """Reads `index.npz`; None if there is none, or it is not of tars of these names, sizes and times."""
    file = split_dir / INDEX_FILE
    try:
        images = _load_index(file, tars)
    except FileNotFoundError:
        return None
    except Exception:  # NumPy and zipfile raise all kinds for damaged files
        images = None
    if images is None:
        renew = shell(["python", "-m", "rn50_jax.pack", "--index", Path(split_dir).parent])
        warn(f"{file} does not belong to the tars beside it and is not used; renew it: {renew}")
    return images


def _load_index(file: Path, tars: Sequence[Path]) -> ImageSet | None:
    """The images of an index; None if it cannot be true of these tars."""
    with open_regular(file) as opened, np.load(opened, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    found = [os.stat(tar) for tar in tars]  # noqa: PTH116
    tar_sizes = np.array([tar.st_size for tar in found], np.int64)
    if (
        _unpack(arrays["tars"]) != [tar.name for tar in tars]
        or not np.array_equal(arrays["tar_sizes"], tar_sizes)
        or not np.array_equal(arrays["tar_times"], [tar.st_mtime_ns for tar in found])
    ):
        return None
    names = tuple(_unpack(arrays["names"]))
    columns = []
    for name, dtype in (("shard", np.int32), ("offsets", np.int64), ("sizes", np.int64), ("labels", np.int32)):
        column = arrays[name]
        if column.dtype.kind not in "iu" or column.shape != (len(names),) or not np.can_cast(column.dtype, dtype):
            return None
        columns.append(column.astype(dtype, copy=False))
    shard, offsets, sizes, labels = columns
    if min(column.min() for column in columns) < 0 or shard.max() >= len(tars) or labels.max() >= MOST_CLASSES:
        return None
    if np.any(sizes > tar_sizes[shard]) or np.any(offsets > tar_sizes[shard] - sizes):
        return None
    return ImageSet(names, labels, Members(tuple(map(str, tars)), shard, offsets, sizes))


def write_index(split_dir: Path, images: ImageSet) -> None:
    """Writes `index.npz` for `read_index`, complete or not at all.

    Raises:
      OSError: it cannot be written.
    """
    assert images.members is not None
    tars, shard, offsets, sizes = images.members
    found = [os.stat(tar) for tar in tars]  # noqa: PTH116
    with written_whole(split_dir / INDEX_FILE) as unfinished, unfinished.open("wb") as file:
        np.savez(
            file,
            tars=_pack([Path(tar).name for tar in tars]),
            tar_sizes=np.array([tar.st_size for tar in found], np.int64),
            tar_times=np.array([tar.st_mtime_ns for tar in found], np.int64),
            shard=shard,
            offsets=offsets,
            sizes=sizes,
            labels=images.labels,
            names=_pack(images.files),
        )


# Text as bytes: fixed-width arrays of characters would take four bytes for each, up to the length of the longest.
def _pack(names: Sequence[str]) -> np.ndarray:
    return np.frombuffer("\n".join(names).encode("utf-8", "surrogateescape"), np.uint8)


def _unpack(array: np.ndarray) -> list[str]:
    return array.tobytes().decode("utf-8", "surrogateescape").split("\n")


def index_tars(split_dir: Path, tars: Sequence[Path]) -> ImageSet:
    """Lists the images of a split from the headers of its tars."""
    # Many questions at a time: network file systems answer slowly.
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(index_tar, tars))
    numbers = np.concatenate([rows for rows, _ in found])
    members = [name for _, names in found for name in names]
    shard = np.repeat(np.arange(len(tars), dtype=np.int32), [len(rows) for rows, _ in found])
    order, names = _original_names(split_dir, members)
    if names is None:
        names = [f"{tars[s].name}/{name}" for s, name in zip(shard.tolist(), members, strict=True)]
    offsets, sizes, labels = numbers[order].T
    members_of = Members(tuple(map(str, tars)), shard[order], offsets.copy(), sizes.copy())
    return ImageSet(tuple(names), labels.astype(np.int32), members_of)


def _original_names(split_dir: Path, members: Sequence[str]) -> tuple[Any, list[str] | None]:
    """The order of the files that `pack` packed, and their names, if it did: keys are line numbers of its list."""
    file = list_file(split_dir)
    if not file.is_file():
        return slice(None), None
    listed = read_list(file)
    keys = [name.split(".")[0] for name in members]
    numbers = np.array([int(key) if re.fullmatch(r"[0-9]{1,18}", key) else -1 for key in keys])
    order = np.argsort(numbers, kind="stable")
    if len(listed.files) != len(keys) or not np.array_equal(numbers[order], np.arange(len(keys))):
        raise UserError(f"{file} lists {len(listed.files)} images, but the tars of {split_dir} hold others")
    return order, list(listed.files)


def index_tar(tar: Path) -> tuple[np.ndarray, list[str]]:
    """Lists the images of one tar: int64 [N, 3] of offset, size and label; and the names of their members.

    Raises:
      UserError: it is damaged, cut off or empty, or a sample has no image or no label.
    """
    try:
        with open_regular(tar) as file:
            rows, names = [], []
            for sample in group_members(read_members(tar)):
                image = next((m for m in sample if f".{m.suffix.lower()}".endswith(SUFFIXES)), None)
                label = next((m for m in sample if m.suffix == "cls"), None)
                if image is None or label is None:
                    missing = "image" if image is None else "label (.cls)"
                    others = [m.name for m in sample if m.name.lower().endswith(OTHER_PICTURES)] if not image else []
                    why = f" that is read: {others[0]} is none; convert it to JPEG" if others else ""
                    raise UserError(f"{tar}: sample {sample[0].key!r} has no {missing}{why}")
                text = os.pread(file.fileno(), min(label.size, 32), label.offset).strip()
                if not text.isdigit() or int(text) >= MOST_CLASSES:
                    raise UserError(
                        f"{tar}: {label.name} holds {text[:20]!r} and no number of a class; those are 0 "
                        f"to {MOST_CLASSES - 1:,}"
                    )
                rows.append((image.offset, image.size, int(text)))
                names.append(image.name)
        if not rows:
            raise UserError(f"{tar} holds no samples")
        return np.array(rows, np.int64), names
    except OSError as error:
        raise UserError(f"{tar} cannot be read: {error.strerror}") from error
