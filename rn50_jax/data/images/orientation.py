"""EXIF's tag of orientation: read as Pillow reads it, obeyed by Pillow, and made plain for DALI."""

import io
import struct
import zlib

from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from rn50_jax.data.images.headers import png_chunks

_TAG = 0x112
# What turns an image upright, by the tag's value, as in `PIL.ImageOps.exif_transpose`.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_orientation(data: bytes, found: str) -> int:
    """Returns the orientation of a JPEG, PNG or WebP, from 1 (upright) to 8; 1 if it has none, or none that is valid.

    1 for other formats too: of them only TIFF has such a tag, which its decoder obeys.

    Args:
      data: the whole file.
      found: its format, whose header is known to be sound.
    """
    try:
        if found == "JPEG":
            with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
                tag = image.getexif().get(_TAG)
        elif found == "PNG":
            with PngImagePlugin.PngImageFile(io.BytesIO(_metadata(data))) as image:
                tag = Image.Image.getexif(image).get(_TAG)  # that of PNG would decode the image
        elif found == "WebP":
            with WebPImagePlugin.WebPImageFile(io.BytesIO(data)) as image:
                tag = image.getexif().get(_TAG)
        else:
            return 1
    except Exception:  # Pillow raises all kinds for damaged files
        return 1
    return tag if tag in _TURNS else 1


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Returns an image of that orientation as it is to be seen."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def with_plain_tag(data: bytes, found: str, orientation: int) -> bytes:
    """Returns a file whose only metadata of orientation are those that DALI understands.

    DALI does not know all tags that Pillow knows, and two EXIF segments end its process.

    Args:
      data: a JPEG, or a PNG or WebP of orientation 1, that `parsable` accepts.
      found: its format.
      orientation: from `read_orientation`.
    """
    if found == "JPEG":
        return _jpeg_with_tag(data, orientation)
    if found == "PNG":
        chunks = png_chunks(data, last=b"IEND")
        return b"".join([data[:8], *(data[start:end] for name, start, end in chunks if name != b"eXIf")])
    if data[12:16] == b"VP8X" and data[20] & 8:  # a WebP that announces EXIF
        return data[:20] + bytes([data[20] & ~8]) + data[21:]
    return data


def _jpeg_with_tag(data: bytes, orientation: int) -> bytes:
    kept, at = [data[:2]], 2
    if orientation != 1:
        entry = struct.pack(">HHIHH", _TAG, 3, 1, orientation, 0)
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry + bytes(4)
        kept.append(struct.pack(">HH", 0xFFE1, len(exif) + 2) + exif)
    while True:
        start = at
        while data[at] == 0xFF:  # fill bytes
            at += 1
        marker = data[at]
        if marker == 0xDA:  # the first scan
            return b"".join([*kept, data[start:]])
        at += 1 + int.from_bytes(data[at + 1 : at + 3], "big")
        if marker != 0xE1:
            kept.append(data[start:at])


def _metadata(data: bytes) -> bytes:
    """A PNG's header and EXIF, or else its texts, which may hold EXIF too, wherever they are, without pixels."""
    chunks = [(name, data[start:end]) for name, start, end in png_chunks(data, last=b"IEND")]
    wanted = [b"eXIf"] if any(name == b"eXIf" for name, _ in chunks) else [b"tEXt", b"zTXt", b"iTXt"]
    kept = [chunk for name, chunk in chunks if name in wanted]
    no_pixels = struct.pack(">I4sI", 0, b"IDAT", zlib.crc32(b"IDAT"))
    return b"".join([data[:33], *kept, no_pixels])
