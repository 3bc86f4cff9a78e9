"""The only way to DALI for image files: its decoders crash the process on some valid ones, and misread others.

JPEG, PNG and WebP whose headers are plain are decoded by DALI. TIFF, BMP, PNM, JPEG 2000, the few JPEGs of four
components without Adobe's mark and what DALI cannot take apart are decoded by Pillow, and reach DALI as bare pixels
(PPM), so that whatever follows is the same; so are transparent images that get a background, and rotated PNG and WebP
that are turned upright. Everything else is refused by name. `to_rgb` has Pillow decode whatever is decoded at all.
"""

import io
import logging
import re
import warnings
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from PIL import (
    BmpImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from rn50_jax.data.images.headers import (
    DECODABLE,
    MAX_PIXELS,
    MAX_RATIO,
    MAX_SIDE,
    PICTURES,
    Header,
    ImageProblem,
    IncompleteError,
    damaged,
    png_chunks,
    read_jpeg,
    read_png,
    read_webp,
    unusual,
)
from rn50_jax.data.images.orientation import read_orientation, turn_upright, with_plain_tag
from rn50_jax.data.images.parsable import parsable
from rn50_jax.data.images.transform import AS_STORED, Rendering
from rn50_jax.data.images.transparency import is_transparent, lay_over, may_be_transparent, with_transparent_gray
from rn50_jax.io.file_kinds import sniff
from rn50_jax.runtime import streams


def read_header(data: bytes) -> Header:
    """Looks at the first bytes of a file; decodes nothing.

    Args:
      data: the file, or its beginning.

    Raises:
      IncompleteError: more of the file is needed.
      ImageProblem: it is not to be decoded.
    """
    if data[:3] == b"\xff\xd8\xff":  # first, as nearly all are
        header = read_jpeg(data)
    else:
        if not data:
            raise ImageProblem("empty")
        found = sniff(data[:4096])
        if found not in DECODABLE:
            if found in PICTURES:
                raise unusual(f"it is {found}")
            raise ImageProblem("no image", f"it is {found}" if found else "")
        header = _READERS[found](data)
    shorter, longer = sorted((header.width, header.height))
    if shorter * longer > MAX_PIXELS or longer > min(MAX_SIDE, MAX_RATIO * shorter):
        raise ImageProblem("too large", f"{header.width} x {header.height}")
    return header


def to_decodable(data: bytes, rendering: Rendering = AS_STORED) -> bytes:
    """Returns what DALI is given for a file: its own bytes, or the pixels that Pillow decodes, as PPM.

    With `rendering.exif_rotation` DALI is to obey the tag of what it is given (`adjust_orientation`).

    Raises:
      ImageProblem: it is not to be decoded, or Pillow cannot.
    """
    header = read_header(data)
    found = header.format
    orientation = read_orientation(data, found) if rendering.exif_rotation else 1
    rotated = orientation != 1 and found != "JPEG"
    transparent = rendering.background and may_be_transparent(data, found)
    if header.by_dali and not (rotated or transparent) and parsable(data, found):
        return with_plain_tag(data, found, orientation) if rendering.exif_rotation else data
    image = _decode(data, found, rendering.background, orientation)
    return b"P6\n%d %d\n255\n" % image.size + image.tobytes()


def to_rgb(data: bytes, rendering: Rendering = AS_STORED) -> Image.Image:
    """Returns what Pillow decodes of a file, also where DALI could: RGB, 16 bits of gray rounded to 8.

    Raises:
      ImageProblem: it is not to be decoded, or Pillow cannot.
    """
    found = read_header(data).format
    orientation = read_orientation(data, found) if rendering.exif_rotation else 1
    return _decode(data, found, rendering.background, orientation)


def diagnose(problem: ImageProblem, data: bytes) -> ImageProblem:
    """Says more of an image whose header was fine and that DALI did not decode, from its end and from Pillow."""
    if problem.kind != "damaged" or problem.detail:
        return problem
    found = sniff(data[:4096])
    if not ends_well(found, data[:64], data[-4096:], len(data)):
        return ImageProblem("cut off")
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            image.load()
    except Exception as error:
        return _as_problem(error, found)
    return ImageProblem("unknown format", f"it is a {found} that DALI does not decode")


def ends_well(found: str, head: bytes, tail: bytes, size: int) -> bool:
    """Returns whether the last bytes are those of a whole file; False where that cannot be known."""
    if found == "JPEG":
        return tail.rstrip(b"\0").endswith(b"\xff\xd9")
    if found == "PNG":
        return tail.rstrip(b"\0").endswith(b"IEND\xaeB`\x82")
    return found == "WebP" and int.from_bytes(head[4:8], "little") + 8 <= size


def quiet_decoders() -> None:
    """Keeps decoders' remarks on odd files off the console; for all threads, as filters cannot be changed in one."""
    streams.without_decoders()
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def _critical(data: bytes, *, transparency: bool) -> bytes:
    """A PNG of what decides its pixels; texts, profiles and animations may be of kinds that Pillow refuses."""
    kept, wanted = [data[:8]], (b"IHDR", b"PLTE", b"IDAT", b"IEND", *((b"tRNS",) if transparency else ()))
    with suppress(IncompleteError):  # Pillow says what it lacks
        for name, start, end in png_chunks(data, last=b"IEND"):
            if name in wanted:
                kept.append(data[start:end])
    return b"".join(kept)


# By their own classes: `Image.open` tries other formats too, and has a limit of its own.
_PILLOW: dict[str, Any] = {
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "PNM": PpmImagePlugin.PpmImageFile,
    "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
}


def _read_by_pillow(data: bytes, found: str) -> Header:
    try:
        with _PILLOW[found](io.BytesIO(data)) as image:
            width, height = image.size
    except Exception as error:  # Pillow raises all kinds for damaged files
        raise _as_problem(error, found) from None
    if width < 1 or height < 1:
        raise damaged(f"a {found} of {width} x {height} pixels")
    return Header(found, width, height, False)


_READERS: dict[str, Any] = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "WebP": read_webp,
    **{kind: partial(_read_by_pillow, found=kind) for kind in ("BMP", "TIFF", "PNM", "JPEG 2000")},
}


def _decode(data: bytes, found: str, background: tuple[int, ...], orientation: int) -> Image.Image:
    source = _critical(data, transparency=bool(background)) if found == "PNG" else data
    try:
        with _PILLOW[found](io.BytesIO(source)) as image:
            if image.width * image.height > MAX_PIXELS:  # a second header may say otherwise than the first
                raise ImageProblem("too large", f"{image.width} x {image.height}")
            return turn_upright(_to_rgb(image, found, background), orientation)
    except ImageProblem:
        raise
    except Exception as error:
        if found in ("JPEG", "PNG", "WebP") and not ends_well(found, data[:64], data[-4096:], len(data)):
            raise ImageProblem("cut off") from None
        raise _as_problem(error, found) from None


def _to_rgb(image: Image.Image, found: str, background: tuple[int, ...]) -> Image.Image:
    """RGB as DALI makes it of PNGs, 16 bits rounded to 8; over the background, or else without alpha."""
    image.load()
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and found == "PNM"):
        bits = image.tag_v2.get(258, (16,))[0] if isinstance(image, TiffImagePlugin.TiffImageFile) else 16
        most = 2**bits - 1
        deep = np.asarray(image).astype(np.uint32).clip(max=most)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(262) == 0:  # white is zero
            deep = most - deep
        rgb = Image.fromarray(((deep * 255 + most // 2) // most).astype(np.uint8)).convert("RGB")
        if background and "transparency" in image.info:
            return lay_over(with_transparent_gray(rgb, deep, image.info["transparency"]), background)
        return rgb
    if mode in ("I", "F", "LAB", "HSV"):
        raise unusual(f"it is a {found} of an unusual kind, {mode}")
    return lay_over(image, background) if background and is_transparent(image) else image.convert("RGB")


# What Pillow says of pixels that end early, or that make no sense to a decoder.
_EARLY = re.compile("truncat|not enough image data|unexpected end|premature end|buffer (overrun|is not large)", re.I)
_SENSELESS = re.compile(
    r"decoder error|(broken|unrecognized) data stream|failed to (read|decode)|cannot identify", re.I
)


def _as_problem(error: Exception, found: str) -> ImageProblem:
    """Says in words what a library's error means."""
    lines = str(error).strip().splitlines()
    said = re.sub(r"<_io\.\S+ object at \w+>", "it", lines[0][:160]) if lines else type(error).__name__
    if re.match("unsupported|unknown|unable to determine|invalid value for samples", said, re.IGNORECASE):
        return ImageProblem("unknown format", f"it is a {found} of an unusual kind, {said}")
    if _EARLY.search(said):
        if found in ("JPEG", "PNG", "WebP"):  # whose end is there
            return ImageProblem("damaged", f"a {found} of fewer pixels than its header says")
        return ImageProblem("cut off")
    if _SENSELESS.search(said):
        return ImageProblem("damaged", f"a {found} whose pixel data is broken")
    return ImageProblem("damaged", f"{found}: {said}")
