"""How an image becomes the pixels that the network sees."""


def eval_resize(image_size: int, resize: int) -> int:
    """Returns the pixels of the shorter side before the centre crop: `resize`, or for 0 as 256 to 224, rounded."""
    return resize or round(image_size * 256 / 224)
