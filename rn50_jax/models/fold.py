"""BatchNorm folded into the convolution before it: the same classifier, for inference alone, in fewer operations."""

from typing import Any

import jax

from rn50_jax.models.norm import EPSILON
from rn50_jax.models.resnet import ResNet, Variables

# The BatchNorm that follows each convolution, by name; squeeze and excitation and the classifier have none.
_NORM_OF = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3", "downsample_0": "downsample_1"}


def inference_form(model: ResNet, variables: Variables, setting: str, *, platform: str) -> tuple[ResNet, Variables]:
    """Returns the model and its variables as they answer fastest: folded, and on a GPU packed.

    Args:
      setting: `compute.fold_batch_norm`; "off" leaves them as they are.
      platform: "cpu" or "gpu".
    """
    if setting == "off":
        return model, variables
    # On the host, by NumPy: on a device each of the 300 operations would be a program of its own to compile.
    folded = fold_model(model, jax.device_get(variables))
    return pack_model(*folded) if platform == "gpu" else folded


def fold_model(model: ResNet, variables: Variables) -> tuple[ResNet, Variables]:
    """Returns the model and its variables without BatchNorm, for `train=False`.

    The logits are those of the model in evaluation but for rounding: kernels are rounded to the compute type after the
    scaling, not before. tests/models/test_fold.py has the tolerances.
    """
    return model.clone(folded=True), fold(variables)


def pack_model(model: ResNet, variables: Variables) -> tuple[ResNet, Variables]:
    """Rounds and turns the kernels and biases of a folded model once, as cuDNN reads them, not in each call.

    The logits are the same to the bit. On a GPU a call then starts 59 kernels instead of 164 for resnet50 in bf16
    (counted in the program that XLA compiles for an H100, docs/performance.md): at small batches most of its time.

    Args:
      model, variables: from `fold_model`.
    """
    compute = model.precision.compute

    def pack(path: tuple[Any, ...], x: Any) -> Any:
        names = [key.key for key in path]
        if names[-2] not in _NORM_OF:
            return x
        return (x.transpose(3, 0, 1, 2) if names[-1] == "kernel" else x).astype(compute)

    return model.clone(packed=True), jax.tree_util.tree_map_with_path(pack, variables)


def fold(variables: Variables) -> Variables:
    """Folds BatchNorm with its running statistics into the convolutions.

    BN(conv(x, kernel)) = conv(x, kernel * f) + (bias - mean * f) with f = scale / sqrt(var + EPSILON), for each
    channel.

    Args:
      variables: {"params", "batch_stats"} of a `ResNet`, of NumPy or JAX arrays, also traced ones.

    Returns:
      {"params", "batch_stats"} of the same model with `folded=True`, of the same kind of arrays and dtypes.
      Each convolution has a `bias` [C] beside its `kernel`, and batch_stats is empty.
    """
    return {"params": _fold(variables["params"], variables["batch_stats"]), "batch_stats": {}}


def _fold(params: Any, batch_stats: Any) -> dict[str, Any]:
    folded: dict[str, Any] = {}
    for name, tree in params.items():
        if norm := _NORM_OF.get(name):
            factor = params[norm]["scale"] * (batch_stats[norm]["var"] + EPSILON) ** -0.5
            bias = params[norm]["bias"] - batch_stats[norm]["mean"] * factor
            folded[name] = {"kernel": tree["kernel"] * factor, "bias": bias}
        elif name not in _NORM_OF.values():
            folded[name] = _fold(tree, batch_stats[name]) if name in batch_stats else tree
    return folded
