"""The weights that a new run starts from: a weight file, or another run; and what a run takes from them besides."""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rn50_jax.checkpoint.description import saved_config
from rn50_jax.checkpoint.folder import CheckpointFolder
from rn50_jax.config import loading as configs
from rn50_jax.config.model import build_model
from rn50_jax.config.schema import Config, affecting, options
from rn50_jax.errors import UserError
from rn50_jax.inference.trained_model import TrainedModel, describe_model, load_best, prepare_devices, variables_of_file
from rn50_jax.io.text import counted, shell
from rn50_jax.models.family import FAMILY
from rn50_jax.models.initial import initial_variables
from rn50_jax.models.network import Network, part_of, parts_of
from rn50_jax.training.state import TrainState
from rn50_jax.weights.architecture import infer_architecture
from rn50_jax.weights.files import WeightFile, read_weights
from rn50_jax.weights.metadata import config_values
from rn50_jax.weights.torch_names import Arrays, fit, to_common_form

# What decides the shapes of a network's weights, but for the number of classes.
ARCHITECTURE = tuple(option.key for option in affecting("arrays") if option.key.startswith("model."))
_ANY_MACHINE = (("data.backend", "synthetic"), ("precision", "fp32"))  # nothing is computed


def read_pretrained(source: Path, config: Config | None = None) -> tuple[str, WeightFile]:
    """Reads a weight file, or of a run's folder the best checkpoint: the averaged weights if they validated better.

    Of a run that never validated, the latest checkpoint is read.

    Args:
      config: of the run that is to start, which may name the code of a network of one's own.

    Returns:
      A name for messages; the weights, and what they say about themselves.

    Raises:
      UserError: it cannot be read.
    """
    if not os.path.isdir(source):  # noqa: PTH112, Path.is_dir raises where this says no
        return str(source), read_weights(source)
    own = (("model.arch", config.model.arch),) if config and config.model.is_own else ()
    trained = load_best(source, (*_ANY_MACHINE, *own))
    return trained.name, WeightFile(to_common_form(trained.model, trained.load()), describe_model(trained))


def take_architecture(
    config: Config, overrides: Sequence[tuple[str, str]], workdir: Path | None = None
) -> tuple[Config, str]:
    """Gives a config the architecture of the weights that its run starts from.

    Args:
      overrides: of the command line. What they say of the architecture stays, and must be so.
      workdir: if it has checkpoints, the run goes on from these: their architecture is taken, and the weights need not
        be there anymore.

    Returns:
      The config, and a sentence about what was taken from the weights; empty if that is nothing.

    Raises:
      UserError: the weights cannot be read, or are of another architecture than the command line says.
    """
    source = config.run.resume or config.model.pretrained_weights
    if not source or config.model.is_own:
        return config, ""
    given = {key for key, _ in overrides if key in ARCHITECTURE}
    known = _of_checkpoints(workdir) if workdir else None
    keys = known or _of_source(source, resumed=bool(config.run.resume))
    now = config.flat()
    differing = [key for key in keys if not _same(key, keys, now)]
    if known is None and (wrong := [key for key in differing if key in given]):
        key = wrong[0]
        written = shell([f"--config.{key}={keys[key]}"])
        raise UserError(
            f"config.{key}={now[key]!r} is not the architecture of {source}, which has {keys[key]!r}; write {written}, "
            "or leave it out"
        )
    changed = {key: keys[key] for key in differing if key not in given}  # resuming compares the others
    if not changed:
        return config, ""
    config = configs.override(config, [(key, str(value)) for key, value in changed.items()])
    taken = ", ".join(f"{key}={value}" for key, value in changed.items())
    return config, "" if known else f"architecture of {source}: {taken}"


def _of_checkpoints(workdir: Path) -> dict[str, Any] | None:
    """The architecture of a work folder's newest checkpoint that says so; None if there is none."""
    folder = CheckpointFolder(workdir / "checkpoints")
    found = folder.readable()
    for step in reversed(found.by_age()):
        with suppress(UserError, KeyError):
            flat = saved_config(found.metas[step], folder.directory / str(step)).config.flat()
            return {key: flat[key] for key in ARCHITECTURE} if flat["model.arch"] in FAMILY else None
    return None


def _of_source(source: str, *, resumed: bool) -> dict[str, Any]:
    if not resumed and (keys := _of_checkpoints(Path(source))):
        return keys
    try:
        _, file = read_pretrained(Path(source))
        return infer_architecture(file.arrays, source).keys
    except UserError:
        if resumed:  # what reads the checkpoint says better what is wrong with it
            return {}
        raise


def _same(key: str, keys: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a config means what the weights have, in whatever way it says so."""
    variant = FAMILY[keys["model.arch"]]
    if key == "model.stages":
        return bool((now[key] or variant.stages) == (keys[key] or variant.stages))
    if key == "model.widths" and not keys[key]:
        doubling = tuple(keys["model.width"] * 2**stage for stage in range(len(now[key])))
        return bool(now[key] == doubling)
    if key == "model.se_units" and not variant.se:
        return True  # of no effect
    return bool(now[key] == keys[key])


def load_start(config: Config, class_names: tuple[str, ...]) -> TrainedModel:
    """Returns the model that a new run of the config starts with: pretrained weights if it names some, or random ones.

    Args:
      class_names: of the data.

    Raises:
      UserError: the weights cannot be read or are of another model.
    """
    devices = prepare_devices(config)
    model = build_model(config, num_classes=len(class_names), platform=devices[0].platform)
    if source := config.run.resume or config.model.pretrained_weights:
        resumed = bool(config.run.resume)
        name, file = (source, read_weights(Path(source))) if resumed else read_pretrained(Path(source), config)
        names = tuple(file.meta.get("class_names", class_names))
        return TrainedModel(name, config, names, {}, devices, model, partial(variables_of_file, file, model, name))
    name = f"random weights of seed {config.seed}"
    initial = partial(initial_variables, model, config.seed)
    return TrainedModel(name, config, class_names, {}, devices, model, initial)


def list_differences(file: WeightFile, config: Config, class_names: Sequence[str], name: str) -> list[str]:
    """Lists what a run should know of the weights that it starts from: what it does otherwise, and what is assumed.

    Args:
      class_names: of the run's data.
    """
    known, now = config_values(file.meta), config.flat()
    notes = []
    for key in (key for key, option in options().items() if option.prepares):
        same = config.data.eval_resize if key == "data.resize" else now[key]
        if key in known and known[key] not in (now[key], same):
            write = shell([f"--config.{key}={known[key]}"])
            notes.append(f"{name} was trained with another config.{key} than {now[key]!r}; to keep it, add {write}")
    same_classes = list(class_names) == list(file.meta.get("class_names", ()))
    split = [(values.get("data.val_share"), values.get("seed")) for values in (known, now)]
    if same_classes and "data.val_share" in known and config.data.val_share > 0 and split[0] != split[1]:
        notes.append(
            f"{name} was trained with config.data.val_share={split[0][0]} and config.seed={split[0][1]}; on the same "
            "images, with another share or seed, this run validates on some that it was trained on"
        )
    assumed = [] if {"data.mean", "data.std"} <= known.keys() else ["config.data.mean and config.data.std"]
    classifier = file.arrays.get("fc.weight")
    fits = classifier is not None and len(classifier) == len(class_names)
    if fits and "class_names" not in file.meta and not config.finetune.new_head:
        assumed.append(
            f"the data's {len(class_names):,} classes in their order (if not: --config.finetune.new_head=true)"
        )
    if assumed:
        notes.append(f"assuming {', and '.join(assumed)}, as {name} does not say what it was trained with")
    return notes


def start_from(
    state: TrainState, arrays: Arrays, model: Network, source: str, *, new_head: bool = False
) -> tuple[TrainState, str]:
    """Returns a fresh state with the weights of a file, and a sentence that says which were taken.

    The classifier stays as it was initialized with `new_head`, or if the file's is of another number of classes.

    Raises:
      UserError: see `fit`; or the network does not tell which of its parts is the classifier.
    """
    params, batch_stats = fit(arrays, model, source, any_head=True)
    message = f"starting from the weights of {source}"
    head = [module for module in state.params if part_of(model, module) in parts_of(model)[-1:]]
    if new_head and not head:
        raise UserError(
            f"{source} is of other classes, and the network does not tell which part is the classifier; give it "
            "`parts`, see docs/own-network.md"
        )
    if new_head or not params.keys() >= set(head):
        classes = f" of {counted(arrays['fc.weight'].shape[0], 'class')}" if "fc.weight" in arrays else ""
        message += f"; its classifier{classes} is replaced by a new one of {model.num_classes}"
        params = params | {module: state.params[module] for module in head}
        batch_stats = batch_stats | {name: state.batch_stats[name] for name in head if name in state.batch_stats}
    ema = {"params": params, "batch_stats": batch_stats} if state.ema else {}
    return state._replace(params=params, batch_stats=batch_stats, ema=ema), message
