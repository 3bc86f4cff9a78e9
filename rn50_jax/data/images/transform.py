"""The values by which an image becomes the pixels that the network sees."""

from typing import NamedTuple


class Rendering(NamedTuple):
    """The pixels of a file, before they are cropped and resized.

    exif_rotation: photographs are turned upright, as their EXIF tag says. background: red, green and blue (0 to 255)
    that transparent images are laid over, as `PIL.Image.alpha_composite` does; (): their alpha channel is dropped.
    """

    exif_rotation: bool = False
    background: tuple[int, ...] = ()


AS_STORED = Rendering()


def eval_resize(image_size: int, resize: int) -> int:
    """Returns the pixels of the shorter side before the center crop: `resize`, or for 0 as 256 to 224, rounded."""
    return resize or round(image_size * 256 / 224)
