"""Format, size and colors of a file that should be an image, and what is wrong or odd about it."""

import hashlib
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, NamedTuple

from PIL import Image

from rn50_jax.data.images.decodable import ends_well, read_header
from rn50_jax.data.images.headers import MAX_BYTES, Header, ImageProblem, IncompleteError
from rn50_jax.data.images.transparency import is_transparent
from rn50_jax.io.file_kinds import sniff

_WINDOW = 4096  # bytes at both ends that the quick look reads

ON_ITS_SIDE = "on its side"

# What is odd, and what to do about it.
NOTES = {
    "transparent": "the alpha channel is dropped; data.background=(255,255,255) lays such images over white instead",
    "EXIF rotation": "the tag is ignored, as by torchvision, unless data.exif_rotation=True turns images upright",
    ON_ITS_SIDE: "a phone's photograph that is stored turned by 90 degrees (EXIF orientation 5 to 8); training sees it "
    "on its side; to have it upright, train with --config.data.exif_rotation=true",
    "several frames": "only the first is used, of an animated PNG its default image",
    "tiny": "a side of less than 16 pixels",
    "decoder complains": "decoded, but part of it may be gray or shifted",
}


class Examined(NamedTuple):
    """The facts of one file.

    format: by content. mode: Pillow's name of the colors. key: 16 bytes, equal for equal content, and unequal for
    most unequal. problem: a key of `PROBLEMS`, or None. detail: more about it. notes: keys of `NOTES`.
    """

    size: int
    format: str
    mode: str
    width: int
    height: int
    key: bytes
    problem: str | None
    detail: str
    notes: tuple[str, ...]


# Decodes all of an image; returns what the decoder said of it, or raises ImageProblem.
Verify = Callable[[bytes], str]


def examine(file: BinaryIO, verify: Verify, *, full: bool) -> Examined:
    """Looks at both ends of a file and at its header, and decodes it if that left a doubt, or always.

    Args:
      file: at its start.
      verify: decodes as training does.
      full: decode every image.

    Raises:
      OSError: it cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    head, tail = _both_ends(file, size)
    found = sniff(head)
    key = hashlib.blake2b(b"%d:%b%b" % (size, head, tail), digest_size=16).digest()
    mode, notes, complaint = "", list[str](), ""
    try:
        if size > MAX_BYTES:
            raise ImageProblem("too large", f"more than {MAX_BYTES // 10**6} MB")
        header = _read_header(file, head, size)
        mode, notes = _look(file)
        ends = ends_well(found, head, tail, size)
        if full or not ends or not header.by_dali:
            file.seek(0)
            complaint = verify(file.read())
    except ImageProblem as problem:
        return Examined(size, found, mode, 0, 0, key, problem.kind, problem.detail, ())
    if complaint:
        notes.append("decoder complains")
    return Examined(size, found, mode, header.width, header.height, key, None, complaint, tuple(notes))


def _read_header(file: BinaryIO, head: bytes, size: int) -> Header:
    try:
        return read_header(head)
    except ImageProblem as problem:
        # Some formats keep their header at the end, others a long preview before it.
        if size <= len(head) or not (
            isinstance(problem, IncompleteError) or sniff(head) in ("TIFF", "PNM", "JPEG 2000")
        ):
            raise
    file.seek(0)
    return read_header(file.read())


def _both_ends(file: BinaryIO, size: int) -> tuple[bytes, bytes]:
    file.seek(0)
    head = file.read(_WINDOW)
    if size <= _WINDOW:
        return head, head
    file.seek(max(size - _WINDOW, _WINDOW))
    return head, file.read(_WINDOW)


def _look(file: BinaryIO) -> tuple[str, list[str]]:
    """Mode and notes that Pillow reads without decoding; nothing if it cannot."""
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file) as image:
                return image.mode, _header_notes(image)
        except Exception:  # Pillow raises all kinds for damaged files
            return "", []


def _header_notes(image: Image.Image) -> list[str]:
    notes = ["transparent"] if is_transparent(image) else []
    if getattr(image, "n_frames", 1) > 1:
        notes.append("several frames")
    if min(image.size) < 16:
        notes.append("tiny")
    if "exif" in image.info and image.format != "TIFF":  # whose tag is obeyed
        with suppress(Exception):  # EXIF may hold anything
            orientation = image.getexif().get(0x112, 1)
            if 2 <= orientation <= 8:
                notes.append("EXIF rotation" if orientation < 5 else ON_ITS_SIDE)
    return notes
