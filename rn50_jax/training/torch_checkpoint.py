"""Training checkpoints of NVIDIA's code (`checkpoint.pth.tar`): what a run that goes on from one needs of it."""

import os
from collections.abc import Mapping
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
from typing_extensions import TypedDict

from rn50_jax.checkpoint.integrity import not_finite
from rn50_jax.config.sections.recipe import RecipeConfig
from rn50_jax.errors import UserError
from rn50_jax.io.json_files import check_shape
from rn50_jax.io.text import shell
from rn50_jax.models.network import Network, split_frozen
from rn50_jax.training.state import TrainState
from rn50_jax.weights.files import load_torch, to_arrays
from rn50_jax.weights.torch_names import Arrays, fit, to_common

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # the rest of a state_dict are parameters


class TorchCheckpoint(NamedTuple):
    """A training checkpoint; its arrays are in the common form of `weights`, all of them finite.

    epoch: epochs done. arrays: weights and running statistics. momentum: of every parameter, or {} before the first
    step. ema: averages of `arrays`, or {}. settings: of the optimizer, by key of the config's recipe. decays_bn: its
    weight decay is applied to BatchNorms too.
    """

    epoch: int
    arrays: Arrays
    momentum: Arrays
    ema: Arrays
    settings: dict[str, float | bool]
    decays_bn: bool


class _Group(TypedDict):
    params: list[int]
    momentum: float
    weight_decay: float
    nesterov: bool


class _Optimizer(TypedDict):
    """`torch.optim.SGD.state_dict()`; the parameters' numbers are their addresses in torch up to 1.4."""

    state: dict[int, dict[str, Any]]
    param_groups: list[_Group]


def read_checkpoint(path: Path) -> TorchCheckpoint:
    """Reads a training checkpoint of NVIDIA's code, of 2019 to 2023, also of a run with `--fp16` or `--amp`.

    Raises:
      UserError: the file cannot be read, is no training checkpoint with torch's SGD, or its parts do not fit together.
    """
    if os.path.isdir(path):  # noqa: PTH112, Path.is_dir raises where this says no
        raise UserError(
            f"{path} is a folder, and --resume takes a checkpoint.pth.tar of NVIDIA's code; a run of this program "
            f"goes on by its own command, with {shell(['--workdir', path])}"
        )
    content = load_torch(path)
    instead = f"start from its weights alone with {shell(['--pretrained_weights', path])}"
    for key in ("state_dict", "optimizer", "epoch"):
        kind = int if key == "epoch" else Mapping
        value = content.get(key) if isinstance(content, Mapping) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{path} is no training checkpoint of NVIDIA's code: it has no usable {key!r}; {instead}")
    if not 0 <= content["epoch"] < 2**31:
        raise UserError(f"{path} cannot be of epoch {content['epoch']!s:.40}; {instead}")
    weights, optimizer = to_arrays(content["state_dict"], path), content["optimizer"]
    try:
        inner = _check_sgd(optimizer.get("optimizer_state_dict", optimizer))
        groups = _group_names(weights, inner)
        weights |= _read_masters(optimizer.get("fp32_from_fp16", []), groups, weights, path)
        momentum = _read_momentum(inner, groups, weights, path)
    except ValueError as error:
        raise UserError(f"the optimizer of {path} cannot be used: {error}; {instead}") from None
    averages = content.get("state_dict_ema")
    averages = to_arrays(averages, path) if isinstance(averages, Mapping) else {}
    arrays, momentum, ema = (to_common(tensors, str(path)) for tensors in (weights, momentum, averages))
    if name := not_finite({"state_dict": arrays, "momentum": momentum, "state_dict_ema": ema}):
        raise UserError(f"{path}: {name} is not finite; go on from a checkpoint before the training diverged")
    decayed = inner["param_groups"][-1]
    settings = {"momentum": decayed["momentum"], "weight_decay": decayed["weight_decay"]}
    settings["nesterov"] = decayed["nesterov"]
    return TorchCheckpoint(content["epoch"], arrays, momentum, ema, settings, decays_bn=len(groups) == 1)


def _check_sgd(state: Any) -> _Optimizer:
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    if isinstance(groups, list) and groups and isinstance(groups[0], Mapping) and "nesterov" not in groups[0]:
        raise ValueError("it is not torch's SGD")
    return check_shape(state, _Optimizer)


def _group_names(weights: Arrays, optimizer: _Optimizer) -> list[list[str]]:
    """The parameters' names in the order of the optimizer's groups: with two of them, BatchNorms are the first.

    Raises:
      ValueError: the groups are others.
    """
    names = [name for name in weights if not name.endswith(_STATISTICS)]
    found = [group["params"] for group in optimizer["param_groups"]]
    groups = [names]
    if len(found) == 2:  # NVIDIA tells BatchNorms by their names, so those of the shortcuts are among the rest
        groups = [[name for name in names if "bn" in name], [name for name in names if "bn" not in name]]
    sizes, wanted = [len(ids) for ids in found], [len(group) for group in groups]
    if sizes != wanted:
        raise ValueError(f"it has groups of {sizes!s:.80} parameters, and the model of {wanted}")
    if len({id for ids in found for id in ids}) < len(names):
        raise ValueError("a parameter is in it twice")
    return groups


def _read_masters(masters: Any, groups: list[list[str]], weights: Arrays, path: Path) -> Arrays:
    """The float32 weights that apex' FP16_Optimizer keeps of those in half precision, in the order of its groups.

    Raises:
      ValueError: they do not belong to the weights.
    """
    tensors = [tensor for group in check_shape(masters, list[list[Any]]) for tensor in group]
    if not tensors:
        return {}
    names = [name for group in groups for name in group if weights[name].dtype == np.float16]
    arrays = to_arrays(dict(zip(names, tensors, strict=False)), path)
    with np.errstate(over="ignore"):
        rounded = {name: array.astype(np.float16) for name, array in arrays.items()}
    same = all(name in rounded and np.array_equal(rounded[name], weights[name], equal_nan=True) for name in names)
    if len(tensors) != len(names) or not same:
        raise ValueError("its float32 weights are not those of the model")
    return arrays


def _read_momentum(optimizer: _Optimizer, groups: list[list[str]], weights: Arrays, path: Path) -> Arrays:
    """A buffer for every parameter, zero where there is none yet; {} if there are none at all.

    Raises:
      ValueError: they are not those of the parameters.
    """
    names = [name for group in groups for name in group]
    ids = [id for group in optimizer["param_groups"] for id in group["params"]]
    if not set(optimizer["state"]) <= set(ids):
        raise ValueError("it has momentum of unknown parameters")
    buffers = {name: optimizer["state"].get(id, {}).get("momentum_buffer") for name, id in zip(names, ids, strict=True)}
    buffers = {name: buffer for name, buffer in buffers.items() if buffer is not None}
    arrays = to_arrays(buffers, path)
    for name in buffers:
        if name not in arrays or arrays[name].shape != weights[name].shape:
            kind = list(arrays[name].shape) if name in arrays else "no tensor"
            raise ValueError(f"its momentum of {name[:80]} is {kind} instead of {list(weights[name].shape)}")
    return {name: arrays.get(name, np.zeros_like(weights[name])) for name in names} if arrays else {}


def differing_settings(checkpoint: TorchCheckpoint, recipe: RecipeConfig) -> list[str]:
    """Lists what the optimizer of a checkpoint was set to and the config's recipe is not, but for the learning rate."""
    ours = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "nesterov": recipe.nesterov}
    notes = [
        f"{key} {theirs}, and config.recipe.{key} is {ours[key]} here"
        for key, theirs in checkpoint.settings.items()
        if not isclose(theirs, ours[key], rel_tol=1e-6)
    ]
    if checkpoint.decays_bn != (recipe.decay_mask == "all"):
        decayed = "decayed" if checkpoint.decays_bn else "undecayed"
        notes.append(f"{decayed} BatchNorms, and config.recipe.decay_mask is {recipe.decay_mask!r} here")
    return notes


def resume_from(state: TrainState, checkpoint: TorchCheckpoint, model: Network, source: str) -> TrainState:
    """Puts the checkpoint's weights, statistics, momentum and averages into the fresh state of an SGD run.

    Its step stays, which the caller knows. Averages that a run keeps and the file lacks start from the weights.

    Raises:
      UserError: the model is another one.
    """
    classes = checkpoint.arrays["fc.weight"].shape[:1] if "fc.weight" in checkpoint.arrays else ()
    if classes and classes[0] != model.num_classes:
        raise UserError(
            f"{source} has a classifier of {classes[0]} classes and the data {model.num_classes}, and a run keeps "
            f"those it began with; start from its weights alone with {shell(['--pretrained_weights', source])}"
        )
    params, batch_stats = fit(checkpoint.arrays, model, source)
    ema, opt_state = state.ema, state.opt_state
    if checkpoint.momentum:
        momentum, _ = fit(checkpoint.arrays | checkpoint.momentum, model, source)
        opt_state = optax.tree_utils.tree_set(opt_state, trace=split_frozen(momentum, model)[0])
    if ema:
        averages = fit(checkpoint.ema or checkpoint.arrays, model, source)
        ema = dict(zip(("params", "batch_stats"), averages, strict=True))
    return state._replace(params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema)
