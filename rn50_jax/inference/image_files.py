"""Image files from anywhere: finds those that a command line names, reads and decodes them, a few at a time."""

import glob
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from rn50_jax.config.sections.data import DataConfig
from rn50_jax.data.formats.class_folders import OTHER_PICTURES, SUFFIXES, kind_of, not_read_text
from rn50_jax.data.image_set import ImageSet, Source, read_source, sources_of
from rn50_jax.data.images import pillow
from rn50_jax.data.images.decodable import quiet_decoders, read_header
from rn50_jax.data.images.headers import MAX_BYTES, MAX_PIXELS, ImageProblem
from rn50_jax.data.images.transform import rendering_of
from rn50_jax.data.prefetch import prefetch
from rn50_jax.io.messages import warn

_READERS = 16  # files read at a time: network file systems answer slowly, but many questions at once

T = TypeVar("T")


class Found(NamedTuple):
    """A file to look at, `inside` a tar or as it is named, or what is wrong with the name."""

    file: str
    problem: str = ""
    inside: Source | None = None


class Decoded(NamedTuple):
    """A file's image, uint8 [S, S, 3]; or None, and what is wrong with the file."""

    file: str
    image: np.ndarray | None
    problem: str = ""


def find_images(words: Iterable[str], *, null: bool = False, notes: bool = False) -> Iterator[Found]:
    """Finds the files that a command line means, in its order, found while they are asked for.

    Args:
      words: each a file, whatever its name; a folder, for all images in it and its folders by their suffix, sorted,
        without hidden ones; a pattern with *, ?, [] or **; or "-" for names on standard input, one a line.
      null: names on standard input end in NUL characters instead, as `find -print0` writes them.
      notes: say in a note which pictures of a folder are not read.
    """
    for word in words:
        if word == "-":
            if sys.stdin.isatty():
                warn("reading names of files, one a line; Ctrl-D ends them")
            for name in _names(sys.stdin.buffer, null):
                yield from _expand(name, notes)
        elif glob.has_magic(word) and not os.path.lexists(word):
            matches = sorted(glob.iglob(word, recursive=True))  # noqa: PTH207, whose names are not as typed
            for match in matches:
                yield from _expand(match, notes)
            if not matches:
                yield Found(word, "matches no file")
        else:
            yield from _expand(word, notes)


def _names(stream: BinaryIO, null: bool) -> Iterator[str]:
    end = b"\0" if null else b"\n"
    rest = b""
    while chunk := stream.read1(1 << 16):  # type: ignore[attr-defined]
        *names, rest = (rest + chunk).split(end)
        yield from (os.fsdecode(name.removesuffix(b"\r")) for name in names if name.strip())
    if rest.strip():
        yield os.fsdecode(rest.removesuffix(b"\r"))


def _expand(name: str, notes: bool) -> Iterator[Found]:
    if not os.path.isdir(name):  # noqa: PTH112, Path.is_dir raises where this says no
        yield Found(name)
        return
    empty, not_read = True, list[str]()
    for found in _walk(name, (), not_read):
        empty = False
        yield found
    if empty:
        why = f"{not_read_text(not_read)}; the first is {not_read[0]}" if not_read else ", ".join(SUFFIXES)
        yield Found(name, f"holds no images ({why})")
    elif not_read and notes:
        warn(f"{name}: {not_read_text(not_read)}; the first is {not_read[0]}")


def _walk(folder: str, above: tuple[tuple[int, int], ...], not_read: list[str]) -> Iterator[Found]:
    """The images below a folder; names of other pictures go to `not_read`."""
    try:
        status = os.stat(folder)  # noqa: PTH116
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        yield Found(folder, f"cannot be read: {error.strerror}")
        return
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder that it lies in
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        kind = kind_of(entry)
        if kind == "folder":
            yield from _walk(entry.path, (*above, here), not_read)
        elif entry.name.lower().endswith(SUFFIXES) and kind in ("file", "link"):
            yield Found(entry.path)
        elif entry.name.lower().endswith(OTHER_PICTURES) and kind == "file":
            not_read.append(entry.path)


def found_in(images: ImageSet) -> list[Found]:
    """Lists the images of a data set, in its order."""
    if images.members is None:
        return [Found(file) for file in images.files]
    return [Found(file, inside=source) for file, source in zip(images.files, sources_of(images), strict=True)]


def decode_files(files: Iterable[Found], data: DataConfig, *, by_pillow: bool = False) -> Iterator[Decoded]:
    """Reads and decodes files with the evaluation transform, ahead of their use, in their order.

    Files are read by a few threads while others are decoded, by `workers`. At a time there are a few dozen
    files, and of decoded ones no more than `MAX_PIXELS` before they are cropped, unless one alone has more.

    Args:
      by_pillow: Pillow decodes and resizes, see `pillow.decode`, whatever `data.transform` says.
    """
    quiet_decoders()
    chunks = batched(files, max(32, 2 * data.workers))
    with (
        ThreadPoolExecutor(_READERS, thread_name_prefix="read") as readers,
        ThreadPoolExecutor(data.workers, thread_name_prefix="decode") as decoders,
    ):
        read_one = partial(_read, resize=data.eval_resize)
        read = prefetch((list(readers.map(read_one, chunk)) for chunk in chunks), 1)
        decode = partial(_decode, together=_by_pillow(data, decoders) if by_pillow else _by_dali(data))
        for decoded in prefetch((decode(chunk) for chunk in read), 1):
            yield from decoded


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yields lists of `size`, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class _Read(NamedTuple):
    """A file that was read. pixels: when it is decoded, or when it is resized, if these are more."""

    found: Found
    encoded: bytes = b""
    pixels: int = 0


def _read(found: Found, resize: int) -> _Read:
    if found.problem:
        return _Read(found)
    try:
        encoded = read_source(found.inside) if found.inside else _read_any(found.file)
        header = read_header(encoded)
    except OSError as error:
        return _Read(Found(found.file, f"cannot be read: {error.strerror}"))
    except ImageProblem as problem:
        return _Read(Found(found.file, str(problem)))
    except ValueError:  # a NUL character in the name
        return _Read(Found(found.file, "cannot be the name of a file"))
    enlarged = max(1.0, resize / min(header.width, header.height)) ** 2
    return _Read(found, encoded, int(header.width * header.height * enlarged))


def _read_any(name: str) -> bytes:
    """A file as `read_source` reads it, or what comes out of a pipe, as of a shell's <(command)."""
    if not stat.S_ISFIFO(os.stat(name).st_mode):  # noqa: PTH116, odd names
        return read_source(Source(name))
    # Without waiting for somebody to open its other end: a pipe that nobody writes to is empty.
    with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as pipe:  # noqa: PTH123
        os.set_blocking(pipe.fileno(), True)
        return pipe.read(MAX_BYTES)


_Together = Callable[[Sequence[_Read]], list[Decoded]]


def _decode(files: Sequence[_Read], together: _Together) -> list[Decoded]:
    good = [file for file in files if not file.found.problem]
    images = iter([decoded for group in _groups(good) for decoded in together(group)])
    return [
        Decoded(file.found.file, None, file.found.problem) if file.found.problem else next(images) for file in files
    ]


def _by_pillow(data: DataConfig, threads: Executor) -> _Together:
    decode = partial(pillow.decode, image_size=data.image_size, resize=data.eval_resize, rendering=rendering_of(data))

    def alone(file: _Read) -> Decoded:
        try:
            return Decoded(file.found.file, decode(file.encoded))
        except ImageProblem as problem:
            return Decoded(file.found.file, None, str(problem))

    return lambda files: list(threads.map(alone, files))


def _by_dali(data: DataConfig) -> _Together:
    from rn50_jax.data import (
        dali_decoders,  # a second to import
    )

    transform: dict[str, Any] = {
        "transform": data.transform,
        "image_size": data.image_size,
        "resize": data.eval_resize,
        "rendering": rendering_of(data),
    }
    batch_size = max(32, 2 * data.workers)
    decode_many = dali_decoders.make_batch_decoder(**transform, workers=data.workers, batch_size=batch_size)
    decode_one = dali_decoders.make_decoder(**transform, workers=1)

    def alone(file: _Read) -> Decoded:
        try:
            return Decoded(file.found.file, decode_one(file.encoded))
        except ImageProblem as problem:
            return Decoded(file.found.file, None, str(problem))

    def together(files: Sequence[_Read]) -> list[Decoded]:
        try:
            images = decode_many([file.encoded for file in files])
        except ImageProblem:  # one bad file spoils the batch
            return [alone(file) for file in files]
        return [Decoded(file.found.file, image) for file, image in zip(files, images, strict=True)]

    return together


def _groups(files: Sequence[_Read]) -> Iterator[list[_Read]]:
    """The files in their order, in groups that decode to no more than `MAX_PIXELS`."""
    group: list[_Read] = []
    for file in files:
        if group and sum(f.pixels for f in group) + file.pixels > MAX_PIXELS:
            yield group
            group = []
        group.append(file)
    if group:
        yield group
