"""Weights under torch's names: between this model and torchvision's, timm's and NVIDIA's.

The common form is {torchvision's name: float32 array in torch's layout}. SE blocks are called as in timm.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rn50_jax.errors import UserError
from rn50_jax.models.initial import variable_shapes
from rn50_jax.models.network import Network, part_of, parts_of
from rn50_jax.models.resnet import ResNet
from rn50_jax.models.walk import Variables

Arrays = dict[str, np.ndarray]

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torch_name(path: tuple[str, ...]) -> str:
    """Returns the name of a leaf: ("layer1_0", "conv1", "kernel") -> "layer1.0.conv1.weight"."""
    return f"{module_name(path[:-1])}.{_LEAVES[path[-1]]}"


def module_name(path: tuple[str, ...]) -> str:
    """Returns the name of a module: ("layer1_0", "conv1") -> "layer1.0.conv1"."""
    return ".".join(part.replace("_", ".") for part in path)


def common_name(name: str) -> str:
    """Returns torchvision's name for a tensor of NVIDIA's, timm's or a wrapped model.

    Wrappers put `module.` (several GPUs), `1.` (NVIDIA's FP16) or `_orig_mod.` (`torch.compile`) before a name.
    NVIDIA's later models count stages as `layers.0`; the linear layers of its SE blocks are `squeeze.squeeze` and
    `squeeze.expand`.
    """
    name = re.sub(r"^((_orig_mod|module)\.)*(1\.)?", "", name)
    name = re.sub(r"^layers\.([0-9]{1,4})\.", lambda match: f"layer{int(match[1]) + 1}.", name)
    return name.replace(".squeeze.squeeze.", ".se.fc1.").replace(".squeeze.expand.", ".se.fc2.")


_AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}


def torch_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that `to_torch_layout` gives a tensor."""
    unit = (1, 1) if len(shape) == 2 and ".se." in name else ()
    return (*(shape[axis] for axis in _AXES[len(shape)]), *unit)


def to_torch_layout(name: str, array: np.ndarray) -> np.ndarray:
    """Transposes HWIO -> OIHW, [in, out] -> [out, in] (SE blocks: [out, in, 1, 1]); vectors as they are."""
    return np.ascontiguousarray(array.transpose(_AXES[array.ndim])).reshape(torch_shape(name, array.shape))


def from_torch_layout(name: str, array: np.ndarray) -> np.ndarray:
    """Undoes `to_torch_layout`."""
    if ".se." in name and array.ndim == 4:
        array = array[:, :, 0, 0]
    return np.ascontiguousarray(array.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]))


def to_common_form(model: Network, variables: Variables) -> Arrays:
    """Returns a model's variables as files hold them: in the common form, or of a network of one's own as they are.

    The latter are named by their paths, such as "params/Conv_0/kernel".
    """
    if isinstance(model, ResNet):
        return to_torch(**variables)
    return {"/".join(path): np.asarray(value) for path, value in flatten_dict(variables).items()}


def to_torch(params: Any, batch_stats: Any) -> Arrays:
    """Returns the parameters and running averages of a ResNet in the common form."""
    leaves = {torch_name(path): value for tree in (params, batch_stats) for path, value in flatten_dict(tree).items()}
    return {name: to_torch_layout(name, np.asarray(value)) for name, value in leaves.items()}


def to_common(tensors: Mapping[str, np.ndarray], source: str) -> Arrays:
    """Returns the tensors of a file in the common form: names unified, float32, counters of batches left out.

    Raises:
      UserError: two tensors of one name, or a tensor without numbers.
    """
    arrays: Arrays = {}
    for name, tensor in tensors.items():
        name = common_name(name)
        if name.endswith("num_batches_tracked"):
            continue
        if name in arrays:
            raise UserError(f"{source} holds two tensors for {name[:80]}; it is not the state of one model")
        if not any(jnp.issubdtype(tensor.dtype, kind) for kind in (np.floating, np.integer, np.bool_)):
            raise UserError(f"{source}: tensor {name[:80]} holds {tensor.dtype}, and no real numbers")
        if ".se." in name and name.endswith(".weight") and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]  # NVIDIA has linear layers where timm has 1x1 convolutions
        with np.errstate(over="ignore"):  # of double precision
            arrays[name] = np.asarray(tensor, np.float32)
    return arrays


def fit(arrays: Arrays, model: Network, source: str, *, any_head: bool = False) -> tuple[Any, Any]:
    """Returns the weights as this model's `params` and `batch_stats`, NumPy float32.

    Args:
      arrays: see `to_common_form`.
      any_head: leave out a classifier of another number of classes; the trees then lack the model's last part.

    Raises:
      UserError: listing the tensors that are missing, superfluous or of another shape.
    """
    shapes = flatten_dict(variable_shapes(model))
    own = not isinstance(model, ResNet)
    paths = sorted(shapes, key=lambda path: path[0], reverse=True)
    leaves = {"/".join(path) if own else torch_name(path[1:]): path for path in paths}
    wanted = {name: shapes[path].shape for name, path in leaves.items()}
    wanted = wanted if own else {name: torch_shape(name, shape) for name, shape in wanted.items()}
    last = parts_of(model)[-1:] if any_head else ()
    head = [name for name, path in leaves.items() if part_of(model, path[1]) in last]
    classes = slice(-1, None) if own else slice(1)  # which axis
    if any(name in arrays and arrays[name].shape[classes] != wanted[name][classes] for name in head):
        leaves = {name: path for name, path in leaves.items() if name not in head}
        arrays = {name: array for name, array in arrays.items() if name not in head}
    problems = {
        "missing": [name for name in leaves if name not in arrays],
        "superfluous": [name for name in arrays if name not in leaves],
        "of another shape": [
            f"{name} ({list(arrays[name].shape)} instead of {list(wanted[name])})"
            for name in leaves
            if name in arrays and arrays[name].shape != wanted[name]
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{what}: {_enumerate(names)}" for what, names in problems.items() if names)
        raise UserError(f"{source} does not fit the model; {told}")
    trees = unflatten_dict(
        {path: arrays[name] if own else from_torch_layout(name, arrays[name]) for name, path in leaves.items()}
    )
    return trees.get("params", {}), trees.get("batch_stats", {})


def _enumerate(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:160] for name in names[:most]) + more
