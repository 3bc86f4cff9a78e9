"""The values that a network's variables start with."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rn50_jax.models.resnet import ResNet, Variables


def variable_shapes(model: ResNet) -> Variables:
    """Returns {"params", "batch_stats"} of a model as `jax.ShapeDtypeStruct`s; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)  # of any size: no variable's shape depends on it
    shapes: Variables = jax.eval_shape(lambda image: model.init(jax.random.key(0), image, train=False), image)
    return shapes


def initial_variables(model: ResNet, seed: int) -> Variables:
    """Draws the values of a fresh model.

    They are drawn on the host, by NumPy: the same numbers for every kind of device, and no program for XLA to compile,
    which would take it longer than to compile a step. Each array has a random stream of its own, from the seed and its
    name.

    - Convolutions: un-truncated normal N(0, 2 / fan) (He et al. 2015; torch `kaiming_normal_`), with
      fan_in = k * k * C / groups or fan_out = k * k * features, as `model.fan` says.
    - Linear layers: U(-1, 1) / sqrt(inputs), bias too (torch's `nn.Linear`).
    - BatchNorm: scale 1, or 0 for the last of a block with `model.zero_init_last_gamma`; bias 0, mean 0, variance 1.

    Returns:
      {"params", "batch_stats"}, NumPy arrays of float32.
    """
    shapes = variable_shapes(model)
    last_norm = "bn3" if model.variant.bottleneck else "bn2"
    inputs = {names[:-1]: leaf.shape[0] for names, leaf in _leaves(shapes["params"]) if len(leaf.shape) == 2}

    def value(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        names, shape = _names(path), leaf.shape
        rng = np.random.default_rng([seed, *"/".join(names).encode()])
        if names[:-1] in inputs:
            bound = inputs[names[:-1]] ** -0.5
            return rng.uniform(-bound, bound, shape).astype(np.float32)
        if names[-1] == "kernel":
            fan = math.prod(shape[:3]) if model.fan == "fan_in" else math.prod(shape[:2]) * shape[3]
            return rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / fan))
        if names[-1] == "scale":
            zero = model.zero_init_last_gamma and names[-2] == last_norm
            return np.full(shape, 0 if zero else 1, np.float32)
        return np.full(shape, names[-1] == "var", np.float32)

    return {
        "params": jax.tree_util.tree_map_with_path(value, shapes["params"]),
        "batch_stats": jax.tree_util.tree_map_with_path(value, shapes["batch_stats"]),
    }


def _leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    return [(_names(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _names(path: Any) -> tuple[str, ...]:
    return tuple(key.key for key in path)
