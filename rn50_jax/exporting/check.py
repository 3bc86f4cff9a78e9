"""Exported files against the model that they come from, on real images."""

from collections.abc import Callable, Iterable, Sequence
from importlib.resources import as_file, files
from typing import Any

import jax
import numpy as np

from rn50_jax.data.image_set import ImageSet
from rn50_jax.data.normalize import Normalization, normalize
from rn50_jax.errors import RunStopped
from rn50_jax.inference.image_files import Decoded, Found, found_in
from rn50_jax.models.resnet import ResNet, Variables

# From images as the file takes them to float32 [N, K].
Run = Callable[[np.ndarray], np.ndarray]
# Decodes files as in evaluation, one after the other.
Decode = Callable[[Sequence[Found]], Iterable[Decoded]]

_IMAGES = 8
# Largest difference, as a part of the largest output. In 16 bits each of the layers rounds differently.
TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}


def thin_out(images: ImageSet, count: int | None) -> ImageSet:
    """Returns `count` images of a set, drawn evenly over it; None for all."""
    places = evenly(len(images.files), count or len(images.files))
    members = images.members
    if members is not None:
        members = members._replace(tar=members.tar[places], offset=members.offset[places], size=members.size[places])
    return ImageSet(tuple(images.files[place] for place in places), images.labels[places], members)


def evenly(number: int, count: int) -> np.ndarray:
    """Returns `count` places of `number`, or all, int [N]."""
    return np.linspace(0, number - 1, min(count, number)).round().astype(int)


def check_images(decode: Decode, val: ImageSet | None) -> np.ndarray:
    """Decodes real images to check a file on: uint8 [N, S, S, 3].

    A few of `val`, drawn evenly; if there are none, scikit-learn's two photographs and their mirror images.
    """
    images = decoded_images(decode, found_in(thin_out(val, _IMAGES)) if val else [])
    if images:
        return np.stack(images)
    with as_file(files("sklearn.datasets.images")) as folder:
        images = decoded_images(decode, [Found(str(folder / name)) for name in ("china.jpg", "flower.jpg")])
    return np.stack([*images, *(image[:, ::-1] for image in images)])


def decoded_images(decode: Decode, found: Sequence[Found]) -> list[np.ndarray]:
    """Returns the images that can be decoded."""
    return [decoded.image for decoded in decode(found) if decoded.image is not None]


def outputs(
    model: ResNet, variables: Variables, images: np.ndarray, normalization: Normalization, output: str
) -> np.ndarray:
    """Returns what a model gives for images, uint8 [N, S, S, 3]: float32 [N, K], `output` as in `Form`."""
    apply = jax.jit(lambda variables, x: model.apply(variables, normalize(x, normalization), train=False))
    logits = apply(variables, images)
    return np.asarray(jax.nn.softmax(logits) if output == "probabilities" else logits)


def check(run: Run, inputs: np.ndarray, wanted: np.ndarray, *, tolerance: float) -> dict[str, Any]:
    """Compares an exported file with the model as it was trained, for one image and several.

    Args:
      run: the file, loaded again.
      inputs: real images as the file takes them.
      wanted: float32 [N, K], the outputs of the trained model.
      tolerance: for the largest difference, as a part of the largest output.

    Returns:
      The number of images, the largest difference, and the tolerance.

    Raises:
      RunStopped: the file does something else.
    """
    parts = (slice(1), slice(None))
    difference = max(float(np.max(np.abs(run(inputs[part]) - wanted[part]))) for part in parts)
    difference /= float(np.max(np.abs(wanted)))
    if not difference <= tolerance:
        raise RunStopped(
            f"the exported model differs from the trained one by {difference:.1e} of the largest output on "
            f"{len(inputs)} real images, and {tolerance:g} is allowed; nothing was written"
        )
    return {"images": len(inputs), "largest_difference": difference, "tolerance": tolerance}
