"""The files that nvImageCodec, DALI's decoder, can take apart.

It does so in several threads for batches of 32 and more, and what it cannot take apart in one of them ends the process.
Its parsers are stricter than other decoders: whatever is refused here, Pillow is asked.
"""

import struct

from rn50_jax.data.images.headers import IncompleteError, png_chunks

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def parsable(data: bytes, found: str) -> bool:
    """Walks through a whole JPEG, PNG or WebP, whose header is known to be sound, as nvImageCodec's parsers do.

    Args:
      found: its format.
    """
    try:
        return _WALKS[found](data)
    except (IndexError, struct.error, IncompleteError):  # it ends too early
        return False


def _walk_jpeg(data: bytes) -> bool:
    """Every segment up to the first scan has a length, and one of them is the frame."""
    at, frames = 2, 0
    while True:
        if data[at] != 0xFF:
            return False
        while data[at] == 0xFF:  # fill bytes
            at += 1
        marker = data[at]
        if marker == 0xDA:
            return frames == 1 and len(data) >= at + 7  # what it reads of short segments before is there
        length = (data[at + 1] << 8) | data[at + 2]
        if marker == 0 or length < (8 if marker == 0xE1 else 2):  # it takes EXIF's length for its content and 8
            return False
        frames += marker in _FRAMES
        at += 1 + length


def _walk_png(data: bytes) -> bool:
    """The chunks lead to the last one."""
    return any(name == b"IEND" for name, _, _ in png_chunks(data, last=b"IEND"))


def _walk_webp(data: bytes) -> bool:
    """EXIF is found where it is announced. That chunks of odd length are filled up is not known to nvImageCodec."""
    name, length, flags = struct.unpack_from("<4sIB", data, 12)
    if name != b"VP8X" or not flags & 8:
        return True
    at = 20 + length
    while True:
        name, length = struct.unpack_from("<4sI", data, at)
        at += 8 + length
        if name == b"EXIF":
            return at <= len(data)


_WALKS = {"JPEG": _walk_jpeg, "PNG": _walk_png, "WebP": _walk_webp}
