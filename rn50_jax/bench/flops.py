"""Floating-point operations of a network, counted over its layers and not over what XLA makes of them."""

from rn50_jax.models.network import Network
from rn50_jax.models.walk import IMAGES, walk


def count_flops(model: Network, image_size: int, mode: str) -> float:
    """Counts the operations of one image, without computing anything; a multiplication and an addition are two.

    ResNet-50 v1.5 at 224 px and 1,000 classes has 8.18e9 forward and 24.30e9 in training. Every layer with a kernel
    multiplies all of it once per pixel of its output (a linear layer's output has one). The backward pass needs the
    same twice, for the gradients of the kernel and of the input, but for the first layer, whose input is the image.
    However a layer is computed, it counts as the plain one: a kernel that pads or rearranges does not make the network
    larger.

    Args:
      image_size: in pixels.
      mode: "infer" or "train".
    """
    layers = walk(model, image_size).layers
    total = sum(layer.products for layer in layers)
    if mode == "infer":
        return 2.0 * total
    first = sum(layer.products for layer in layers if IMAGES in layer.inputs)
    return 2.0 * (3 * total - first)
