"""Format and size of an image by the first bytes of its file, or the reason why it is not to be decoded."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_PIXELS = 200_000_000  # 600 MB when decoded
MAX_BYTES = 600_000_000  # of a file
MAX_SIDE = 40_000  # pixels: DALI's random crop takes a higher image for a damaged one, and ends the process
MAX_RATIO = 3000  # of the longer side to the shorter: one that is scaled up to 256 pixels makes as many of a strip

# What keeps an image from being decoded, and what to do.
PROBLEMS = {
    "empty": "the file is empty (zero bytes); get it again",
    "no image": "leave it out",
    "unknown format": "images of this kind are not read; save it as an ordinary JPEG or PNG",
    "cut off": "the file is cut short: its end is missing; get it again",
    "damaged": "it cannot be decoded; get it again",
    "too large": f"more than {MAX_PIXELS:,} pixels, {MAX_SIDE:,} on a side or {MAX_BYTES // 10**6} MB, "
    f"or {MAX_RATIO:,} times as long as wide; make it smaller",
    "unreadable": "cannot be opened or read; see its permissions and disk",
    "crashes": "ends the process that decodes it; remove it",
}
DECODABLE = ("JPEG", "PNG", "WebP", "BMP", "TIFF", "PNM", "JPEG 2000")
PICTURES = ("GIF", "Photoshop", "icon", "AVIF", "HEIC", "SVG", "JPEG XL", "a raw photograph")  # but not for us


class ImageProblem(ValueError):
    """A file that is not decoded. kind: a key of `PROBLEMS`; detail: more about it."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail

    def __str__(self) -> str:
        return f"{self.kind} ({self.detail}): {PROBLEMS[self.kind]}" if self.detail else PROBLEMS[self.kind]


class IncompleteError(ImageProblem):
    """The bytes end within the header: those of a whole file are damaged, those of its beginning may be fine."""

    def __init__(self) -> None:
        super().__init__("cut off", "it ends within its header")


class Header(NamedTuple):
    """Format and size of an image. by_dali: it is decoded by DALI, or else by Pillow."""

    format: str
    width: int
    height: int
    by_dali: bool


def unusual(what: str) -> ImageProblem:
    """Returns the problem of images of a kind that is not decoded."""
    return ImageProblem("unknown format", what)


def damaged(what: str) -> ImageProblem:
    """Returns the problem of a file with what no image of its format has."""
    return ImageProblem("damaged", what)


# Frames of JPEG that every decoder knows: baseline, extended sequential and progressive, Huffman-coded.
_FRAMES = (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES = {0xC3: "lossless", 0xC9: "arithmetic-coded", 0xCA: "arithmetic-coded"}


def read_jpeg(data: bytes) -> Header:
    """Reads the segments of a JPEG up to its frame; raises as `decodable.read_header`."""
    at, adobe = 2, False
    try:
        while True:
            if data[at] != 0xFF:
                raise damaged("a JPEG with bytes between the segments of its header")
            while data[at] == 0xFF:  # fill bytes
                at += 1
            marker = data[at]
            if marker in _FRAMES:
                break
            if 0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                raise unusual(f"it is a JPEG of an unusual kind, {_OTHER_FRAMES.get(marker, 'hierarchical')}")
            if marker in (0x00, 0xD8, 0xD9, 0xDA):
                raise damaged("a JPEG without a frame")
            if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # these have no length
                at += 1
                continue
            length = (data[at + 1] << 8) | data[at + 2]
            if length < 2:
                raise damaged("a JPEG with a segment of no length")
            adobe |= marker == 0xEE and length >= 14 and data[at + 3 : at + 8] == b"Adobe"
            at += 1 + length
        length, bits, height, width, components = struct.unpack_from(">HBHHB", data, at + 1)
        sampling = data[at + 10 : at + 9 + 3 * components : 3]
        if len(sampling) < components:
            raise IncompleteError
    except (IndexError, struct.error):
        raise IncompleteError from None
    if bits != 8:
        raise unusual(f"it is a JPEG of {bits} bits")
    if components not in (1, 3, 4):
        raise unusual(f"it is a JPEG of {components} components")
    if not width or not height or length != 8 + 3 * components:
        raise damaged(f"a JPEG of {width} x {height} pixels")
    if any(not (1 <= factor >> 4 <= 4 and 1 <= factor & 15 <= 4) for factor in sampling):
        raise damaged("a JPEG with impossible sampling")
    # Four inks are stored inverted, says Pillow; DALI thinks so only of those with a mark of Adobe's.
    return Header("JPEG", width, height, components < 4 or adobe)


_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def read_png(data: bytes) -> Header:
    """Reads the header of a PNG, and whether it is animated; raises as `decodable.read_header`."""
    if len(data) < 33:
        raise IncompleteError
    length, name, width, height, depth, color, packing, filters, interlace = struct.unpack_from(">I4sIIBBBBB", data, 8)
    if name == b"CgBI":
        raise unusual("it is a PNG of Apple's own kind")
    if name != b"IHDR" or length != 13 or depth not in _PNG_DEPTHS.get(color, ()) or packing or filters:
        raise damaged("a PNG whose header is no PNG's")
    if interlace > 1 or not 0 < width < 2**31 or not 0 < height < 2**31:
        raise damaged(f"a PNG of {width} x {height} pixels")
    animated = any(name == b"acTL" for name, _, _ in png_chunks(data, last=b"IDAT"))
    return Header("PNG", width, height, not animated)


def png_chunks(data: bytes, *, last: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields name, start and end of a PNG's chunks, up to the first one called `last`; raises IncompleteError."""
    at, name = 8, b""
    while name != last:
        if len(data) < at + 8:
            raise IncompleteError
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, at, at + 12 + length
        at += 12 + length


def read_webp(data: bytes) -> Header:
    """Reads the header of a WebP; raises as `decodable.read_header`."""
    if len(data) < 30:
        raise IncompleteError
    name, animated = data[12:16], False
    if name == b"VP8 ":
        if data[23:26] != b"\x9d\x01\x2a":
            raise damaged("a WebP without a key frame")
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", data, 26))
    elif name == b"VP8L":
        if data[20] != 0x2F:
            raise damaged("a WebP without its signature")
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif name == b"VP8X":
        if data[20] & 2:
            animated = True  # DALI knows no frames
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    else:
        raise damaged("a WebP of no known coding")
    if not width or not height:
        raise damaged(f"a WebP of {width} x {height} pixels")
    return Header("WebP", width, height, not animated)
