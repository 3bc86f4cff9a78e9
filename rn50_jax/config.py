"""Reads, overrides and checks a config, and derives the numbers that follow from it."""

import argparse
import ast
import difflib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rn50_jax.errors import UserError
from rn50_jax.models.resnet import FAMILY


class Rule(NamedTuple):
    """What a key may hold: a Python type, a test and its description for error messages."""

    kind: type
    valid: str
    test: Callable[[Any], bool]


def _choice(*options: str) -> Rule:
    return Rule(str, "one of " + ", ".join(repr(o) for o in options), lambda v: v in options)


def _integer(low: int) -> Rule:
    return Rule(int, f"an integer >= {low}", lambda v: v >= low)


def _number(valid: str, test: Callable[[float], bool]) -> Rule:
    return Rule(float, f"a number {valid}", test)


def _range(low: float, high: float) -> Rule:
    def test(pair: tuple[Any, ...]) -> bool:
        numbers = len(pair) == 2 and all(isinstance(x, (int, float)) for x in pair)
        return numbers and low <= pair[0] <= pair[1] <= high

    return Rule(tuple, f"two numbers (smallest, largest) with {low:g} <= smallest <= largest <= {high:g}", test)


_BOOLEAN = Rule(bool, "True or False", lambda v: True)
_FRACTION = _number(">= 0 and < 1", lambda v: 0 <= v < 1)

RULES: dict[str, Rule] = {
    "seed": _integer(0),
    "epochs": _integer(1),
    "batch_size": _integer(1),
    "precision": _choice("fp32", "tf32", "bf16", "fp16"),
    "parallel": _choice("pmap", "shard_map"),
    "model.arch": _choice(*FAMILY),
    "model.width": _integer(8),
    "model.num_classes": _integer(0),
    "model.zero_init_last_gamma": _BOOLEAN,
    "model.conv_lowering": _choice("auto", "native", "matmul"),
    "data.dir": Rule(str, "a folder", lambda v: v != ""),
    "data.builtin": _choice("", "digits"),
    "data.backend": _choice("dali-cpu", "dali-gpu", "synthetic"),
    "data.image_size": _integer(32),
    "data.resize": _integer(32),
    "data.crop_area": _range(1e-4, 1),
    "data.crop_aspect": _range(0.1, 10),
    "data.flip": _number("from 0 to 1", lambda v: 0 <= v <= 1),
    "data.workers": _integer(1),
    "data.prefetch": _integer(1),
    "data.synthetic_images": Rule(
        tuple,
        "two integers >= 1",
        lambda v: len(v) == 2 and all(isinstance(n, int) and n >= 1 for n in v),
    ),
    "recipe.lr": _number("> 0", lambda v: 0 < v < float("inf")),
    "recipe.lr_batch_size": _integer(0),
    "recipe.warmup_epochs": _integer(0),
    "recipe.momentum": _FRACTION,
    "recipe.weight_decay": _number(">= 0", lambda v: 0 <= v < float("inf")),
    "recipe.label_smoothing": _FRACTION,
    "recipe.mixup": _number(">= 0", lambda v: 0 <= v < float("inf")),
    "recipe.optimizer_batch_size": _integer(0),
    "loss_scale.mode": _choice("static", "dynamic"),
    "loss_scale.init": _number("from 1 to 2**24", lambda v: 1 <= v <= 2**24),
    "loss_scale.growth_interval": _integer(1),
    "loss_scale.growth": _number("> 1", lambda v: 1 < v < float("inf")),
    "loss_scale.backoff": _number("between 0 and 1", lambda v: 0 < v < 1),
    "loss_scale.floor": _number("> 0", lambda v: 0 < v < float("inf")),
    "checkpoint.every_epochs": _integer(1),
    "checkpoint.keep": _integer(1),
    "report.print_every": _integer(1),
    "report.file": Rule(str, "a plain file name", lambda v: v not in ("", ".", "..") and "/" not in v),
    "run.prof": _integer(0),
    "run.training_only": _BOOLEAN,
    "run.evaluate": _BOOLEAN,
    "run.save_checkpoints": _BOOLEAN,
}


def parse_args(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Splits a command line into the parser's own arguments and the `--config.key=value` overrides.

    Returns:
      The parsed arguments and a list of (key, text) pairs.
    """
    args, rest = parser.parse_known_args(argv)
    overrides = []
    words = iter(rest)
    for word in words:
        if not word.startswith("--config."):
            raise UserError(f"unknown argument {word!r}; see --help (config keys are given as --config.key=value)")
        key, equals, text = word.removeprefix("--config.").partition("=")
        if not equals:
            text = next(words, "")
            if not text or text.startswith("--"):
                raise UserError(f"{word} has no value; write {word}=VALUE")
        overrides.append((key, text))
    return args, overrides


def load(spec: str) -> tuple[ConfigDict, str]:
    """Reads `FILE.py[:variant]`, or the `config.json` of an earlier run.

    A `.py` file is executed; a `.json` file is only read.

    Returns:
      The config and its name: the file's stem, with `-variant` if one was given.
    """
    name, _, variant = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        raise UserError(f"config file {name!r} does not exist; the ready ones are in configs/")
    if path.suffix == ".json":
        return from_json(path.read_text(encoding="utf-8"), source=name), path.stem
    if path.suffix != ".py":
        raise UserError(f"config file {name!r} must end in .py (a recipe) or .json (the config of an earlier run)")
    config = _execute(path, variant)
    if not isinstance(config, ConfigDict):
        raise UserError(f"{name}: get_config() must return an ml_collections ConfigDict, not {type(config).__name__}")
    return config, path.stem + (f"-{variant}" if variant else "")


def _execute(path: Path, variant: str) -> Any:
    # Configs import each other as `from configs import default`, wherever the command is run from.
    home = str(path.resolve().parent.parent)
    sys.path.insert(0, home)
    try:
        spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        variants = getattr(module, "VARIANTS", ())
        if variant and variant not in variants:
            known = ", ".join(variants) or "none"
            raise UserError(f"config {path} has no variant {variant!r}; its variants: {known}")
        return module.get_config(variant) if variant else module.get_config()
    except UserError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        detail = lines[0] if lines else ""
        raise UserError(f"config {path} cannot be used: {type(error).__name__}: {detail}") from error
    finally:
        sys.path.remove(home)


def to_json(config: ConfigDict) -> str:
    """The resolved config as indented JSON text, read back by `from_json`."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str, *, source: str) -> ConfigDict:
    """The inverse of `to_json`; executes nothing."""
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source} is not a config: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{source} is not a config: it must hold a JSON object")
    lists_to_tuples = {
        key: {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()} if isinstance(value, dict) else value
        for key, value in tree.items()
    }
    return ConfigDict(lists_to_tuples).lock()


def flatten(config: ConfigDict) -> dict[str, Any]:
    """The config as {"section.key": value}, in its own order."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{k}": v for k, v in value.items()}
        else:
            flat[key] = value
    return flat


def override(config: ConfigDict, assignments: Iterable[tuple[str, str]]) -> ConfigDict:
    """Returns a copy of the config with the `(key, text)` assignments made, each read as its key's type."""
    config = ConfigDict(config.to_dict())
    for key, text in assignments:
        _check_known(key)
        try:
            config.update_from_flattened_dict({key: _parse_value(key, text)})
        except TypeError:
            raise UserError(f"config.{key}={text} must be {RULES[key].valid}") from None
    return config.lock()


def _check_known(key: str) -> None:
    if key in RULES:
        return
    section = [k for k in RULES if k.startswith(key + ".")]
    close = section or difflib.get_close_matches(key, RULES, n=3, cutoff=0.5)
    close = close or [k for k in RULES if k.rpartition(".")[2] == key.rpartition(".")[2]]
    hint = f"did you mean {', '.join(close)}?" if close else "the keys are listed in configs/default.py"
    raise UserError(f"config has no key {key!r}; {hint}")


def _parse_value(key: str, text: str) -> Any:
    kind, valid, _ = RULES[key]
    if kind is str:
        return text
    try:
        if kind is tuple:
            value = ast.literal_eval(text)
            return tuple(value) if isinstance(value, list) else value
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        return kind(text)
    except (ValueError, SyntaxError, KeyError):
        raise UserError(f"config.{key}={text} must be {valid}") from None


def validate(config: ConfigDict) -> None:
    """Checks every key and the combinations that do not depend on data or devices.

    Raises:
      UserError: naming the first key at fault and its valid values.
    """
    flat = flatten(config)
    for key in flat:
        _check_known(key)
    for key, (kind, valid, test) in RULES.items():
        if key not in flat:
            raise UserError(f"config lacks the key {key!r} ({valid}); start from configs/default.py")
        value = flat[key]
        right_type = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if isinstance(value, bool) and kind is not bool:
            right_type = False
        if not right_type or not test(value):
            raise UserError(f"config.{key}={value!r} must be {valid}")
    if config.recipe.warmup_epochs > config.epochs:
        raise UserError(
            f"config.recipe.warmup_epochs={config.recipe.warmup_epochs} must be at most config.epochs={config.epochs}"
        )
    if config.data.resize < config.data.image_size:
        raise UserError(
            f"config.data.resize={config.data.resize} must be at least config.data.image_size={config.data.image_size}"
        )
    if config.run.training_only and config.run.evaluate:
        raise UserError("config.run.training_only and config.run.evaluate exclude each other; set one of them")


class Plan(NamedTuple):
    """The numbers that follow from a config, the training set and the devices."""

    num_devices: int
    accumulation: int  # forward passes per update
    device_batch: int  # images per device and update
    global_batch: int  # images per update
    steps_per_epoch: int
    total_steps: int
    peak_lr: float


def plan(config: ConfigDict, *, num_images: int, num_devices: int) -> Plan:
    """Derives batch, steps and learning rate; refuses combinations that cannot work.

    An epoch has floor(images / global batch) updates; the remainder differs from epoch to epoch.
    """
    forward_batch = config.batch_size * num_devices
    target = config.recipe.optimizer_batch_size or forward_batch
    if target % forward_batch:
        below = target // forward_batch * forward_batch
        options = f"{below} or {below + forward_batch}" if below else f"{forward_batch}"
        raise UserError(
            f"config.recipe.optimizer_batch_size={target} is not a multiple of batch_size {config.batch_size} x "
            f"{num_devices} device(s) = {forward_batch}; use {options}, or 0 for no accumulation"
        )
    if num_images < target:
        largest = num_images // num_devices
        if not largest:
            fix = f"use at most {num_images} device(s)"
        elif num_images >= forward_batch:
            fix = f"use --config.recipe.optimizer_batch_size={forward_batch}, or 0 for no accumulation"
        else:
            fix = f"use --config.batch_size={largest} or less"
        raise UserError(f"{num_images} training images are too few for one global batch of {target}; {fix}")
    steps_per_epoch = num_images // target
    scale = target / config.recipe.lr_batch_size if config.recipe.lr_batch_size else 1.0
    return Plan(
        num_devices=num_devices,
        accumulation=target // forward_batch,
        device_batch=target // num_devices,
        global_batch=target,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * config.epochs,
        peak_lr=config.recipe.lr * scale,
    )
