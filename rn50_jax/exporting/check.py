"""Exported files against the model that they come from, on real images."""

from collections.abc import Callable
from importlib.resources import as_file, files
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rn50_jax.data.image_set import ImageSet
from rn50_jax.data.normalize import normalize
from rn50_jax.data.options import loader_options
from rn50_jax.errors import RunStopped
from rn50_jax.exporting.form import Exportable
from rn50_jax.inference.image_files import Found, decode_files, found_in

# From images as the file takes them to float32 [N, K].
Run = Callable[[np.ndarray], np.ndarray]

_IMAGES = 8
# Largest difference, as a part of the largest output. In 16 bits each of the layers rounds differently.
TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}


def thin_out(images: ImageSet, count: int | None) -> ImageSet:
    """`count` images of a set, drawn evenly over it; None for all."""
    places = evenly(len(images.files), count or len(images.files))
    members = images.members
    if members is not None:
        members = members._replace(tar=members.tar[places], offset=members.offset[places], size=members.size[places])
    return ImageSet(tuple(images.files[place] for place in places), images.labels[places], members)


def evenly(number: int, count: int) -> np.ndarray:
    """`count` places of `number`, or all, int [N]."""
    return np.linspace(0, number - 1, min(count, number)).round().astype(int)


def check_images(config: ConfigDict, val: ImageSet | None) -> np.ndarray:
    """Real images, resized and cropped as in evaluation, by Pillow: uint8 [N, S, S, 3].

    A few of `val`, drawn evenly; if there are none, scikit-learn's two photographs and their mirror images.
    """
    found = found_in(thin_out(val, _IMAGES)) if val else []
    if images := _by_pillow(config, found):
        return np.stack(images)
    with as_file(files("sklearn.datasets.images")) as folder:
        photos = [Found(str(folder / name)) for name in ("china.jpg", "flower.jpg")]
        images = _by_pillow(config, photos)
    return np.stack([*images, *(image[:, ::-1] for image in images)])


def _by_pillow(config: ConfigDict, files: list[Found]) -> list[np.ndarray]:
    decoded = decode_files(files, loader_options(config), by_pillow=True)
    return [item.image for item in decoded if item.image is not None]


def check(run: Run, exportable: Exportable, images: np.ndarray, *, tolerance: float) -> dict[str, Any]:
    """Compares an exported file with the model as it was trained, for one image and several.

    Args:
      run: the file, loaded again.
      images: uint8 [N, S, S, 3].
      tolerance: for the largest difference, as a part of the largest output.

    Returns:
      The number of images, the largest difference, and the tolerance.

    Raises:
      RunStopped: the file does something else.
    """
    form, model, normalization = exportable.form, exportable.stored.model, exportable.normalization
    apply = jax.jit(lambda variables, x: model.apply(variables, normalize(x, normalization), train=False))
    logits = apply(exportable.trained, images)
    wanted = np.asarray(jax.nn.softmax(logits) if form.output == "probabilities" else logits)
    largest = np.max(np.abs(wanted))
    difference = 0.0
    for part in (images[:1], images):
        found = run(form.convert(part, normalization))
        difference = max(difference, float(np.max(np.abs(found - wanted[: len(part)])) / largest))
    if not difference <= tolerance:
        raise RunStopped(
            f"the exported model differs from the trained one by {difference:.1e} of the largest output on "
            f"{len(images)} real images, and {tolerance:g} is allowed; nothing was written"
        )
    return {"images": len(images), "largest_difference": difference, "tolerance": tolerance}
