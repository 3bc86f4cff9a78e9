"""The prediction step of one device: a pure function of weights and images."""

import jax

from rn50_jax.data.batch import Batch
from rn50_jax.data.normalize import IMAGENET, Normalization, normalize
from rn50_jax.models.resnet import ResNet, Variables


def predict_step(
    variables: Variables, batch: Batch, *, model: ResNet, axis_name: str, normalization: Normalization = IMAGENET
) -> jax.Array:
    """Returns class probabilities, float32 [B, K]."""
    del axis_name  # every device answers for its own images
    return jax.nn.softmax(logits_of(variables, batch["image"], model, normalization))


def logits_of(
    variables: Variables, images: jax.Array, model: ResNet, normalization: Normalization, flip_tta: bool = False
) -> jax.Array:
    """Returns logits, float32 [B, K], with the running BatchNorm statistics; `flip_tta` as in `eval_step`."""
    logits: jax.Array = model.apply(variables, normalize(images, normalization), train=False)
    if flip_tta:
        logits = (logits + model.apply(variables, normalize(images[:, :, ::-1], normalization), train=False)) / 2
    return logits
