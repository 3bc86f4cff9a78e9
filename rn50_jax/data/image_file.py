"""What a file that should be an image is: its format, size and colours, and what is wrong or odd about it."""

import hashlib
import io
import os
import warnings
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from PIL import Image

MAX_PIXELS = 200_000_000  # 600 MB when decoded
_WINDOW = 4096  # bytes at both ends that the quick look reads

# What keeps an image from being trained on, and what to do.
PROBLEMS = {
    "empty": "zero bytes; get it again",
    "no image": "holds something else; remove it",
    "unknown format": "DALI's CPU decoder does not read this format; convert it to JPEG or PNG",
    "cut off": "its end is missing; get it again",
    "damaged": "cannot be decoded; get it again",
    "too large": f"more than {MAX_PIXELS:,} pixels; make it smaller",
    "unreadable": "cannot be opened or read; see its permissions and disk",
    "crashes": "ends the process that decodes it; remove it",
}
# What is odd, and what training does with it.
NOTES = {
    "other suffix": "format is not what the suffix says: no harm, the content decides",
    "CMYK": "converted to RGB",
    "more than 8 bits": "scaled to 8 bits",
    "transparent": "the alpha channel is dropped",
    "EXIF rotation": "the tag is ignored, as by torchvision: the image is seen as it is stored",
    "corrupt EXIF": "ignored",
    "bytes after its end": "ignored",
    "no end mark": "all of the picture is there",
    "several frames": "only the first is used",
    "tiny": "a side of less than 16 pixels",
    "decoder complains": "decoded, but part of it may be grey or shifted",
}
DECODABLE = ("JPEG", "PNG", "WebP", "BMP", "TIFF", "PNM", "JPEG 2000")
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WebP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PNM": (".ppm", ".pgm", ".pnm", ".pbm"),
    "JPEG 2000": (".jp2",),
}
_MAGIC = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"GIF8", "GIF"),
    (b"8BPS", "Photoshop"),
    (b"\0\0\x01\0", "icon"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b", "gzip"),
)
_PICTURES = ("GIF", "Photoshop", "icon", "AVIF", "HEIC", "SVG")
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


# Decodes all of an image; returns what is wrong, or "", and what the decoder said of an image it decoded.
Verify = Callable[[bytes], tuple[str, str]]


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

    def result(problem: str | None, detail: str = "", header: _Header | None = None, *notes: str) -> Examined:
        mode, width, height = header[:3] if header else ("", 0, 0)
        return Examined(size, found, mode, width, height, key, problem, detail, notes)

    if size == 0:
        return result("empty")
    if found not in DECODABLE:
        kind = "unknown format" if found in _PICTURES else "no image"
        return result(kind, f"it is {found}" if found else "")
    file.seek(0)
    header = _read_header(file)
    if header and header.width * header.height > MAX_PIXELS:
        return result("too large", f"{header.width} x {header.height}", header)
    ends = _ends_well(found, head, tail, size)
    complaint = ""
    if full or header is None or not ends:
        file.seek(0)
        data = file.read()
        error, complaint = verify(data)
        if error and header and _pillow_decodes(data):
            return result("unknown format", f"{found}, {header.mode}: {error}", header)
        if error:
            return result("damaged" if ends else "cut off", error, header)
    notes = list(header.notes) if header else []
    if suffix.lower() not in _SUFFIXES[found]:
        notes.append("other suffix")
    if found == "JPEG" and not ends:
        notes.append("bytes after its end" if b"\xff\xd9" in tail else "no end mark")
    if complaint:
        notes.append("decoder complains")
    return result(None, complaint, header, *notes)


def _both_ends(file: BinaryIO, size: int) -> tuple[bytes, bytes]:
    file.seek(0)
    head = file.read(_WINDOW)
    if size <= _WINDOW:
        return head, head
    file.seek(max(size - _WINDOW, _WINDOW))
    return head, file.read(_WINDOW)


def sniff(head: bytes) -> str:
    """The format of a file by its first bytes, or "" for none that is known."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PNM"
    if head[4:8] == b"ftyp":
        return "AVIF" if head[8:12] in (b"avif", b"avis") else "HEIC" if head[8:11] in (b"hei", b"mif") else "video"
    text = head[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    if b"<svg" in text:
        return "SVG"
    printable = head.decode("utf-8", "ignore").isprintable() or (head[:256].isascii() and b"\0" not in head)
    return "text" if head and printable else ""


class _Header(NamedTuple):
    mode: str
    width: int
    height: int
    notes: tuple[str, ...]


def _read_header(file: BinaryIO) -> _Header | None:
    """What Pillow reads without decoding; None if it cannot."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with Image.open(file) as image:
                notes = _header_notes(image)
                mode, width, height = image.mode, image.width, image.height
        except Image.DecompressionBombError:
            return _Header("", MAX_PIXELS + 1, 1, ())
        except Exception:  # Pillow raises all kinds for damaged files
            return None
    if any("EXIF" in str(warning.message) for warning in said) and "corrupt EXIF" not in notes:
        notes.append("corrupt EXIF")
    return _Header(mode, width, height, tuple(notes))


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
            if image.getexif().get(0x112, 1) not in (0, 1):
                notes.append("EXIF rotation")
        except Exception:
            notes.append("corrupt EXIF")
    return notes


def _ends_well(found: str, head: bytes, tail: bytes, size: int) -> bool:
    """Whether the last bytes are those of a whole file; False where they do not tell, so that it is decoded."""
    if found == "JPEG":
        return tail.rstrip(b"\0").endswith(b"\xff\xd9")
    if found == "PNG":
        return tail.rstrip(b"\0").endswith(b"IEND\xaeB`\x82")
    if found == "WebP":
        return int.from_bytes(head[4:8], "little") + 8 <= size
    if found == "BMP":
        return int.from_bytes(head[2:6], "little") <= size
    return False


def _pillow_decodes(data: bytes) -> bool:
    """Pillow's opinion of an image that DALI refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                image.load()
    except Exception:
        return False
    return True
