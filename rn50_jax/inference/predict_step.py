"""The prediction step of one device: a pure function of weights and images."""

import jax

from rn50_jax.data.batch import Batch
from rn50_jax.data.normalize import IMAGENET, Normalisation, normalise
from rn50_jax.models.resnet import ResNet, Variables


def predict_step(
    variables: Variables, batch: Batch, *, model: ResNet, axis_name: str, normalisation: Normalisation = IMAGENET
) -> jax.Array:
    """Class probabilities, float32 [B, K]."""
    del axis_name  # every device answers for its own images
    return jax.nn.softmax(_logits(variables, batch["image"], model, normalisation))


def _logits(
    variables: Variables, images: jax.Array, model: ResNet, normalisation: Normalisation, flip_tta: bool = False
) -> jax.Array:
    logits: jax.Array = model.apply(variables, normalise(images, normalisation), train=False)
    if flip_tta:
        logits = (logits + model.apply(variables, normalise(images[:, :, ::-1], normalisation), train=False)) / 2
    return logits
