"""Writes image files of every kind that data sets are found to hold: good, odd, damaged, and no images at all."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image


class Kind(NamedTuple):
    """One kind of file.

    file: the name it gets. decodes: whether DALI's CPU decoder makes an image of it. write: given path and image.
    """

    file: str
    decodes: bool
    write: Callable[[Path, Image.Image], None]


def make_photo(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A picture like no other: a smooth random field with some noise, RGB."""
    rng = np.random.default_rng(seed)
    field = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(field) // 2 + rng.integers(0, 100, (size[1], size[0], 3))).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **{"quality": 90} | options if kind == "JPEG" else options)
    return buffer.getvalue()


def _data(make: Callable[[Image.Image], bytes]) -> Callable[[Path, Image.Image], None]:
    return lambda path, image: _write(path, make(image))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _saved(kind: str, mode: str = "RGB", **options: Any) -> Callable[[Path, Image.Image], None]:
    return _data(lambda image: encode(image.convert(mode), kind, **options))


def _cut(start: Callable[[bytes], int]) -> Callable[[Path, Image.Image], None]:
    return _data(lambda image: (data := encode(image))[: start(data)])


def _garbled(image: Image.Image) -> bytes:
    data = bytearray(encode(image))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(np.random.default_rng(0).integers(0, 255, 40, np.uint8))
    return bytes(data)


def _png(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG by hand: whatever header, whatever data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _with_exif(exif: bytes) -> Callable[[Path, Image.Image], None]:
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif
    return _data(lambda image: (data := encode(image))[:2] + segment + data[2:])


def _orientation(value: int) -> bytes:
    return b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x112, 3, 1, value, 0) + bytes(4)


def _unreadable(path: Path, image: Image.Image) -> None:
    path.write_bytes(encode(image))
    path.chmod(0)


def _deep_png(image: Image.Image) -> bytes:
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    return encode(Image.fromarray(grey), "PNG")


KINDS = {
    # No image, or one that no decoder can use.
    "zero bytes": Kind("zero_bytes.jpg", False, _data(lambda image: b"")),
    "two bytes": Kind("two_bytes.jpg", False, _data(lambda image: b"\xff\xd8")),
    "header only": Kind("header_only.jpg", False, _cut(lambda data: 180)),
    "truncated half": Kind("truncated_half.jpg", False, _cut(lambda data: len(data) // 2)),
    "last 20 bytes missing": Kind("truncated_tail.JPEG", False, _cut(lambda data: len(data) - 20)),
    "all zeros": Kind("all_zeros.jpg", False, _data(lambda image: bytes(len(encode(image))))),
    "truncated PNG": Kind("truncated.png", False, _data(lambda image: (d := encode(image, "PNG"))[: len(d) // 2])),
    "text": Kind("text.jpg", False, _data(lambda image: b"This is no image.\n" * 50)),
    "HTML": Kind("page.jpg", False, _data(lambda image: b"<!DOCTYPE html><html><title>404</title></html>\n" * 9)),
    "SVG": Kind("drawing.png", False, _data(lambda image: b'<svg xmlns="http://www.w3.org/2000/svg"/>')),
    "GIF": Kind("animation.gif.jpg", False, _saved("GIF", "P")),
    "image bomb": Kind("bomb.png", False, _data(lambda image: _png(60_000, 60_000, bytes(1000)))),
    "PNG with damaged data": Kind("no_pixels.png", False, _data(lambda image: _png(64, 64, b"few"))),
    "dangling link": Kind("dangling.jpg", False, lambda path, image: path.symlink_to("nowhere.jpg")),
    "link to itself": Kind("loop.jpg", False, lambda path, image: path.symlink_to(path.name)),
    "folder named like an image": Kind("folder.jpg", False, lambda path, image: path.mkdir()),
    "pipe named like an image": Kind("pipe.jpg", False, lambda path, image: os.mkfifo(path)),
    # Root reads it all the same, and then it is a good image.
    "unreadable": Kind("unreadable.jpg", os.geteuid() == 0, _unreadable),
    # Decoded, but part of the picture is grey or shifted.
    "garbled middle": Kind("garbled.jpg", True, _data(_garbled)),
    # Odd, and fine.
    "PNG named JPEG": Kind("png_named.JPEG", True, _saved("PNG")),
    "CMYK": Kind("cmyk.jpg", True, _saved("JPEG", "CMYK")),
    "grey JPEG": Kind("grey.jpg", True, _saved("JPEG", "L")),
    "16-bit PNG": Kind("deep.png", True, _data(_deep_png)),
    "RGBA PNG": Kind("alpha.png", True, _saved("PNG", "RGBA")),
    "palette PNG": Kind("palette.png", True, _saved("PNG", "P")),
    "BMP": Kind("bitmap.bmp", True, _saved("BMP")),
    "WebP": Kind("web.webp", True, _saved("WEBP")),
    "TIFF": Kind("tagged.tif", True, _saved("TIFF")),
    "PPM": Kind("portable.ppm", True, _saved("PPM")),
    "progressive": Kind("progressive.jpg", True, _saved("JPEG", progressive=True)),
    "1x1": Kind("1x1.jpg", True, _data(lambda image: encode(image.crop((0, 0, 1, 1))))),
    "very wide": Kind("wide.jpg", True, _data(lambda image: encode(image.resize((1200, 3))))),
    "trailing garbage": Kind("trailing.jpg", True, _data(lambda image: encode(image) + b"garbage" * 30)),
    "unicode and spaces": Kind("ein Bild ü 图.jpg", True, _data(encode)),
    "EXIF rotated": Kind("rotated.jpg", True, _with_exif(_orientation(6))),
    "corrupt EXIF": Kind("bad_exif.jpg", True, _with_exif(b"MM\0*\xff\xff\xff\xff nothing")),
    "link to an image": Kind("link.jpg", True, lambda path, image: _link(path, image)),
    "two frames": Kind("frames.tif", True, _data(lambda i: encode(i, "TIFF", save_all=True, append_images=[i]))),
}


def _link(path: Path, image: Image.Image) -> None:
    target = path.with_name(".target-of-link")
    target.write_bytes(encode(image))
    path.symlink_to(target.name)


def write_kinds(folder: Path, kinds: Iterable[str] = tuple(KINDS), *, seed: int = 0) -> dict[str, Path]:
    """Writes one file of each kind, each of another picture; with another seed, other pictures.

    Returns:
      The files' paths by kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {name: number for number, name in enumerate(KINDS)}
    paths = {}
    for name in kinds:
        paths[name] = folder / KINDS[name].file
        KINDS[name].write(paths[name], make_photo(1000 * seed + numbers[name]))
    return paths
