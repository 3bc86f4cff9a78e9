"""The values that a network's variables start with."""

import math

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rn50_jax.models.conv_norm import ConvNorm
from rn50_jax.models.layers import Linear
from rn50_jax.models.network import Network
from rn50_jax.models.walk import SIZE, Layer, Path, Variables, walk

# The reference's names (`--model-config`) for the fan of He's initialization; its grp-* do as their plain namesakes.
INITS = {"classic": "fan_out", "fanin": "fan_in", "grp-fanin": "fan_in", "grp-fanout": "fan_out"}


def variable_shapes(model: Network) -> Variables:
    """Returns {"params", "batch_stats"} of a model as `jax.ShapeDtypeStruct`s; nothing is computed."""
    shapes: Variables = unflatten_dict(walk(model).shapes)
    return {"params": {}, "batch_stats": {}} | shapes


def initial_variables(model: Network, seed: int) -> Variables:
    """Draws the values of a fresh model.

    Those of `ConvNorm` and `Linear` are drawn on the host, by NumPy: the same numbers for every kind of device, and no
    program for XLA to compile, which would take it longer than to compile a step. Each array has a random stream of its
    own, from the seed and its name. Other modules draw theirs themselves.

    - Convolutions: un-truncated normal N(0, 2 / fan) (He et al. 2015; torch `kaiming_normal_`), with
      fan_in = k * k * C / groups or fan_out = k * k * features, as `ConvNorm.fan` says.
    - Linear layers: U(-1, 1) / sqrt(inputs), bias too (torch's `nn.Linear`).
    - BatchNorm: scale 1, or 0 with `ConvNorm.zero_scale`; bias 0, mean 0, variance 1.

    Returns:
      {"params", "batch_stats"}, NumPy arrays of float32.
    """
    structure = walk(model)
    values: dict[Path, np.ndarray] = {}
    for layer in structure.layers:
        if isinstance(layer.module, ConvNorm):
            values |= _conv_norm_values(layer, layer.module, seed)
        elif isinstance(layer.module, Linear):
            values |= _linear_values(layer, layer.module, seed)
    if values.keys() < structure.shapes.keys():
        image = np.zeros((1, SIZE, SIZE, 3), np.float32)
        others = jax.jit(lambda key: model.init(key, image, train=False))(jax.random.key(seed))
        values = flatten_dict(jax.device_get(others)) | values
    variables: Variables = unflatten_dict(values)
    return {"params": {}, "batch_stats": {}} | variables


def _rng(seed: int, path: Path) -> np.random.Generator:
    return np.random.default_rng([seed, *"/".join(path).encode()])


def _conv_norm_values(layer: Layer, module: ConvNorm, seed: int) -> dict[Path, np.ndarray]:
    path, shape = (*layer.path, "kernel"), layer.kernel
    fan = math.prod(shape[:3]) if module.fan == "fan_in" else math.prod(shape[:2]) * shape[3]
    kernel = _rng(seed, path).standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / fan))
    starts = {
        ("params", "scale"): 0 if module.zero_scale else 1,
        ("params", "bias"): 0,
        ("batch_stats", "mean"): 0,
        ("batch_stats", "var"): 1,
    }
    return {("params", *path): kernel} | {
        (collection, *layer.norm, name): np.full(module.features, value, np.float32)
        for (collection, name), value in starts.items()
    }


def _linear_values(layer: Layer, module: Linear, seed: int) -> dict[Path, np.ndarray]:
    bound = layer.kernel[0] ** -0.5
    shapes = {(*layer.path, "kernel"): layer.kernel, (*layer.path, "bias"): (module.features,)}
    return {
        ("params", *path): _rng(seed, path).uniform(-bound, bound, shape).astype(np.float32)
        for path, shape in shapes.items()
    }
