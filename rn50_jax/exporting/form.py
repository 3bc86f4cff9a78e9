"""Input and output of an exported model, and the facts in its file."""

from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rn50_jax.data.formats.imagenet_names import human_names
from rn50_jax.data.normalize import Normalization, normalize, pixel_normalization
from rn50_jax.inference.trained_model import TrainedModel
from rn50_jax.models.fold import fold
from rn50_jax.models.network import Network, computed_by
from rn50_jax.models.walk import Variables

INPUTS = ("uint8", "float32")
LAYOUTS = ("nhwc", "nchw")
OUTPUTS = ("probabilities", "logits")


class Form(NamedTuple):
    """Input and output of an exported classifier.

    input: "uint8", RGB pixels, or "float32", normalized ones. layout: "nhwc", [N, S, S, 3], or "nchw", [N, 3, S, S].
    output: "probabilities" or "logits", float32 [N, K]. fold: whether BatchNorm is folded into the convolutions.
    """

    input: str
    layout: str
    output: str
    fold: bool

    def shape(self, image_size: int) -> tuple[int, int, int]:
        """Returns the shape of one image."""
        return (3, image_size, image_size) if self.layout == "nchw" else (image_size, image_size, 3)


class Exportable(NamedTuple):
    """A model as it is exported: BatchNorm folded or not, convolutions as any compiler knows them.

    image_size: height and width of an image. normalization: of the pixels that it was trained with.
    """

    arch: str
    image_size: int
    normalization: Normalization
    form: Form
    model: Network
    variables: Variables

    def convert(self, images: np.ndarray) -> np.ndarray:
        """Returns decoded images, uint8 [N, S, S, 3], as the form has them."""
        if self.form.input == "float32":
            mean, std = (np.asarray(values, np.float32) for values in self.normalization)
            images = (images.astype(np.float32) - mean) / std
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if self.form.layout == "nchw" else images

    def call(self, images: jax.Array) -> jax.Array:
        """Returns float32 [N, K] of images as the form has them."""
        if self.form.layout == "nchw":
            images = jnp.transpose(images, (0, 2, 3, 1))
        if self.form.input == "uint8":
            images = normalize(images, self.normalization)
        logits = self.model.apply(self.variables, images, train=False)
        return jax.nn.softmax(logits) if self.form.output == "probabilities" else logits


def make_exportable(trained: TrainedModel, variables: Variables, form: Form) -> Exportable:
    """Returns a trained model with its loaded variables in the form in which it is exported."""
    model, data = computed_by("plain", trained.model), trained.config.data
    if form.fold:
        variables = fold(model, variables)
    constants = pixel_normalization(data.mean, data.std)
    return Exportable(trained.config.model.arch, data.image_size, constants, form, model, variables)


def describe(facts: dict[str, Any], form: Form, libraries: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the facts of a model, see `describe_model`, how a file is to be called, and versions of `libraries`."""
    return facts | {
        "versions": facts["versions"] | {library: version(library) for library in libraries},
        "human_names": list(human_names(facts["class_names"])),
        "input": {
            "name": "image",
            "dtype": form.input,
            "layout": form.layout,
            "shape": ["batch", *form.shape(facts["image_size"])],
            "normalisation_done_by": "the model" if form.input == "uint8" else "the caller",
        },
        "output": {"name": form.output, "dtype": "float32", "shape": ["batch", len(facts["class_names"])]},
        "batch_norm_folded": form.fold,
    }
