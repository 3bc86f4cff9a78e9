"""The values that a network's variables start with."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

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
    shapes = {path: leaf.shape for path, leaf in flatten_dict(variable_shapes(model)).items()}
    last_norm = "bn3" if model.variant.bottleneck else "bn2"
    inputs = {path[:-1]: shape[0] for path, shape in shapes.items() if len(shape) == 2}

    def value(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([seed, *"/".join(path[1:]).encode()])
        if path[:-1] in inputs:
            bound = inputs[path[:-1]] ** -0.5
            return rng.uniform(-bound, bound, shape).astype(np.float32)
        if path[-1] == "kernel":
            fan = math.prod(shape[:3]) if model.fan == "fan_in" else math.prod(shape[:2]) * shape[3]
            return rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / fan))
        if path[-1] == "scale":
            zero = model.zero_init_last_gamma and path[-2] == last_norm
            return np.full(shape, 0 if zero else 1, np.float32)
        return np.full(shape, path[-1] == "var", np.float32)

    variables: Variables = unflatten_dict({path: value(path, shape) for path, shape in shapes.items()})
    return variables
