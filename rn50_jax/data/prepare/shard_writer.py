"""Packs images into WebDataset tar shards, the same bytes each time, and continues where it was interrupted."""

import hashlib
import json
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import TypedDict

from rn50_jax.data.formats.class_folders import SUFFIXES
from rn50_jax.data.formats.file_list import list_file, listable, write_list
from rn50_jax.data.formats.shards import DATASET_FILE, JOURNAL, index_tars, write_index
from rn50_jax.data.formats.tars import BLOCK, idx_text, read_idx, write_idx
from rn50_jax.data.images.decodable import read_header
from rn50_jax.data.images.headers import DECODABLE, ImageProblem
from rn50_jax.data.prepare.output import telling_of_the_disk
from rn50_jax.errors import UserError
from rn50_jax.io.file_kinds import sniff
from rn50_jax.io.files import UNFINISHED, open_regular, written_whole
from rn50_jax.io.json_files import read_json, write_json
from rn50_jax.io.messages import warn

FORMAT = "rn50-jax shards 1"
_SUFFIX_OF = dict(zip(DECODABLE, (".jpg", ".png", ".webp", ".bmp", ".tif", ".ppm", ".jp2"), strict=True))


class PackedSplit(NamedTuple):
    """The images of a split, and their shards.

    files: N paths relative to the data folder; keys in the tars are positions in it. labels: int32 [N]. sizes: int64
    [N], bytes. shards: which files are in which tar, in their order there.
    """

    files: tuple[str, ...]
    labels: np.ndarray
    sizes: np.ndarray
    shards: tuple[np.ndarray, ...]


class _Facts(TypedDict):
    """Of a shard."""

    images: int
    bytes: int
    sha256: str


class _Journal(TypedDict):
    """The state of an unfinished pack. plan: see `fingerprint`. done: by "<split>/<shard>"."""

    plan: str
    done: dict[str, _Facts]


def plan_split(
    root: Path, files: Sequence[str], labels: np.ndarray, *, max_bytes: int, max_images: int, seed: int | None
) -> PackedSplit:
    """Decides which image goes into which shard.

    Args:
      files: relative to `root`.
      max_bytes: of a shard, unless a single image is larger.
      max_images: of a shard.
      seed: of a random order; None: the order given.

    Raises:
      UserError: a file cannot be found, or its name cannot be in a list.
    """

    def size_of(file: str) -> int:
        if not listable(file):
            raise UserError(f"{root / file!r}: its name has a tab, a line break or bytes that are not UTF-8; rename it")
        try:
            found = (root / file).stat()
        except OSError as error:
            raise UserError(f"{root / file}: {error.strerror}; see rn50_jax.check_data") from error
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{root / file} is a folder, pipe or device; leave it out")
        return found.st_size

    with ThreadPoolExecutor(16) as pool:
        sizes = np.fromiter(pool.map(size_of, files), np.int64, len(files))
    order = np.arange(len(files)) if seed is None else np.random.default_rng(seed).permutation(len(files))
    starts, filled = [0], 0
    for place, size in enumerate(_room(sizes[order]).tolist()):
        if place > starts[-1] and (filled + size > max_bytes - tarfile.RECORDSIZE or place - starts[-1] >= max_images):
            starts.append(place)
            filled = 0
        filled += size
    return PackedSplit(tuple(files), labels, sizes, tuple(np.split(order, starts[1:])))


def fingerprint(class_names: Sequence[str], splits: dict[str, PackedSplit]) -> str:
    """Returns a hash of everything that decides the shards, but for what is in the images."""
    digest = hashlib.sha256(json.dumps(class_names).encode())
    for name, split in splits.items():
        digest.update(json.dumps([name, split.files]).encode())
        for array in (split.labels, split.sizes, *split.shards):
            digest.update(array.astype(np.int64).tobytes() + b"|")
    return digest.hexdigest()


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:06d}.tar"


def pack(
    root: Path,
    out: Path,
    class_names: Sequence[str],
    splits: dict[str, PackedSplit],
    *,
    workers: int,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Writes the shards that are not yet there, then index files, lists and `dataset.json`; verifies everything.

    Args:
      root: data folder.
      out: folder to pack into, empty or holding an unfinished pack of the same.
      advance: called with the number of images more that are packed or verified: in all, twice their number.

    Returns:
      What is in `dataset.json`, see docs/data.md.

    Raises:
      UserError: `out` holds something else, a file has changed meanwhile, the disk is full or returns other bytes.
    """
    journal = out / JOURNAL
    state = _open_journal(out, fingerprint(class_names, splits))
    done = state["done"]
    stop = threading.Event()

    def pack_one(name: str, number: int) -> tuple[str, _Facts]:
        tar = out / name / shard_name(name, number)
        key = f"{name}/{tar.name}"
        if key in done and tar.is_file() and tar.stat().st_size == done[key]["bytes"]:
            return key, done[key]
        return key, _write_shard(root, tar, splits[name], splits[name].shards[number], stop)

    with telling_of_the_disk(out):
        for name in splits:
            (out / name).mkdir(exist_ok=True)
        with ThreadPoolExecutor(workers) as pool:
            tasks = [(name, number) for name, split in splits.items() for number in range(len(split.shards))]
            futures = [pool.submit(pack_one, *task) for task in tasks]
            try:
                for future in as_completed(futures):
                    key, facts = future.result()
                    done[key] = facts
                    write_json(journal, state)
                    advance(facts["images"])
            except BaseException:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        described = _describe(out, class_names, splits, done, state["plan"])
        with ThreadPoolExecutor(workers) as pool:
            tars = [(out / key, facts) for key, facts in sorted(done.items())]
            for images in pool.map(lambda pair: _verify_shard(*pair), tars):
                advance(images)
        for name, split in splits.items():
            write_list(list_file(out / name), class_names, split.files, split.labels.tolist())
            tar_files = [out / name / shard_name(name, number) for number in range(len(split.shards))]
            write_index(out / name, index_tars(out / name, tar_files))
        write_json(out / DATASET_FILE, described)
        journal.unlink()
    return described


def bytes_to_write(out: Path, splits: dict[str, PackedSplit]) -> int:
    """Returns the size of all shards, without those that are there."""
    there = sum(tar.stat().st_size for name in splits for tar in (out / name).glob("*.tar"))
    return (
        sum(int(_room(split.sizes).sum()) + len(split.shards) * tarfile.RECORDSIZE for split in splits.values()) - there
    )


def _room(sizes: np.ndarray) -> np.ndarray:
    """Bytes in a tar: two headers, one block with the label, and the image's own bytes in whole blocks."""
    return 3 * BLOCK + -(-sizes // BLOCK) * BLOCK


def _open_journal(out: Path, plan: str) -> _Journal:
    """Reads the state of an interrupted pack; makes one for an empty folder."""
    journal = out / JOURNAL
    try:
        state = read_json(journal, _Journal)
    except FileNotFoundError:
        if any(path.name not in (f".{journal.name}", journal.name + UNFINISHED) for path in out.iterdir()):
            raise UserError(f"{out} is not empty; pack into an empty folder") from None
        state = {"plan": plan, "done": {}}
        write_json(journal, state)
    except ValueError as error:
        raise UserError(f"{journal} is damaged ({error}); remove {out} and pack again") from error
    if state["plan"] != plan:
        raise UserError(
            f"{out} holds an unfinished pack of other images or options; remove it, or pack into an empty folder"
        )
    return state


def _describe(
    out: Path, class_names: Sequence[str], splits: dict[str, PackedSplit], done: dict[str, Any], plan: str
) -> dict[str, Any]:
    described: dict[str, Any] = {"format": FORMAT, "plan": plan, "class_names": list(class_names), "splits": {}}
    for name, split in splits.items():
        files = [shard_name(name, number) for number in range(len(split.shards))]
        shards = [{"file": file, **done[f"{name}/{file}"]} for file in files]
        described["splits"][name] = {"images": len(split.files), "shards": shards}
    return described


def _write_shard(root: Path, tar: Path, split: PackedSplit, images: np.ndarray, stop: threading.Event) -> _Facts:
    """Writes a tar and its `.idx`."""
    digest = hashlib.sha256()
    with written_whole(tar) as unfinished, unfinished.open("wb") as file:
        for part in _tar_parts(root, split, images, stop):
            file.write(part)
            digest.update(part)
    write_idx(tar, idx_text(tar) or "")
    return {"images": len(images), "bytes": tar.stat().st_size, "sha256": digest.hexdigest()}


def _tar_parts(root: Path, split: PackedSplit, images: np.ndarray, stop: threading.Event) -> Iterator[bytes]:
    total = 0
    for i in images.tolist():
        if stop.is_set():
            raise InterruptedError("another shard failed")
        path = root / split.files[i]
        with open_regular(path) as file:
            data = file.read()
        if len(data) != split.sizes[i]:
            raise UserError(f"{path} has changed while it was packed; run the same command again")
        try:
            read_header(data)
        except ImageProblem as problem:
            warn(f"{path} is packed as it is, but will be left out: {problem}")
        for name, content in ((f"{i:09d}{_suffix(path, data)}", data), (f"{i:09d}.cls", b"%d" % split.labels[i])):
            parts = _header(name, len(content)), content, bytes(-len(content) % BLOCK)
            total += sum(map(len, parts))
            yield from parts
    end = total + 2 * BLOCK
    yield bytes(2 * BLOCK + -end % tarfile.RECORDSIZE)


def _header(name: str, size: int) -> bytes:
    """Of a member without owner and date: equal input gives equal tars."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def _suffix(path: Path, data: bytes) -> str:
    """The usual suffix of what the bytes are, or else of the file's name."""
    found = path.suffix.lower()
    return _SUFFIX_OF.get(sniff(data[:64]), found if found in SUFFIXES else ".jpg")


def _verify_shard(tar: Path, facts: _Facts) -> int:
    """Reads a shard again and compares it and its index with what was written; returns its number of images."""
    with tar.open("rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"]
    text = idx_text(tar) if same else None
    if text is None or text != read_idx(tar) or text.count("\n") != facts["images"] + 1:
        tar.unlink()
        raise UserError(
            f"{tar} does not read back as it was written (is the disk failing?); run the same command again"
        )
    return facts["images"]
