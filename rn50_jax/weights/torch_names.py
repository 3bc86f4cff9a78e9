"""Weights under torch's names: between this model and torchvision's, timm's and NVIDIA's.

The common form is {torchvision's name: float32 array in torch's layout}. SE blocks are called as in timm.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rn50_jax.config.limits import MOST_CLASSES
from rn50_jax.errors import UserError
from rn50_jax.models.family import FAMILY
from rn50_jax.models.initial import variable_shapes
from rn50_jax.models.resnet import ResNet

Arrays = dict[str, np.ndarray]

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torch_name(path: tuple[str, ...]) -> str:
    """Returns the name of a leaf: ("layer1_0", "conv1", "kernel") -> "layer1.0.conv1.weight"."""
    return ".".join([*(part.replace("_", ".") for part in path[:-1]), _LEAVES[path[-1]]])


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


def _torch_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    unit = (1, 1) if len(shape) == 2 and ".se." in name else ()
    return (*(shape[axis] for axis in _AXES[len(shape)]), *unit)


def to_torch_layout(name: str, array: np.ndarray) -> np.ndarray:
    """Transposes HWIO -> OIHW, [in, out] -> [out, in] (SE blocks: [out, in, 1, 1]); vectors as they are."""
    return np.ascontiguousarray(array.transpose(_AXES[array.ndim])).reshape(_torch_shape(name, array.shape))


def from_torch_layout(name: str, array: np.ndarray) -> np.ndarray:
    """Undoes `to_torch_layout`."""
    if ".se." in name and array.ndim == 4:
        array = array[:, :, 0, 0]
    return np.ascontiguousarray(array.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]))


def to_torch(params: Any, batch_stats: Any) -> Arrays:
    """Returns a model's parameters and running averages in the common form."""
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


class Architecture(NamedTuple):
    """What the shapes of a file's tensors say: config values by key, and the number of classes."""

    keys: dict[str, Any]
    num_classes: int


def _count_blocks(arrays: Arrays) -> tuple[int, ...]:
    """How many blocks each stage has by the names of tensors, which number both without gaps.

    Raises:
      KeyError: one is missing: a single name must not make a model of any size.
    """
    blocks: dict[int, set[int]] = {}
    for name in arrays:
        if match := re.match(r"layer([0-9]{1,18})\.([0-9]{1,18})\.", name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    for stage in range(1, len(blocks) + 1):
        for block in range(len(blocks.get(stage, (0,)))):
            if block not in blocks.get(stage, ()):
                raise KeyError(f"layer{stage}.{block}")
    return tuple(len(blocks[stage]) for stage in range(1, len(blocks) + 1))


def infer_architecture(arrays: Arrays, source: str) -> Architecture:
    """Finds the member of the family, its stages and widths, from names and shapes alone.

    Raises:
      UserError: these are no weights of a ResNet of this family.
    """
    try:
        stages = _count_blocks(arrays)
        bottleneck = "layer1.0.conv3.weight" in arrays
        last = "conv3" if bottleneck else "conv2"
        features = [arrays[f"layer{stage}.0.{last}.weight"].shape[0] for stage in range(1, len(stages) + 1)]
        widths = tuple(n // 4 if bottleneck else n for n in features)
        middle = arrays["layer1.0.conv2.weight"]
        shape = (bottleneck, middle.shape[0] // middle.shape[1], middle.shape[0] // widths[0])
        se = "layer1.0.se.fc1.weight" in arrays
        units = [arrays[f"layer{stage}.0.se.fc1.weight"].shape[0] for stage in range(1, len(stages) + 1)] if se else []
        width, num_classes = arrays["conv1.weight"].shape[0], arrays["fc.weight"].shape[0]
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"{source} does not hold the weights of a ResNet of this family ({len(arrays)} tensors, among them no "
            f"{error}); known are {', '.join(FAMILY)}"
        ) from None
    if num_classes > MOST_CLASSES:
        raise UserError(f"{source} has a classifier of {num_classes:,} classes; {MOST_CLASSES:,} are the most")
    if hollow := next((name for name, array in arrays.items() if array.size == 0), None):
        raise UserError(f"{source}: tensor {hollow[:80]} has shape {list(arrays[hollow].shape)} and no values")
    kin = [name for name, v in FAMILY.items() if (v.bottleneck, v.groups, v.inner, v.se) == (*shape, se)]
    if not kin:
        raise UserError(f"{source} is of no known family: {shape[1]} groups, {'with' if se else 'without'} SE blocks")
    arch = next((name for name in kin if FAMILY[name].stages == stages), kin[0])
    doubling = tuple(width * 2**stage for stage in range(len(stages)))
    sixteenth = all(u == max(n // 16, 1) for u, n in zip(units, features, strict=False))
    keys = {
        "model.arch": arch,
        "model.stages": () if stages == FAMILY[arch].stages else stages,
        "model.width": width,
        "model.widths": () if widths == doubling else widths,
        "model.se_units": 0 if sixteenth else units[0],
    }
    return Architecture(keys, num_classes)


def fit(arrays: Arrays, model: ResNet, source: str, *, any_head: bool = False) -> tuple[Any, Any]:
    """Returns the weights as this model's `params` and `batch_stats`, NumPy float32.

    Args:
      arrays: in the common form.
      any_head: leave out a classifier of another number of classes; the trees then have no "fc".

    Raises:
      UserError: listing the tensors that are missing, superfluous or of another shape.
    """
    shapes = flatten_dict(variable_shapes(model))
    leaves = {torch_name(path[1:]): path for path in sorted(shapes, key=lambda path: path[0], reverse=True)}
    wanted = {name: _torch_shape(name, shapes[path].shape) for name, path in leaves.items()}
    if any_head and "fc.weight" in arrays and arrays["fc.weight"].shape[0] != model.num_classes:
        for name in ("fc.weight", "fc.bias"):
            del leaves[name]
        arrays = {name: array for name, array in arrays.items() if name not in ("fc.weight", "fc.bias")}
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
    trees = unflatten_dict({path: from_torch_layout(name, arrays[name]) for name, path in leaves.items()})
    return trees["params"], trees["batch_stats"]


def _enumerate(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:160] for name in names[:most]) + more
