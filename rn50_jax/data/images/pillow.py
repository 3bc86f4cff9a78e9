"""The evaluation transform as Pillow does it, for the pixels of torchvision's transforms of Pillow's images."""

import numpy as np
from PIL import Image

from rn50_jax.data.images.decodable import to_rgb
from rn50_jax.data.images.headers import MAX_PIXELS, ImageProblem
from rn50_jax.data.images.transform import AS_STORED, Rendering


def decode(data: bytes, *, image_size: int, resize: int, rendering: Rendering = AS_STORED) -> np.ndarray:
    """Decodes an image, scales its shorter side to `resize` pixels and cuts out the middle.

    Args:
      data: the file.
      image_size: pixels, at most `resize`.
      rendering: of the file.

    Returns:
      uint8 [image_size, image_size, 3], those of torchvision's Resize(resize), bilinear and antialiased, and
      CenterCrop(image_size).

    Raises:
      ImageProblem: it is not to be decoded, Pillow cannot, or it is too large when resized.
    """
    image = to_rgb(data, rendering)
    width, height = (side * resize // min(image.size) for side in image.size)
    if width * height > MAX_PIXELS:  # a strip
        raise ImageProblem("too large", f"{image.width} x {image.height}, as it is resized {width} x {height}")
    left, top = (round((side - image_size) / 2) for side in (width, height))
    try:
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
    except MemoryError:
        raise ImageProblem("too large", f"{image.width} x {image.height}") from None
    return np.array(np.asarray(resized)[top : top + image_size, left : left + image_size])
