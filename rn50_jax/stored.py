"""A trained model as other commands see it: its config, classes and network, and where its state comes from."""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from rn50_jax import config as configs
from rn50_jax import parallel, runtime
from rn50_jax.augment import MEAN, STD
from rn50_jax.build import build_model, build_state
from rn50_jax.checkpoint import Checkpoints
from rn50_jax.checkpoint_folder import look
from rn50_jax.data.dataset import at_another_place
from rn50_jax.data.names import likely_names
from rn50_jax.data.transform import eval_resize
from rn50_jax.data.val_share import read_val_images
from rn50_jax.description import RunDescription, check_description, saved_config
from rn50_jax.errors import UserError
from rn50_jax.integrity import ema_is_better, not_finite
from rn50_jax.models.fold import inference_form
from rn50_jax.models.resnet import ResNet
from rn50_jax.state import Variables, variables_of
from rn50_jax.weight_files import WeightFile, read_weights
from rn50_jax.weights import fit, infer_architecture
from rn50_jax.workdir import check_path, versions

Overrides = Sequence[tuple[str, str]]

# Settings of the machine, by which programs get into a process. They come from the command line or the defaults, never
# from a checkpoint, which may be a stranger's.
MACHINE = ("run.compile_cache", "run.xla_flags")


class StoredModel(NamedTuple):
    """A model that can be loaded.

    name: what it came from, for messages. class_names: empty where a weight file does not tell. facts: step, epoch,
    checkpoint and whether the weights are the averaged ones, of a run. load: {"params", "batch_stats"} on the host,
    verified; of a run, as they were when it was looked at. val_images: that a run recorded, see `val_share`, if any.
    """

    name: str
    config: ConfigDict
    class_names: tuple[str, ...]
    facts: dict[str, Any]
    devices: list[jax.Device]
    model: ResNet
    load: Callable[[], Variables]
    val_images: frozenset[str] | None = None


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--workdir`, `--checkpoint` and `--weights`, which `load_model` reads."""
    group = parser.add_argument_group("model")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, metavar="RUN", help="folder of a training run")
    source.add_argument("--weights", type=Path, metavar="FILE", help="or a .pth, .pth.tar, .safetensors or .npz file")
    add_run_arguments(group)


def add_run_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds `--checkpoint` and `--ema`, which say what of a run to read."""
    parser.add_argument(
        "--checkpoint", default="best", metavar="WHICH", help="of the run: best (default), latest or a step number"
    )
    parser.add_argument(
        "--ema",
        choices=("auto", "on", "off"),
        default="auto",
        help="of a run with recipe.ema_decay: averaged weights, live ones, or auto: what validated better (default)",
    )


def load_model(args: argparse.Namespace, overrides: Overrides) -> StoredModel:
    """The run or weight file that a command line names."""
    if args.weights:
        return load_weights(args.weights, overrides)
    return load_run(args.workdir, args.checkpoint, overrides, ema=args.ema)


def load_for_inference(stored: StoredModel, *, exact: bool = False) -> tuple[ResNet, Variables]:
    """The model in the form in which it answers, and its loaded variables: BatchNorm folded, if the config says so.

    Args:
      exact: `model.fold_batch_norm="auto"` means no, since the answers are to be those of training to the last digit.

    Raises:
      UserError: the state cannot be read, or is not finite, of which no answer would be one.
    """
    variables = stored.load()
    if name := not_finite(variables):
        raise UserError(f"{stored.name}: {name} is not finite; take weights from before the training diverged")
    setting = stored.config.model.fold_batch_norm
    if setting == "auto" and exact:
        setting = "off"
    return inference_form(stored.model, variables, setting, platform=stored.devices[0].platform)


def load_run(workdir: Path, which: str, overrides: Overrides, *, ema: str = "auto") -> StoredModel:
    """Reads checkpoint `which` ("best", "latest" or a step) of a run, with its own config and the overrides.

    Args:
      ema: "on" for the averaged weights, "off" for the live ones, "auto" for what validated better.

    Raises:
      UserError: no such run or checkpoint, or an override that is wrong or fits neither devices nor model.
    """
    check_path(workdir)
    directory = workdir / "checkpoints"
    if not os.path.lexists(directory):
        raise UserError(f"{workdir} has no checkpoints; give the --workdir of a training run")
    with Checkpoints(directory, read_only=True) as checkpoints:
        # A run beside may remove a checkpoint while it is read. What has been read stays, whatever becomes of it.
        return look(lambda: _read_run(checkpoints, workdir, which, overrides, ema))


def _read_run(checkpoints: Checkpoints, workdir: Path, which: str, overrides: Overrides, ema: str) -> StoredModel:
    meta = checkpoints.read_meta(which)
    place = checkpoints.directory / str(meta["step"])
    check_description(meta, RunDescription, place)
    saved = saved_config(meta, place)
    try:
        config = configs.override(saved, [*_machine_defaults(), *overrides])
        val_images = read_val_images(workdir) if config.data.val_share else None
        if config.data.dir != saved.data.dir:
            config = at_another_place(config, given=frozenset(dict(overrides)), val_images=val_images)
        configs.validate(config)
        has_ema = saved.recipe.ema_decay > 0
    except (KeyError, TypeError, AttributeError) as error:  # sections are missing, or are none
        raise UserError(f"checkpoint {place} holds what is no config: {error}") from None
    if ema == "on" and not has_ema:
        raise UserError(f"{workdir} was trained without recipe.ema_decay; leave out --ema on")
    averaged = has_ema and (ema == "on" or (ema == "auto" and ema_is_better(meta["metrics"])))
    devices = _prepare(config)
    class_names = tuple(meta["class_names"])
    model = build_model(config, num_classes=len(class_names), platform=devices[0].platform)
    state = checkpoints.restore(meta, build_state(config, model, abstract=True))
    variables = variables_of(state)["val_ema" if averaged else "val"]
    facts = {"checkpoint": which, "step": meta["step"], "epoch": meta["epoch"]}
    name = f"checkpoint {which} of {workdir}: step {meta['step']}, epoch {meta['epoch']}"
    if has_ema:
        facts["ema"] = averaged
        name += ", averaged weights" if averaged else ", live weights"
    return StoredModel(name, config, class_names, facts, devices, model, lambda: variables, val_images)


def _machine_defaults() -> Overrides:
    defaults = configs.flatten(configs.load(str(configs.DEFAULT))[0])
    return [(key, defaults[key]) for key in MACHINE]


def load_weights(path: Path, overrides: Overrides) -> StoredModel:
    """Reads a weight file, whose architecture its tensors tell.

    The rest is that of configs/default.py, in float32, with the image sizes and transform that the file names, if any.

    Raises:
      UserError: the file cannot be read, is no ResNet, or an override is wrong.
    """
    file = read_weights(path)
    architecture = infer_architecture(file.arrays, str(path))
    known = {f"data.{key}": file.meta[key] for key in ("image_size", "resize", "transform") if key in file.meta}
    values = {"precision": "fp32", **known, **architecture.keys}
    config, _ = configs.load(str(configs.DEFAULT))
    config = configs.override(config, [*((key, str(value)) for key, value in values.items()), *overrides])
    devices = _prepare(config)
    model = build_model(config, num_classes=architecture.num_classes, platform=devices[0].platform)
    class_names = tuple(file.meta.get("class_names", ()))
    load = partial(_variables_of, file, model, str(path))
    facts = {"weights": str(path)} | {key: file.meta[key] for key in ("step",) if key in file.meta}
    return StoredModel(str(path), config, class_names, facts, devices, model, load)


def load_start(config: ConfigDict, class_names: tuple[str, ...]) -> StoredModel:
    """Returns the model that a new run of the config starts with: pretrained weights if it names some, or random ones.

    Args:
      class_names: of the data.

    Raises:
      UserError: the weights cannot be read or are of another model.
    """
    devices = _prepare(config)
    model = build_model(config, num_classes=len(class_names), platform=devices[0].platform)
    if source := config.run.resume or config.model.pretrained_weights:
        file = read_weights(Path(source))
        names = tuple(file.meta.get("class_names", class_names))
        return StoredModel(source, config, names, {}, devices, model, partial(_variables_of, file, model, source))
    name = f"random weights of seed {config.seed}"
    return StoredModel(name, config, class_names, {}, devices, model, lambda: _random_variables(config, model))


def describe_model(stored: StoredModel) -> dict[str, Any]:
    """What a file with a model's weights should say about it, in plain values.

    Returns:
      source (checkpoint or weight file) and its facts, such as the step; arch; class_names; image_size, resize and
      transform of the evaluation; mean and std, by which pixels from 0 to 255 are normalised; versions.
    """
    data = stored.config.data
    return {
        "source": stored.name,
        **stored.facts,
        "arch": stored.config.model.arch,
        "class_names": list(stored.class_names or likely_names(stored.model.num_classes)),
        "image_size": data.image_size,
        "resize": eval_resize(data.image_size, data.resize),
        "transform": data.transform,
        "channels": "RGB",
        "mean": MEAN,
        "std": STD,
        "versions": versions(),
    }


def _prepare(config: ConfigDict) -> list[jax.Device]:
    configs.validate(config)
    runtime.prepare_runtime(config.data.backend, config.run.xla_flags)
    runtime.use_compile_cache(config.run.compile_cache)
    return parallel.find_devices(backend=config.data.backend, precision=config.precision)


def _variables_of(file: WeightFile, model: ResNet, source: str) -> Variables:
    params, batch_stats = fit(file.arrays, model, source)
    return {"params": params, "batch_stats": batch_stats}


def _random_variables(config: ConfigDict, model: ResNet) -> Variables:
    return variables_of(build_state(config, model))["val"]
