"""Networks of one's own: a function of a Python file that returns a Flax module, named by `model.arch`."""

import importlib.util
import sys
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict

from rn50_jax.config.schema import Config
from rn50_jax.errors import UserError
from rn50_jax.io.text import first_line
from rn50_jax.models.compute import Compute
from rn50_jax.models.network import Network, part_of, parts_of
from rn50_jax.models.walk import LAYERS, walk


def own_network(config: Config, *, num_classes: int, compute: Compute) -> Network:
    """Builds the network of `model.arch`, "FILE.py:FUNCTION", and looks whether it can be trained; runs the file.

    The function is called with the number of classes and a `Compute`. What it returns is described in
    `models.network.Network`.

    Raises:
      UserError: there is no such file or function, or what it returns cannot be trained.
    """
    try:
        model = _make(config.model.arch, num_classes, compute)
        network: Network = _with_frozen(model, config)
        _check_calls(network, config.data.image_size)
        _check_variables(network)
    except UserError as error:
        raise UserError(f"config.model.arch={config.model.arch}: {error}") from error.__cause__
    _check_finetune(network, config)
    return network


def _make(arch: str, num_classes: int, compute: Compute) -> Any:
    name, _, function = arch.rpartition(":")
    file = Path(name).resolve()
    module = _execute(file)
    make = getattr(module, function, None)
    if isinstance(make, type):
        raise UserError(f"{function} is a class; name a function of (num_classes, compute) that returns a module")
    if not callable(make):
        found = vars(module).items()
        known = [key for key, value in found if isinstance(value, FunctionType) and value.__module__ == module.__name__]
        raise UserError(f"{file} has no function {function}; it has {', '.join(known) or 'none'}")
    try:
        model: Any = make(num_classes, compute)
    except (Exception, SystemExit) as error:
        raise UserError(f"{function}(num_classes, compute) raises {_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{function} returns no flax.linen.Module, but {type(model).__name__}")
    if getattr(model, "num_classes", None) != num_classes:
        raise UserError(f"the module needs the field num_classes, here {num_classes}")
    return model


@cache
def _execute(file: Path) -> Any:
    try:
        if not file.is_file():
            raise UserError(f"there is no file {file}")
    except OSError as error:
        raise UserError(f"the file cannot be read: {_line(error)}") from error
    spec = importlib.util.spec_from_file_location(f"_network_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # by the file's suffix
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their own module
    sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{file} cannot be used: {_line(error)}") from error
    finally:
        sys.path.remove(str(file.parent))
    return module


def _check_calls(model: Any, size: int) -> None:
    """Looks at what it does with two images of the config's size, and whether its variables are those of any size."""
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    try:
        variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
        logits, _ = jax.eval_shape(partial(model.apply, train=True, mutable=["batch_stats"]), variables, images)
        for head in (True, False):
            jax.eval_shape(partial(model.apply, train=False, head=head), variables, images)
        shapes = walk(model).shapes
    except InvalidRngError:
        raise UserError("it draws random numbers when it is called, such as dropout's; do without them") from None
    except Exception as error:
        raise UserError(
            f"it cannot be called as (x, *, train, head=True) on {size} px, see docs/own-network.md: {_line(error)}"
        ) from error
    for path, leaf in flatten_dict(variables).items():
        if shapes[path].shape != leaf.shape:
            raise UserError(
                f"the shape of {'/'.join(path)} depends on the size of the image; average over the pixels before it"
            )
    if (logits.shape, logits.dtype) != ((2, model.num_classes), jnp.float32):
        raise UserError(
            f"it returns {logits.dtype} {list(logits.shape)} for two images; it must return logits, float32 "
            f"[2, {model.num_classes}]"
        )


def _check_variables(model: Network) -> None:
    structure = walk(model)
    for path, leaf in structure.shapes.items():
        if path[0] not in ("params", "batch_stats"):
            raise UserError(f"it has variables in {path[0]!r}; only params and batch_stats are kept")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(
                f"{'/'.join(path)} is {leaf.dtype}; parameters and statistics must be floating-point numbers"
            )
    for layer in structure.layers:
        if isinstance(layer.module, LAYERS) and layer.kernel:
            kept = structure.shapes.get(("params", *layer.path, "kernel"))
            if kept is None or kept.shape != layer.kernel:
                raise UserError(f"{'/'.join(layer.path)} stands in an nn.scan or nn.vmap, where layers of ours cannot")


def _with_frozen(model: Any, config: Config) -> Any:
    """The network with the parts frozen that the config says."""
    finetune = config.finetune
    if not (finetune.freeze or finetune.lr_scales or finetune.lr_decay != 1 or finetune.new_head):
        return model
    if not parts_of(model) or not hasattr(model, "frozen"):
        raise UserError(
            "config.finetune.* is for networks that tell their parts; give it `parts` and `frozen`, see "
            "docs/own-network.md"
        )
    return model.clone(frozen=finetune.freeze)


def _check_finetune(model: Network, config: Config) -> None:
    arch, finetune, parts = config.model.arch, config.finetune, parts_of(model)
    modules = {path[1] for path in walk(model).shapes if path[0] == "params"}
    found = {part_of(model, module) for module in modules}
    if parts and found != set(parts):
        wrong = min(found ^ set(parts))
        raise UserError(
            f"config.model.arch={arch}: the parts that it tells are {', '.join(parts)}, and those of its modules "
            f"{', '.join(sorted(found))}; {wrong!r} is not in both"
        )
    for key, names in (("freeze", finetune.freeze), ("lr_scales", [part for part, _ in finetune.lr_scales])):
        for name in names:
            if name not in parts:
                raise UserError(f"config.finetune.{key} names {name!r}; the parts of {arch} are {', '.join(parts)}")
    if parts and set(finetune.freeze) == set(parts):
        raise UserError(f"config.finetune.freeze={finetune.freeze} leaves nothing to train; leave a part out")


def _line(error: BaseException) -> str:
    return first_line(error, kind=True)
