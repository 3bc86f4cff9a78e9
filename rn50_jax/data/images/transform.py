"""The values by which an image becomes the pixels that the network sees."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the schema takes a quarter of a second to import, and check_data needs none
    from rn50_jax.config.sections.data import DataConfig


class Rendering(NamedTuple):
    """The pixels of a file, before they are cropped and resized.

    exif_rotation: photographs are turned upright, as their EXIF tag says. background: red, green and blue (0 to 255)
    that transparent images are laid over, as `PIL.Image.alpha_composite` does; (): their alpha channel is dropped.
    """

    exif_rotation: bool = False
    background: tuple[int, ...] = ()


AS_STORED = Rendering()


def rendering_of(data: "DataConfig") -> Rendering:
    """Returns the rendering that a config asks for."""
    return Rendering(data.exif_rotation, data.background)
