"""What a file that should be an image is: its format, size and colours, and what is wrong or odd about it."""

import hashlib
import os
import warnings
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from PIL import Image

from rn50_jax.data.images.decodable import ends_well, read_header
from rn50_jax.data.images.headers import MAX_BYTES, Header, ImageProblem, IncompleteError
from rn50_jax.io.file_kinds import sniff

_WINDOW = 4096  # bytes at both ends that the quick look reads

ON_ITS_SIDE = "on its side"

# What is odd, and what training does with it.
NOTES = {
    "other suffix": "format is not what the suffix says: no harm, the content decides",
    "CMYK": "converted to RGB",
    "more than 8 bits": "scaled to 8 bits",
    "transparent": "the alpha channel is dropped; data.background=(255,255,255) lays such images over white instead",
    "EXIF rotation": "the tag is ignored, as by torchvision, unless data.exif_rotation=True turns images upright",
    ON_ITS_SIDE: "a phone's photograph that is stored turned by 90 degrees (EXIF orientation 5 to 8); training sees it "
    "on its side; to have it upright, train with --config.data.exif_rotation=true",
    "TIFF rotation": "the tag is obeyed, as by torchvision",
    "corrupt EXIF": "ignored",
    "bytes after its end": "ignored",
    "no end mark": "all of the picture is there",
    "several frames": "only the first is used, of an animated PNG its default image",
    "tiny": "a side of less than 16 pixels",
    "decoder complains": "decoded, but part of it may be grey or shifted",
}
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe"),
    "PNG": (".png",),
    "WebP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PNM": (".ppm", ".pgm", ".pnm", ".pbm"),
    "JPEG 2000": (".jp2",),
}
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L")


class Examined(NamedTuple):
    """What is known of one file.

    format: by content. mode: Pillow's name of the colours. key: 16 bytes, equal for equal content, and unequal for
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


def examine(file: BinaryIO, suffix: str, verify: Verify, *, full: bool) -> Examined:
    """Looks at both ends of a file and at its header, and decodes it if that left a doubt, or always.

    Args:
      file: at its start.
      suffix: of its name, with the dot.
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
    if suffix.lower() not in _SUFFIXES[found]:
        notes.append("other suffix")
    if found == "JPEG" and not ends:
        notes.append("bytes after its end" if b"\xff\xd9" in tail else "no end mark")
    if found == "PNG" and b"IEND" not in tail:
        notes.append("no end mark")
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
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with Image.open(file) as image:
                mode, notes = image.mode, _header_notes(image)
        except Exception:  # Pillow raises all kinds for damaged files
            return "", []
    if any("EXIF" in str(warning.message) for warning in said) and "corrupt EXIF" not in notes:
        notes.append("corrupt EXIF")
    return mode, notes


def _header_notes(image: Image.Image) -> list[str]:
    notes = []
    if image.mode == "CMYK":
        notes.append("CMYK")
    if image.mode in _DEEP_MODES:
        notes.append("more than 8 bits")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        notes.append("transparent")
    if getattr(image, "n_frames", 1) > 1:
        notes.append("several frames")
    if min(image.size) < 16:
        notes.append("tiny")
    if "exif" in image.info or image.format == "TIFF":
        try:
            orientation = image.getexif().get(0x112, 1)
            if orientation not in (0, 1):
                by_exif = ON_ITS_SIDE if orientation in (5, 6, 7, 8) else "EXIF rotation"
                notes.append("TIFF rotation" if image.format == "TIFF" else by_exif)
        except Exception:
            notes.append("corrupt EXIF")
    return notes
