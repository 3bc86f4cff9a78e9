"""Transparent images: found by their headers, and laid over a color by Pillow."""

import numpy as np
from PIL import Image

from rn50_jax.data.images.headers import png_chunks


def may_be_transparent(data: bytes, found: str) -> bool:
    """Returns whether the header of a JPEG, PNG or WebP, known to be sound, leaves room for transparency."""
    if found == "PNG":
        return data[25] in (4, 6) or any(name == b"tRNS" for name, _, _ in png_chunks(data, last=b"IDAT"))
    if found == "WebP":
        if data[12:16] == b"VP8L":
            return bool(data[24] & 0x10)
        return data[12:16] == b"VP8X" and bool(data[20] & 0x10)
    return False


def is_transparent(image: Image.Image) -> bool:
    """Returns whether an image has an alpha channel, or a color or entries of its palette that are transparent."""
    return image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info


def lay_over(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """Returns a transparent image over a background, RGB, by the formula of `PIL.Image.alpha_composite`.

    Args:
      background: red, green and blue, 0 to 255.
    """
    behind = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")


def with_transparent_gray(image: Image.Image, deep: np.ndarray, gray: int) -> Image.Image:
    """Returns an RGB image as RGBA that is transparent wherever `deep`, [H, W], its 16-bit gray, is `gray`."""
    image.putalpha(Image.fromarray(np.where(deep == gray, 0, 255).astype(np.uint8)))
    return image
