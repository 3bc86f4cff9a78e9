"""A trained model as other commands see it: its config, classes and network, and where its state comes from."""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rn50_jax.checkpoint.description import RunDescription, check_description, saved_config
from rn50_jax.checkpoint.folder import CheckpointFolder, look
from rn50_jax.checkpoint.integrity import not_finite
from rn50_jax.checkpoint.manager import Checkpoints
from rn50_jax.checkpoint.selection import better_weights
from rn50_jax.config import loading as configs
from rn50_jax.config.loading import Overrides
from rn50_jax.config.model import build_model
from rn50_jax.config.schema import Config, affecting
from rn50_jax.config.sections.data import eval_resize
from rn50_jax.data.dataset import misfits, open_dataset
from rn50_jax.data.formats.imagenet_names import likely_names
from rn50_jax.data.image_set import Dataset, with_classes
from rn50_jax.data.val_share import VAL_IMAGES, read_val_images
from rn50_jax.distributed.devices import find_devices
from rn50_jax.errors import UserError
from rn50_jax.io.files import no_such_run
from rn50_jax.io.messages import warn
from rn50_jax.io.text import counted
from rn50_jax.models.fold import inference_form
from rn50_jax.models.initial import variable_shapes
from rn50_jax.models.network import Network
from rn50_jax.models.walk import Variables
from rn50_jax.runtime import jax_setup
from rn50_jax.runtime.machine import versions
from rn50_jax.runtime.run_folder import check_path
from rn50_jax.weights.architecture import Architecture, infer_architecture
from rn50_jax.weights.files import WeightFile, read_weights, write_weights
from rn50_jax.weights.metadata import PREPARATION, config_values, to_pixels
from rn50_jax.weights.torch_names import fit, to_common_form


class TrainedModel(NamedTuple):
    """A model that can be loaded.

    name: its source, for messages. class_names: empty if a weight file has none. facts: step, epoch,
    checkpoint and whether the weights are the averaged ones, of a run. load: {"params", "batch_stats"} on the host,
    verified; of a run, as they were when it was looked at. val_images: that a run recorded, see `val_share`, if any.
    assumed: of `class_names` and the keys of `metadata.PREPARATION`, those that neither a weight file nor the
    command line tells.
    """

    name: str
    config: Config
    class_names: tuple[str, ...]
    facts: dict[str, Any]
    devices: list[jax.Device]
    model: Network
    load: Callable[[], Variables]
    val_images: frozenset[str] | None = None
    assumed: tuple[str, ...] = ()


def load_model(args: argparse.Namespace, overrides: Overrides) -> TrainedModel:
    """Returns the run's model or the weight file that a command line names, see `cli.add_model_arguments`."""
    if args.weights:
        return load_weights(args.weights, overrides)
    return load_run(args.workdir, args.checkpoint, overrides, ema=args.ema)


def load_for_inference(trained: TrainedModel, *, exact: bool = False) -> tuple[Network, Variables]:
    """Returns the model in the form in which it answers, and its variables: BatchNorm folded, if the config says so.

    Args:
      exact: `compute.fold_batch_norm="auto"` means no, since the answers are to be those of training to the last digit.

    Raises:
      UserError: the state cannot be read, or is not finite, of which no answer would be one.
    """
    variables = trained.load()
    if name := not_finite(variables):
        raise UserError(f"{trained.name}: {name} is not finite; take weights from before the training diverged")
    setting = trained.config.compute.fold_batch_norm
    if setting == "auto" and exact:
        setting = "off"
    return trained.model, inference_form(trained.model, variables, setting, platform=trained.devices[0].platform)


def load_run(workdir: Path, which: str, overrides: Overrides, *, ema: str = "auto") -> TrainedModel:
    """Reads checkpoint `which` ("best", "latest" or a step) of a run, with its own config and the overrides.

    Args:
      ema: "on" for the averaged weights, "off" for the live ones, "auto" for what validated better.

    Raises:
      UserError: no such run or checkpoint, or an override that is wrong or fits neither devices nor model.
    """
    check_path(workdir)
    directory = workdir / "checkpoints"
    if not os.path.lexists(workdir):
        raise UserError(no_such_run(workdir))
    if not os.path.lexists(directory):
        raise UserError(f"{workdir} is no run, or an unfinished one: it has no checkpoints; give another --workdir")
    with Checkpoints(directory, read_only=True) as checkpoints:
        # A run beside may remove a checkpoint while it is read. What has been read stays, whatever becomes of it.
        return look(lambda: _read_run(checkpoints, workdir, which, overrides, ema))


def load_best(workdir: Path, overrides: Overrides) -> TrainedModel:
    """Reads the best checkpoint of a run, or of one that never validated the latest, see `load_run`."""
    validated = CheckpointFolder(workdir / "checkpoints").readable().best() is not None
    return load_run(workdir, "best" if validated else "latest", overrides)


def _read_run(checkpoints: Checkpoints, workdir: Path, which: str, overrides: Overrides, ema: str) -> TrainedModel:
    meta = checkpoints.read_meta(which)
    place = checkpoints.directory / str(meta["step"])
    check_description(meta, RunDescription, place)
    saved = saved_config(meta, place).config
    # Options of the machine, by which programs get into a process, come from the command line or the defaults, never
    # from a checkpoint, which may be a stranger's.
    config = configs.override(
        saved, [*((option.key, str(option.default)) for option in affecting("machine")), *overrides]
    )
    configs.refuse_unnamed_network(config, overrides, str(workdir))
    val_images = read_val_images(workdir) if config.data.val_share else None
    if config.data.val_share and val_images is None:
        warn(f"{workdir / VAL_IMAGES} is missing: the validation images are drawn again, by config.seed")
    if os.path.realpath(config.data.dir) != os.path.realpath(saved.data.dir):
        config = _fitted(config, overrides, val_images)
    has_ema = saved.recipe.ema_decay > 0
    if ema == "on" and not has_ema:
        raise UserError(f"{workdir} was trained without recipe.ema_decay; leave out --ema on")
    averaged = has_ema and (ema == "on" or (ema == "auto" and better_weights(meta["metrics"]) == "val_ema"))
    devices = prepare_devices(config)
    class_names = tuple(meta["class_names"])
    model = build_model(config, num_classes=len(class_names), platform=devices[0].platform)
    like = variable_shapes(model)
    variables = checkpoints.restore(meta, {"ema": like})["ema"] if averaged else checkpoints.restore(meta, like)
    facts = {"checkpoint": which, "step": meta["step"], "epoch": meta["epoch"]}
    name = f"checkpoint {which} of {workdir}: step {meta['step']}, epoch {meta['epoch']}"
    if has_ema:
        facts["ema"] = averaged
        name += ", averaged weights" if averaged else ", live weights"
    return TrainedModel(name, config, class_names, facts, devices, model, lambda: variables, val_images)


def _fitted(config: Config, overrides: Overrides, val_images: frozenset[str] | None) -> Config:
    """Returns the config for images elsewhere, without what does not fit them and the command line does not give."""
    given = dict(overrides)
    unfit = misfits(config.data, val_images=val_images)
    return configs.override(config, [(key, text) for key, text in unfit if key not in given])


def load_weights(path: Path, overrides: Overrides) -> TrainedModel:
    """Reads a weight file, whose architecture its tensors tell.

    What neither the file nor the overrides tell has its default, in float32.

    Raises:
      UserError: the file cannot be read, is no ResNet, or an override is wrong.
    """
    file = read_weights(path)
    architecture = _architecture(file, dict(overrides), str(path))
    val_images = frozenset(file.meta["val_images"]) if "val_images" in file.meta else None
    told = config_values(file.meta)
    size, resize = told.get("data.image_size"), told.get("data.resize")
    if size and resize == eval_resize(size, 0):
        told["data.resize"] = 0  # so it follows an image size of the command line
    values = {"precision": "fp32", **told, **architecture.keys}
    config = configs.override(Config(), [*((key, str(value)) for key, value in values.items()), *overrides])
    config = _fitted(config, overrides, val_images)
    devices = prepare_devices(config)
    model = build_model(config, num_classes=architecture.num_classes, platform=devices[0].platform)
    class_names = tuple(file.meta.get("class_names", ()))
    load = partial(variables_of_file, file, model, str(path))
    facts = {"weights": str(path)} | {key: file.meta[key] for key in ("step",) if key in file.meta}
    known = {*told, *dict(overrides), *(["data.class_names"] if class_names else [])}
    assumed = tuple(key for key in (*PREPARATION, "class_names") if f"data.{key}" not in known)
    if config.model.small_stem and not told:  # the tensors would be the same with a stride, or with pooling after it
        assumed += ("small_stem",)
    return TrainedModel(str(path), config, class_names, facts, devices, model, load, val_images, assumed)


def _architecture(file: WeightFile, given: dict[str, str], source: str) -> Architecture:
    """What the tensors of a file tell of its network; of one of the user's own, what the command line tells."""
    keys = [(key, given[key]) for key in ("model.arch", "model.num_classes") if key in given]
    model = configs.override(Config(), keys).model
    if not model.is_own:
        return infer_architecture(file.arrays, source)
    if not (classes := len(file.meta.get("class_names", ())) or model.num_classes):
        raise UserError(f"{source} does not say how many classes it has; write --config.model.num_classes=N")
    return Architecture({"model.arch": model.arch}, classes)


def open_val(trained: TrainedModel) -> Dataset:
    """Opens the validation images of a model's config, with the labels of the model.

    Raises:
      UserError: there are none, or their classes are not the model's.
    """
    data, model = trained.config.data, trained.model
    dataset = open_dataset(trained.config, need_train=False, val_images=trained.val_images)
    if trained.class_names:
        return with_classes(dataset, trained.class_names, data.dir)
    if len(dataset.class_names) != model.num_classes:
        raise UserError(
            f"{data.dir} has {counted(len(dataset.class_names), 'class folder')}, and {trained.name} is of a model "
            f"with {counted(model.num_classes, 'class')}; pass --config.data.dir=DIR"
        )
    return dataset


def warn_assumed(trained: TrainedModel) -> None:
    """Notes the sizes, normalization and class names that were assumed because a weight file does not say them."""
    data = trained.config.data
    sizes = {"image_size": data.image_size, "resize": data.eval_resize}
    keys = [key for key in (*sizes, "mean", "std") if key in trained.assumed]
    parts = [f"{key}={sizes[key]}" for key in keys if key in sizes]
    if normalization := [key for key in keys if key not in sizes]:
        parts.append(f"{' and '.join(normalization)} of ImageNet")
    if "small_stem" in trained.assumed:
        parts.append("a 3x3 stem of stride 1 without pooling")
    if "class_names" in trained.assumed:
        classes = trained.model.num_classes
        imagenet = likely_names(classes)[0] != "0"
        parts.append(f"ImageNet's {classes:,} classes" if imagenet else f"{classes:,} classes without names")
    hint = f"; to change: {', '.join(f'--config.data.{key}' for key in keys)}" if keys else ""
    if parts:
        warn(f"assuming {', '.join(parts)}, as {trained.name} does not say{hint}")


def describe_model(trained: TrainedModel) -> dict[str, Any]:
    """Returns the facts that a file with a model's weights should hold, in plain values.

    These are source (checkpoint or weight file) and its facts, such as the step; arch; class_names; the preparation of
    images in evaluation, `metadata.PREPARATION`, with mean and std on the 0-255 scale; the split of the data,
    val_share, seed and val_images, if the validation images were a share of it; versions.
    """
    data = trained.config.data
    return {
        "source": trained.name,
        **trained.facts,
        "arch": trained.config.model.arch,
        "class_names": list(trained.class_names or likely_names(trained.model.num_classes)),
        "image_size": data.image_size,
        "resize": data.eval_resize,
        "transform": data.transform,
        "channels": "RGB",
        "mean": to_pixels(data.mean),
        "std": to_pixels(data.std),
        "exif_rotation": data.exif_rotation,
        "background": list(data.background),
        **({"val_share": data.val_share, "seed": trained.config.seed} if data.val_share > 0 else {}),
        **({"val_images": sorted(trained.val_images)} if trained.val_images else {}),
        "versions": versions(),
    }


def prepare_devices(config: Config) -> list[jax.Device]:
    """Makes the process ready for a config; returns the devices.

    Raises:
      UserError: the devices cannot do what it asks for.
    """
    jax_setup.prepare_runtime(config.data.backend, config.compute.xla_flags)
    jax_setup.use_compile_cache(config.compute.compile_cache)
    return find_devices(backend=config.data.backend, precision=config.precision)


def variables_of_file(file: WeightFile, model: Network, source: str) -> Variables:
    """Returns the weights of a file as the model's variables; raises what `torch_names.fit` does."""
    params, batch_stats = fit(file.arrays, model, source)
    return {"params": params, "batch_stats": batch_stats}


def save_weights(trained: TrainedModel, target: Path) -> dict[str, Any]:
    """Writes a model's weights in the format of the file's suffix.

    Returns:
      What the file says about itself: inside it, or of `.pth` in `FILE.json` beside it. What neither the source nor the
      command line tells is omitted.

    Raises:
      UserError: unknown suffix, the weights cannot be read or the file not be written.
    """
    meta = {key: value for key, value in describe_model(trained).items() if key not in trained.assumed}
    write_weights(target, WeightFile(to_common_form(trained.model, trained.load()), meta))
    return meta


def summary(trained: TrainedModel) -> str:
    """Returns for example "resnet50, 25,557,032 parameters, 1000 classes"."""
    parameters = sum(x.size for x in jax.tree.leaves(variable_shapes(trained.model)["params"]))
    return f"{trained.config.model.arch}, {parameters:,} parameters, {counted(trained.model.num_classes, 'class')}"
