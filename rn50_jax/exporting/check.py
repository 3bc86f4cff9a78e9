"""Exported files against the model that they come from, on real images."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.resources import as_file, files
from typing import Any, TypeVar

import jax
import numpy as np

from rn50_jax.data.normalize import Normalization
from rn50_jax.errors import RunStopped
from rn50_jax.inference.image_files import Decoded, Found
from rn50_jax.inference.predict_step import logits_of
from rn50_jax.models.network import Network
from rn50_jax.models.walk import Variables

T = TypeVar("T")
# From images as the file takes them to float32 [N, K].
Run = Callable[[np.ndarray], np.ndarray]
# Decodes files as in evaluation, one after the other.
Decode = Callable[[Sequence[Found]], Iterable[Decoded]]

_IMAGES = 8
# Largest difference, as a part of the largest output. In 16 bits each of the layers rounds differently.
TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}


def evenly(items: Sequence[T], count: int | None) -> list[T]:
    """Returns `count` of the items, drawn evenly over them; None for all."""
    places = np.linspace(0, len(items) - 1, min(count or len(items), len(items))).round().astype(int)
    return [items[place] for place in places]


def check_images(decode: Decode, val: Sequence[Found]) -> np.ndarray:
    """Decodes real images to check a file on: uint8 [N, S, S, 3].

    A few of `val`, drawn evenly; if there are none, scikit-learn's two photographs and their mirror images.
    """
    images = [decoded.image for decoded in decode(evenly(val, _IMAGES)) if decoded.image is not None]
    if not images:
        with as_file(files("sklearn.datasets.images")) as folder:
            found = [Found(str(folder / name)) for name in ("china.jpg", "flower.jpg")]
            images = [decoded.image for decoded in decode(found) if decoded.image is not None]
        images += [image[:, ::-1] for image in images]
    return np.stack(images)


def outputs(
    model: Network, variables: Variables, images: np.ndarray, normalization: Normalization, output: str
) -> np.ndarray:
    """Returns what a model gives for images, uint8 [N, S, S, 3]: float32 [N, K], `output` as in `Form`."""
    logits = jax.jit(partial(logits_of, model=model, normalization=normalization))(variables, images)
    return np.asarray(jax.nn.softmax(logits) if output == "probabilities" else logits)


def check(run: Run, inputs: np.ndarray, wanted: np.ndarray, *, tolerance: float) -> dict[str, Any]:
    """Compares an exported file, loaded again, with the model as it was trained, for one image and several.

    Args:
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
