"""What an exported model takes and gives, and what the file says about itself."""

from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rn50_jax.data.formats.imagenet_names import human_names
from rn50_jax.data.normalize import Normalization, normalize, pixel_normalization
from rn50_jax.inference.trained_model import StoredModel, describe_model
from rn50_jax.models.fold import fold_model
from rn50_jax.models.resnet import ResNet, Variables

INPUTS = ("uint8", "float32")
LAYOUTS = ("nhwc", "nchw")
OUTPUTS = ("probabilities", "logits")


class Form(NamedTuple):
    """What an exported classifier takes and gives.

    input: "uint8", RGB pixels, or "float32", normalized ones. layout: "nhwc", [N, S, S, 3], or "nchw", [N, 3, S, S].
    output: "probabilities" or "logits", float32 [N, K]. fold: whether BatchNorm is folded into the convolutions.
    """

    input: str
    layout: str
    output: str
    fold: bool

    def shape(self, image_size: int) -> tuple[int, int, int]:
        """Of one image."""
        return (3, image_size, image_size) if self.layout == "nchw" else (image_size, image_size, 3)

    def convert(self, images: np.ndarray, normalization: Normalization) -> np.ndarray:
        """Decoded images, uint8 [N, S, S, 3], as the model takes them."""
        if self.input == "float32":
            mean, std = (np.asarray(values, np.float32) for values in normalization)
            images = (images.astype(np.float32) - mean) / std
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if self.layout == "nchw" else images


class Exportable(NamedTuple):
    """A loaded model as it was trained, `trained` its variables, and as it is exported.

    model, variables: BatchNorm folded or not, convolutions as any compiler knows them.
    """

    stored: StoredModel
    trained: Variables
    form: Form
    model: ResNet
    variables: Variables

    @property
    def normalization(self) -> Normalization:
        """Of the pixels that it was trained with."""
        return pixel_normalization(self.stored.config.data.mean, self.stored.config.data.std)

    def call(self, images: jax.Array) -> jax.Array:
        """Images as the form says, to float32 [N, K]."""
        if self.form.layout == "nchw":
            images = jnp.transpose(images, (0, 2, 3, 1))
        if self.form.input == "uint8":
            images = normalize(images, self.normalization)
        logits = self.model.apply(self.variables, images, train=False)
        return jax.nn.softmax(logits) if self.form.output == "probabilities" else logits


def load_exportable(stored: StoredModel, form: Form) -> Exportable:
    """Reads the weights."""
    trained = stored.load()
    model, variables = stored.model.clone(lowering="native", stem="conv"), trained
    if form.fold:
        model, variables = fold_model(model, variables)
    return Exportable(stored, trained, form, model, variables)


def describe(exportable: Exportable, libraries: tuple[str, ...] = ()) -> dict[str, Any]:
    """What an exported file says about itself, in plain values.

    Args:
      libraries: whose versions to add.

    Returns:
      `stored.describe_model`, and how the file is to be called.
    """
    stored, form = exportable.stored, exportable.form
    facts = describe_model(stored)
    facts["versions"] |= {library: version(library) for library in libraries}
    return {
        **facts,
        "human_names": list(human_names(facts["class_names"])),
        "input": {
            "name": "image",
            "dtype": form.input,
            "layout": form.layout,
            "shape": ["batch", *form.shape(facts["image_size"])],
            "normalization_done_by": "the model" if form.input == "uint8" else "the caller",
        },
        "output": {"name": form.output, "dtype": "float32", "shape": ["batch", stored.model.num_classes]},
        "batch_norm_folded": form.fold,
    }
