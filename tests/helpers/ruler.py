"""An image whose pixels tell where they are, from which the box of a crop is read off."""

import numpy as np

EDGE = 2  # pixels at each side of a crop that may be less than linear, as resizing repeats the image's border
NOISE = 2  # in gray levels: without it, rounding would be alike in all pixels of some crops


def draw_ruler(width: int, height: int) -> np.ndarray:
    """Returns uint8 [height, width, 3]: three planes, tilted in x and y, so that rounding differs all over a crop."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    planes = np.stack([x + y, 1 + x - y, 2 - x - y], -1) * (255 - NOISE) / 2
    return np.floor(planes + NOISE * np.random.default_rng(0).random(planes.shape)).astype(np.uint8)


def read_boxes(crops: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads the boxes of crops of a ruler, which were resized and perhaps mirrored.

    Args:
      crops: uint8 [N, S, S, 3].
      width, height: of the ruler.

    Returns:
      float [N, 4], left, top, width and height, which are whole numbers but for a few hundredths; and bool [N],
      whether the crop is mirrored.
    """
    size = crops.shape[1]
    place = (np.arange(size) + 0.5)[EDGE:-EDGE] / size - 0.5  # of the output's pixels, in shares of the crop
    inner = crops[:, EDGE:-EDGE, EDGE:-EDGE].astype(np.float64)
    red, green, blue = np.moveaxis((inner - (NOISE - 1) / 2) / (255 - NOISE) * 2, -1, 0)
    x, y = ((red - blue) / 2 + green) / 2, ((red - blue) / 2 - green) / 2 + 1

    def fit(values: np.ndarray, extent: int) -> tuple[np.ndarray, np.ndarray]:
        """The middle and the signed length of a least-squares line through values [N, n], in pixels."""
        slope = (values - values.mean(1, keepdims=True)) @ place / (place**2).sum()
        return values.mean(1) * (extent - 1) + 0.5, slope * (extent - 1)

    (x, w), (y, h) = fit(x.mean(1), width), fit(y.mean(2), height)
    return np.stack([x - abs(w) / 2, y - abs(h) / 2, abs(w), abs(h)], 1), w < 0
