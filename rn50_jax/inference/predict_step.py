"""The prediction step of one device: a pure function of weights and images."""

import jax

from rn50_jax.data.batch import Batch
from rn50_jax.data.normalize import IMAGENET, Normalization, normalize
from rn50_jax.models.network import Network
from rn50_jax.models.walk import Variables


def predict_step(
    variables: Variables, batch: Batch, *, model: Network, axis_name: str, normalization: Normalization = IMAGENET
) -> jax.Array:
    """Returns class probabilities, float32 [B, K]."""
    del axis_name  # every device answers for its own images
    return jax.nn.softmax(logits_of(variables, batch["image"], model, normalization))


def logits_of(
    variables: Variables, images: jax.Array, model: Network, normalization: Normalization, flip_tta: bool = False
) -> jax.Array:
    """Returns logits, float32 [B, K], with the running BatchNorm statistics; `flip_tta` as in `eval_step`."""

    @jax.named_scope("network")  # for bench/groups.py
    def apply(images: jax.Array) -> jax.Array:
        logits: jax.Array = model.apply(variables, images, train=False)
        return logits

    logits = apply(normalize(images, normalization))
    if flip_tta:
        logits = (logits + apply(normalize(images[:, :, ::-1], normalization))) / 2
    return logits
