"""BatchNorm folded into the convolution before it: the same classifier, for inference alone, in fewer operations."""

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from rn50_jax.models.conv_norm import ConvNorm
from rn50_jax.models.network import Network
from rn50_jax.models.norm import EPSILON
from rn50_jax.models.walk import Layer, Variables, walk


def inference_form(model: Network, variables: Variables, setting: str, *, platform: str) -> Variables:
    """Returns a model's variables as it answers fastest with them: folded, and on a GPU packed.

    Args:
      setting: `compute.fold_batch_norm`; "off" leaves them as they are.
      platform: "cpu" or "gpu".
    """
    if setting == "off":
        return variables
    # On the host, by NumPy: on a device each of the 300 operations would be a program of its own to compile.
    folded = fold(model, jax.device_get(variables))
    return pack(model, folded) if platform == "gpu" else folded


def fold(model: Network, variables: Variables) -> Variables:
    """Folds BatchNorm with its running statistics into the convolutions, each `ConvNorm` of the model.

    BN(conv(x, kernel)) = conv(x, kernel * f) + (bias - mean * f) with f = scale / sqrt(var + EPSILON), for each
    channel. The logits are those of the model in evaluation but for rounding: kernels are rounded to the compute type
    after the scaling, not before. tests/models/test_fold.py has the tolerances.

    Args:
      variables: {"params", "batch_stats"} of NumPy or JAX arrays, also traced ones.

    Returns:
      {"params", "batch_stats"} for the same model with `train=False`, of the same kind of arrays and dtypes. Each
      convolution has a `bias` [C] beside its `kernel`, and of its BatchNorm nothing is left.
    """
    params, stats = (flatten_dict(variables[name]) for name in ("params", "batch_stats"))
    for layer in _conv_norms(model):
        leaf = {name: params.pop((*layer.norm, name)) for name in ("scale", "bias")}
        leaf |= {name: stats.pop((*layer.norm, name)) for name in ("mean", "var")}
        factor = leaf["scale"] * (leaf["var"] + EPSILON) ** -0.5
        params[*layer.path, "kernel"] = params[*layer.path, "kernel"] * factor
        params[*layer.path, "bias"] = leaf["bias"] - leaf["mean"] * factor
    return {"params": unflatten_dict(params), "batch_stats": unflatten_dict(stats)}


def pack(model: Network, folded: Variables) -> Variables:
    """Rounds and turns the kernels and biases of a folded model once, as cuDNN reads them, not in each call.

    The logits are the same to the bit. On a GPU a call then starts 59 kernels instead of 164 for resnet50 in bf16
    (counted in the program that XLA compiles for an H100, docs/performance.md): at small batches most of its time.

    Args:
      folded: from `fold`.

    Returns:
      The same with `packed` [features, k, k, C / groups] in the place of each `kernel`.
    """
    params = flatten_dict(folded["params"])
    for layer in _conv_norms(model):
        assert isinstance(layer.module, ConvNorm)
        dtype = layer.module.compute.dtype
        params[*layer.path, "packed"] = params.pop((*layer.path, "kernel")).transpose(3, 0, 1, 2).astype(dtype)
        params[*layer.path, "bias"] = params[*layer.path, "bias"].astype(dtype)
    return folded | {"params": unflatten_dict(params)}


def _conv_norms(model: Network) -> list[Layer]:
    # By path: a module that is called twice has its variables once.
    layers = {layer.path: layer for layer in walk(model).layers if isinstance(layer.module, ConvNorm)}
    return list(layers.values())
