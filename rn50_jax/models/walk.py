"""The layers of a network and how they are connected, by one walk over it: nothing else needs to know its structure."""

import math
from functools import lru_cache
from inspect import signature
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from rn50_jax.models.conv_norm import ConvNorm
from rn50_jax.models.layers import AddRelu, AveragePool, Gate, Linear, MeanPool
from rn50_jax.models.network import Network

Variables = dict[str, Any]  # {"params", "batch_stats"}: trees of arrays
Path = tuple[str, ...]

LAYERS = (ConvNorm, Linear, MeanPool, AveragePool, Gate, AddRelu)
IMAGES, UNKNOWN = -1, -2
SIZE = 224  # pixels; no variable's shape may depend on it


class Layer(NamedTuple):
    """One call of a layer.

    module: one of `LAYERS` with its fields, or another module with a parameter `kernel`. path: names from the root.
    inputs: for each array it is called with, the number of the layer that made it, `IMAGES` or `UNKNOWN`.
    kernel: shape of its kernel, () if it has none. pixels: of each channel of its result, before pooling.
    """

    module: nn.Module
    path: Path
    inputs: tuple[int, ...]
    kernel: tuple[int, ...]
    pixels: int

    @property
    def norm(self) -> Path:
        """The path of a `ConvNorm`'s BatchNorm."""
        assert isinstance(self.module, ConvNorm)
        return (*self.path[:-1], self.module.norm) if self.module.norm else (*self.path, "norm")

    @property
    def products(self) -> int:
        """Multiplications for one image: the whole kernel once for each pixel."""
        return self.pixels * math.prod(self.kernel) if self.kernel else 0


class Structure(NamedTuple):
    """layers: in the order of the calls. shapes: of the variables, `jax.ShapeDtypeStruct`s by "collection/..." paths.

    output: number of the layer that makes the logits, or `UNKNOWN`.
    """

    layers: tuple[Layer, ...]
    shapes: dict[Path, jax.ShapeDtypeStruct]
    output: int


def walk(model: Network, image_size: int = SIZE) -> Structure:
    """Walks through a network without computing anything.

    Args:
      model: called with images float32 [B, S, S, 3] and `train`.
      image_size: S, in pixels.
    """
    try:
        hash(model)
    except TypeError:  # a network of one's own may have a field without a hash
        return _walk(model, image_size)
    structure: Structure = _remembered(model, image_size)
    return structure


def _walk(model: Network, image_size: int) -> Structure:
    layers: list[Layer] = []
    made: dict[int, tuple[Any, int]] = {}  # arrays by identity; each is kept, or another could get its identity

    def watch(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        result = call(*args, **kwargs)
        module = context.module
        if context.method_name != "__call__" or not isinstance(result, jax.Array):
            return result
        has_kernel = module.has_variable("params", "kernel")
        if isinstance(module, LAYERS) or has_kernel:
            given = signature(type(module).__call__).bind(module, *args, **kwargs).arguments.values()
            arrays = [x for x in given if isinstance(x, jax.Array)]
            inputs = tuple(made.get(id(x), (x, UNKNOWN))[1] for x in arrays)
            kernel = module.get_variable("params", "kernel").shape if has_kernel else ()
            spatial = result.shape[1:-1]
            if isinstance(module, ConvNorm):
                spatial = tuple(-(-pixels // module.stride) for pixels in arrays[0].shape[1:-1])
            made[id(result)] = result, len(layers)
            unbound = module.clone(parent=None, name=None)
            layers.append(Layer(unbound, tuple(module.path), inputs, tuple(kernel), math.prod(spatial)))
        return result

    output = UNKNOWN

    def initialize(image: jax.Array) -> Any:
        nonlocal output
        made[id(image)] = image, IMAGES
        logits, variables = model.init_with_output(jax.random.key(0), image, train=False)
        output = made.get(id(logits), (logits, UNKNOWN))[1]
        return variables

    with nn.intercept_methods(watch):
        image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
        variables = jax.eval_shape(initialize, image)
    flat = {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}
    return Structure(tuple(layers), flat, output)


_remembered: Any = lru_cache(maxsize=32)(_walk)
