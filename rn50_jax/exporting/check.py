"""Exported files against the model that they come from, on real images."""

from collections.abc import Callable
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rn50_jax.augment import normalise
from rn50_jax.errors import RunStopped
from rn50_jax.exporting.form import Exportable
from rn50_jax.inputs import Found, decode_files, find_images

# From images as the file takes them to float32 [N, K].
Run = Callable[[np.ndarray], np.ndarray]

_IMAGES = 8
# Largest difference, as a part of the largest output. In 16 bits each of the layers rounds differently.
TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}


def check_images(config: ConfigDict) -> np.ndarray:
    """Real images, seen through the evaluation transform: uint8 [N, S, S, 3].

    The first of each of a few classes of the config's `data.dir`; where it is missing, scikit-learn's two
    photographs, and their mirror images.
    """
    val = Path(config.data.dir).expanduser() / "val"
    try:
        folders = [entry for entry in sorted(val.iterdir()) if entry.is_dir()][:_IMAGES]
    except OSError:
        folders = []
    found = [image for folder in folders for image in islice(find_images([str(folder)]), 1)]
    images = [decoded.image for decoded in decode_files(config, found) if decoded.image is not None]
    if images:
        return np.stack(images)
    with as_file(files("sklearn.datasets.images")) as folder:
        photos = [Found(str(folder / name)) for name in ("china.jpg", "flower.jpg")]
        images = [decoded.image for decoded in decode_files(config, photos) if decoded.image is not None]
    return np.stack([*images, *(image[:, ::-1] for image in images)])


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
    form, model = exportable.form, exportable.stored.model
    logits = jax.jit(lambda variables, x: model.apply(variables, normalise(x), train=False))(exportable.trained, images)
    wanted = np.asarray(jax.nn.softmax(logits) if form.output == "probabilities" else logits)
    largest = np.max(np.abs(wanted))
    difference = 0.0
    for part in (images[:1], images):
        found = run(form.convert(part))
        difference = max(difference, float(np.max(np.abs(found - wanted[: len(part)])) / largest))
    if not difference <= tolerance:
        raise RunStopped(
            f"the exported model differs from the trained one by {difference:.1e} of the largest output on "
            f"{len(images)} real images, and {tolerance:g} is allowed; nothing was written"
        )
    return {"images": len(images), "largest_difference": difference, "tolerance": tolerance}
