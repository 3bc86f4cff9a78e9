"""The prediction step of one device: a pure function of weights and images."""

import jax

from rn50_jax.data.batch import Batch
from rn50_jax.data.normalize import IMAGENET, Normalization, normalize
from rn50_jax.models.resnet import ResNet, Variables


def predict_step(
    variables: Variables, batch: Batch, *, model: ResNet, axis_name: str, normalization: Normalization = IMAGENET
) -> jax.Array:
    """Class probabilities, float32 [B, K]."""
    del axis_name  # every device answers for its own images
    return jax.nn.softmax(_logits(variables, batch["image"], model, normalization))


def _logits(
    variables: Variables, images: jax.Array, model: ResNet, normalization: Normalization, flip_tta: bool = False
) -> jax.Array:
    logits: jax.Array = model.apply(variables, normalize(images, normalization), train=False)
    if flip_tta:
        logits = (logits + model.apply(variables, normalize(images[:, :, ::-1], normalization), train=False)) / 2
    return logits
