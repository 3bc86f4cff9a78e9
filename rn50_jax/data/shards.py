"""The index of WebDataset tar shards: where in which tar each image lies, so that it is read with a single `pread`.

A sample is `<key>.<image suffix>` and `<key>.cls`, the number of its class in ASCII digits. `python -m rn50_jax.pack`
writes such shards, and `index.npz` beside them, from which 1.28 million samples are known in about a second. Without it
the index files of DALI's `wds2idx` (`<shard>.idx`) are read, and without those the headers of the tars.
"""

import json
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rn50_jax.data.folder import SUFFIXES
from rn50_jax.data.tars import fits, group_members, read_idx, read_members
from rn50_jax.errors import UserError, warn

INDEX_FILE = "index.npz"
DATASET_FILE = "dataset.json"
UNFINISHED = ".partial"


class ShardedImages(NamedTuple):
    """N images in tar files; image i is `sizes[i]` bytes from `offsets[i]` in `tars[shard[i]]`.

    tars: paths, sorted. shard: int32 [N]. offsets, sizes: int64 [N]. labels: int32 [N]. names: N names to show and to
    tell images apart by. Of shards that `pack` wrote, names are the paths of the files packed, relative to their data
    folder, and images come in the order of those, which is that of the class folders. Of other shards, names are
    `<tar>/<member>`, and images come in their order in the tars.
    """

    tars: tuple[str, ...]
    shard: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]


def has_shards(split_dir: Path) -> bool:
    """Whether a folder holds tar files, finished or not, and no folders, among which tars would be left-overs."""
    if not split_dir.is_dir():
        return False
    with os.scandir(split_dir) as found:
        entries = [entry for entry in found if not entry.name.startswith(".")]
    tars = any(entry.name.endswith((".tar", f".tar{UNFINISHED}")) for entry in entries)
    return tars and not any(_is_folder(entry) for entry in entries)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def list_tars(split_dir: Path) -> list[Path]:
    """The tar files of a split, sorted, without hidden ones.

    Raises:
      UserError: there are none, or `pack` has not finished them.
    """
    if not split_dir.is_dir():
        raise UserError(f"{split_dir} does not exist; put tar shards into {split_dir}/*.tar")
    tars = sorted(path for path in split_dir.glob("*.tar") if not path.name.startswith(".") and path.is_file())
    plan = split_dir.parent / (DATASET_FILE + UNFINISHED)
    if plan.exists() or any(split_dir.glob(f"*.tar{UNFINISHED}")):
        raise UserError(f"{split_dir.parent} is not packed to its end; run the same rn50_jax.pack command again")
    if not tars:
        raise UserError(f"{split_dir} has no tar shards")
    return tars


def scan_shards(split_dir: Path) -> tuple[tuple[str, ...], ShardedImages]:
    """Lists the images in the tar files of a split.

    Class names are those of `dataset.json` in the folder above; without it, the numbers from 0 to the largest found.
    Reads no image. Safe to call in several processes at a time: it writes nothing.

    Raises:
      UserError: no tars, unfinished, missing or cut off ones, a sample without image or label, or a label that is no
        number or has no class name.
    """
    tars = list_tars(split_dir)
    described = read_description(split_dir)
    listed = [shard["file"] for shard in described.get("splits", {}).get(split_dir.name, {}).get("shards", [])]
    for name in listed:
        if not (split_dir / name).is_file():
            raise UserError(f"{split_dir / name} is missing: {DATASET_FILE} lists it; copy it again or pack again")
    images = read_index(split_dir, tars)
    if images is None:
        images = index_tars(split_dir, tars)
    num_classes = int(images.labels.max()) + 1
    class_names = tuple(described.get("class_names") or map(str, range(num_classes)))
    if num_classes > len(class_names):
        at = int(images.labels.argmax())
        raise UserError(
            f"{images.names[at]} has label {num_classes - 1}, but {split_dir.parent / DATASET_FILE} names only "
            f"{len(class_names)} classes, from 0"
        )
    return class_names, images


def read_description(split_dir: Path) -> dict[str, Any]:
    """What `dataset.json` in the folder above a split says, or nothing.

    Keys: format, class_names, and splits: for each name {"images", "shards": [{"file", "images", "bytes", "sha256"}]}.
    """
    file = split_dir.parent / DATASET_FILE
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        names = described.get("class_names", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("class_names is no list of names")
        return dict(described)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}); write it again with rn50_jax.pack --index") from error


def read_index(split_dir: Path, tars: Sequence[Path]) -> ShardedImages | None:
    """What `index.npz` knows, or None if there is none or it was written for other tars (told by names and sizes)."""
    file = split_dir / INDEX_FILE
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        wanted = [(path.name, path.stat().st_size) for path in tars]
        known = zip(_unpack(arrays["tars"]), arrays["tar_sizes"].tolist(), strict=True)
        if list(known) == wanted:
            names = tuple(_unpack(arrays["names"]))
            shard, offsets, sizes, labels = (arrays[name] for name in ("shard", "offsets", "sizes", "labels"))
            if len(shard) == len(offsets) == len(sizes) == len(labels) == len(names):
                return ShardedImages(tuple(map(str, tars)), shard, offsets, sizes, labels, names)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    warn(f"{file} does not belong to the tars beside it and is not used; python -m rn50_jax.pack --index renews it")
    return None


def write_index(split_dir: Path, images: ShardedImages) -> None:
    """Writes `index.npz` for `read_index`, complete or not at all.

    Raises:
      OSError: it cannot be written.
    """
    unfinished = split_dir / (INDEX_FILE + UNFINISHED)
    with unfinished.open("wb") as file:
        np.savez(
            file,
            tars=_pack([Path(tar).name for tar in images.tars]),
            tar_sizes=np.array([Path(tar).stat().st_size for tar in images.tars], np.int64),
            shard=images.shard,
            offsets=images.offsets,
            sizes=images.sizes,
            labels=images.labels,
            names=_pack(images.names),
        )
    unfinished.replace(split_dir / INDEX_FILE)


# Text as bytes: fixed-width arrays of characters would take four bytes for each, up to the length of the longest.
def _pack(names: Sequence[str]) -> np.ndarray:
    return np.frombuffer("\n".join(names).encode("utf-8", "surrogateescape"), np.uint8)


def _unpack(array: np.ndarray) -> list[str]:
    return array.tobytes().decode("utf-8", "surrogateescape").split("\n")


def index_tars(split_dir: Path, tars: Sequence[Path]) -> ShardedImages:
    """The same from `<shard>.idx` or, where there is none or it does not fit, from the headers of the tars."""
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
    return ShardedImages(
        tuple(map(str, tars)), shard[order], offsets.copy(), sizes.copy(), labels.astype(np.int32), tuple(names)
    )


def _original_names(split_dir: Path, members: Sequence[str]) -> tuple[Any, list[str] | None]:
    """The order of the files that `pack` packed, and their names, if it did: keys are line numbers of its list."""
    from rn50_jax.data.filelist import list_file, read_list

    file = list_file(split_dir)
    if not file.is_file():
        return slice(None), None
    listed = read_list(file)
    keys = [name.split(".")[0] for name in members]
    order = np.argsort(np.array([int(key) if key.isdecimal() else -1 for key in keys]), kind="stable")
    if len(listed.files) != len(keys) or [int(keys[i]) for i in order if keys[i].isdecimal()] != list(range(len(keys))):
        raise UserError(f"{file} lists {len(listed.files)} images, but the tars of {split_dir} hold others")
    return order, list(listed.files)


def index_tar(tar: Path) -> tuple[np.ndarray, list[str]]:
    """The images of one tar: int64 [N, 3] of offset, size and label; and the names of their members.

    Raises:
      UserError: it is damaged, cut off or empty, or a sample has no image or no label.
    """
    try:
        file = os.open(tar, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{tar} cannot be read: {error.strerror}") from error
    try:
        end = os.fstat(file).st_size
        samples = read_idx(tar)
        if samples is None or not fits(file, samples):
            samples = group_members(read_members(tar))
        rows, names = [], []
        for sample in samples:
            image = next((m for m in sample if f".{m.suffix.lower()}".endswith(SUFFIXES)), None)
            label = next((m for m in sample if m.suffix == "cls"), None)
            if image is None or label is None:
                missing = "image" if image is None else "label (.cls)"
                raise UserError(f"{tar}: sample {sample[0].key!r} has no {missing}")
            if max(image.offset + image.size, label.offset + label.size) > end:
                raise UserError(f"{tar} is cut off; copy it again")
            text = os.pread(file, min(label.size, 32), label.offset).strip()
            if not text.isdigit() or int(text) > 2**31 - 2:
                raise UserError(f"{tar}: {label.name} holds {text[:20]!r} and no number of a class")
            rows.append((image.offset, image.size, int(text)))
            names.append(image.name)
        if not rows:
            raise UserError(f"{tar} holds no samples")
        return np.array(rows, np.int64), names
    except OSError as error:
        raise UserError(f"{tar} cannot be read: {error.strerror}") from error
    finally:
        os.close(file)
