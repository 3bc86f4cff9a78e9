"""Looks at every image of a split, in several processes, and finds images of the same content."""

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from itertools import groupby
from typing import BinaryIO, NamedTuple

import numpy as np

from rn50_jax.data.check.image_file import Examined, Verify, examine
from rn50_jax.data.image_set import Source, read_source
from rn50_jax.data.images.decodable import quiet_decoders
from rn50_jax.data.images.headers import ImageProblem
from rn50_jax.data.process_pool import map_in_processes
from rn50_jax.io.files import open_regular

_KEY = np.dtype("V16")
Advance = Callable[[int], None]


class Looked(NamedTuple):
    """The facts of N images.

    sizes: int64 [N], bytes. widths, heights: int32 [N], 0 if not known. keys: [N] of 16 bytes. kinds: how many there
    are of each (format, colors). problems: of the bad ones, number of the image to (kind, detail). notes: (number of
    the image, kind, detail).
    """

    sizes: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    keys: np.ndarray
    kinds: Counter[tuple[str, str]]
    problems: dict[int, tuple[str, str]]
    notes: list[tuple[int, str, str]]


def look_at(sources: Sequence[Source], *, full: bool, workers: int, advance: Advance) -> Looked:
    """Examines every image, see `image_file.examine`; never fails for what is in a file.

    Args:
      full: decode every image, not only those that leave a doubt.
      advance: called with the number of images more that are done.
    """
    count = len(sources)
    seen = Looked(
        sizes=np.zeros(count, np.int64),
        widths=np.zeros(count, np.int32),
        heights=np.zeros(count, np.int32),
        keys=np.zeros(count, _KEY),
        kinds=Counter(),
        problems={},
        notes=[],
    )
    # Large enough to spare messages, small enough that a process that dies is no great loss.
    chunk = max(8, min(16 if full else 256, count // (4 * workers)))
    work = partial(_examine_all, full=full)
    for start, found in map_in_processes(work, sources, chunk=chunk, workers=workers, crashed=_crashed):
        for i, image in enumerate(found, start):
            seen.sizes[i], seen.widths[i], seen.heights[i] = image.size, image.width, image.height
            seen.keys[i] = np.frombuffer(image.key, _KEY)[0]
            if image.problem:
                seen.problems[i] = image.problem, image.detail
            seen.notes.extend((i, note, image.detail) for note in image.notes)
        seen.kinds.update((image.format, image.mode) for image in found)
        advance(len(found))
    return seen


def _crashed(source: Source) -> list[Examined]:
    return [_failed("crashes", "")]


def _failed(kind: str, detail: str, size: int = 0) -> Examined:
    return Examined(size, "", "", 0, 0, bytes(16), kind, detail, ())


def _examine_all(sources: Sequence[Source], *, full: bool) -> list[Examined]:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # in this process; we have a limit of our own
    quiet_decoders()
    return [_examine_one(source, full) for source in sources]


def _examine_one(source: Source, full: bool) -> Examined:
    try:
        with _opened(source) as file:
            return examine(file, lambda data: make_verify()(data), full=full)
    except OSError as error:
        return _failed("unreadable", error.strerror or "")
    except ImageProblem as problem:  # of a member of a tar
        return _failed(problem.kind, problem.detail, source.size)


@contextmanager
def _opened(source: Source) -> Iterator[BinaryIO]:
    if source.size < 0:
        with open_regular(source.path) as file:
            yield file
    else:
        yield io.BytesIO(read_source(source))


@cache
def make_verify() -> Verify:
    """Returns a function that decodes all of a file, as training would, and returns what the decoder said.

    It raises ImageProblem for others. What a decoder says can only be read off the process's standard error, which is
    therefore taken while it decodes: for worker processes, not for one with other threads. It keeps a file open.
    """
    from rn50_jax.data.dali_decoders import make_check

    check = make_check()
    file = os.memfd_create("standard error")

    def verify(data: bytes) -> str:
        try:
            with _standard_error(file) as said:
                check(data)
        except ImageProblem as problem:
            raise problem if problem.detail else ImageProblem(problem.kind, _tidy(said[0])) from None
        return _tidy(said[0])

    return verify


@contextmanager
def _standard_error(file: int) -> Iterator[list[str]]:
    """Catches in a file what C libraries print to standard error; the list holds it afterwards."""
    caught: list[str] = []
    kept = os.dup(2)
    os.dup2(file, 2)
    try:
        yield caught
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        caught.append(os.pread(file, 10_000, 0).decode("utf-8", "replace"))
        if caught[0]:
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)


def _tidy(said: str) -> str:
    """The last line, without colors and the module's name."""
    lines = [re.sub(r"\x1b\[[0-9;]*m|\[\w+\]\s*", "", line).strip() for line in said.splitlines()]
    lines = [line.split(" - ", 1)[-1] for line in lines if line]
    return lines[-1][:200] if lines else ""


def find_duplicates(
    sources: Sequence[Source], keys: np.ndarray, *, workers: int, advance: Advance
) -> Iterable[list[int]]:
    """Finds groups of images whose bytes are the same.

    Only images with the key of another one are read once more, since almost all others differ in it.

    Returns:
      The numbers of the images of each group, in order.
    """
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    candidates = np.unique(np.concatenate([order[1:][same], order[:-1][same]])) if len(keys) > 1 else order[:0]
    hashes: dict[int, bytes] = {}
    with ThreadPoolExecutor(workers) as pool:  # hashing and reading leave Python to other threads
        for i, found in zip(candidates.tolist(), pool.map(_hash, [sources[i] for i in candidates]), strict=True):
            hashes[i] = found
            advance(1)
    readable = sorted((hash, i) for i, hash in hashes.items() if hash)
    groups = [[i for _, i in group] for _, group in groupby(readable, key=lambda pair: pair[0])]
    return sorted(group for group in groups if len(group) > 1)


def _hash(source: Source) -> bytes:
    """SHA-256 of an image's bytes, or nothing if they cannot be read."""
    try:
        with _opened(source) as file:
            return hashlib.sha256(file.read()).digest()
    except OSError:
        return b""
