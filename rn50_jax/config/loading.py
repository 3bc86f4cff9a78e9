"""Reads, overrides and checks a config."""

import argparse
import ast
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rn50_jax.config import hints
from rn50_jax.config.recipes import FOLDER, find_config
from rn50_jax.config.schema import EXACT_REFERENCE, RULES
from rn50_jax.config.tree import _tuples, flatten, from_tree
from rn50_jax.errors import UserError
from rn50_jax.io.json_files import read_json
from rn50_jax.io.text import first_line, shell
from rn50_jax.models.parts import part_names
from rn50_jax.models.resnet import FAMILY

# The config that weight files are used with.
DEFAULT = FOLDER / "default.py"

_EXCLUDING = (
    ("run.training_only", "run.evaluate"),
    ("run.training_only", "run.target_top1"),
    ("run.resume", "model.pretrained_weights"),
    ("run.resume", "tune.new_head"),
)


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
        key, equals, text = word.removeprefix("--config.").partition("=")
        if not word.startswith("--config.") or f"--{key}" in hints.options_of(parser):
            raise UserError(f"unknown argument {word!r}; {hints.for_unknown(word, argv, parser, RULES)}")
        _check_known(key)
        if not equals:
            text = next(words, "")
            if not text or text.startswith("--"):
                raise UserError(f"{word} has no value; write {word}=VALUE")
        overrides.append((key, text))
    return args, overrides


def load(spec: str) -> tuple[ConfigDict, str]:
    """Reads `FILE.py[:variant]`, a ready config by its name alone, or the `config.json` of an earlier run.

    A `.py` file is executed; a `.json` file is only read. A file goes before a ready config of that name.

    Returns:
      The config and its name: the file's stem, with `-variant` if one was given.
    """
    name, _, variant = spec.partition(":")
    path = find_config(name)
    if path.suffix == ".json":
        try:
            tree = read_json(path, dict[str, Any])
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{name} is not a config: {error}") from None
        return from_tree(tree, source=name), path.stem
    if path.suffix != ".py":
        raise UserError(f"config file {name!r} must end in .py (a recipe) or .json (the config of an earlier run)")
    config = _execute(path, variant)
    if not isinstance(config, ConfigDict):
        raise UserError(f"{name}: get_config() must return an ml_collections ConfigDict, not {type(config).__name__}")
    return config, path.stem + (f"-{variant}" if variant else "")


def _execute(path: Path, variant: str) -> Any:
    # Configs import each other as `from configs import default`, wherever the command is run from and they lie.
    before = list(sys.path)
    sys.path.insert(0, str(path.resolve().parent.parent))
    sys.path.append(str(FOLDER.parent))
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
        raise UserError(f"config {path} cannot be used: {first_line(error, kind=True)}") from error
    finally:
        sys.path[:] = before


def override(config: ConfigDict, assignments: Iterable[tuple[str, str]]) -> ConfigDict:
    """Returns a copy of the config with the `(key, text)` assignments made, each read as its key's type.

    If `recipe.exact_reference` is then True, the keys that it stands for are set too, unless they are assigned.
    """
    config = ConfigDict(config.to_dict())
    assigned: dict[str, Any] = {}
    for key, text in assignments:
        _check_known(key)
        assigned[key] = _parse_value(key, text)
    preset = assigned.get("recipe.exact_reference", flatten(config).get("recipe.exact_reference"))
    for key, value in ((EXACT_REFERENCE if preset is True else {}) | assigned).items():
        try:
            config.update_from_flattened_dict({key: value})
        except TypeError:
            raise UserError(f"config.{key}={_cut(value)} must be {RULES[key].valid}") from None
        except KeyError:
            raise UserError(
                f"config lacks the section {key.partition('.')[0]!r}, of which config.{key} is part; start from "
                "configs/default.py"
            ) from None
    return config.lock()


def _check_known(key: str) -> None:
    if key not in RULES:
        raise UserError(f"config has no key {key!r}; {hints.for_key(key, RULES)}")


def _parse_value(key: str, text: str) -> Any:
    kind, valid, _ = RULES[key]
    if kind is str:
        return text
    try:
        if kind is tuple:
            return _tuples(ast.literal_eval(text))
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        return kind(text)
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError):
        raise UserError(f"config.{key}={_cut(text)} must be {valid}") from None


def _cut(value: Any) -> str:
    """A value as it was given, its beginning if it is long."""
    try:
        text = str(value)
    except ValueError:  # an integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:97]}..."


def _is_sound(value: Any, depth: int = 3) -> bool:
    """Whether nothing in a value is more than computers hold: integers of 64 bits, texts that the system takes."""
    if isinstance(value, str):
        try:
            return b"\0" not in os.fsencode(value)
        except UnicodeEncodeError:
            return False
    if isinstance(value, tuple | list):
        return depth > 0 and all(_is_sound(item, depth - 1) for item in value)
    return not isinstance(value, int) or -(2**63) <= value < 2**63


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
        kinds = (int, float) if kind is float else kind
        right_type = isinstance(value, kinds) and isinstance(value, bool) == (kind is bool)
        if not right_type or not _is_sound(value) or not test(value):
            shown = repr(value) if _is_sound(value) else value
            raise UserError(f"config.{key}={_cut(shown)} must be {valid}")
    if 0 < config.data.resize < config.data.image_size:
        raise UserError(
            f"config.data.resize={config.data.resize} must be at least config.data.image_size={config.data.image_size}"
            ", or 0: in proportion to it"
        )
    _validate_model(config)
    _validate_tuning(config)
    if config.recipe.bce_threshold and config.recipe.loss != "bce":
        raise UserError(f"config.recipe.bce_threshold is of no use with config.recipe.loss={config.recipe.loss!r}")
    for key, value in EXACT_REFERENCE.items():
        if config.recipe.exact_reference and flat[key] != value:
            raise UserError(
                f"config.recipe.exact_reference=True stands for config.{key}={value!r}, which is {flat[key]!r}; "
                "change one of them"
            )
    if config.report.dle_json and config.report.file == os.path.normpath(config.report.dle_json):
        raise UserError("config.report.file and config.report.dle_json name the same file; give them different names")
    for key, other in _EXCLUDING:
        if flat[key] and flat[other]:
            raise UserError(f"config.{key} and config.{other} exclude each other; set one of them")
    if config.run.resume and config.recipe.optimizer != "sgd":
        raise UserError(
            f"config.run.resume takes the state of SGD, and config.recipe.optimizer={config.recipe.optimizer!r} has "
            f"another; start from the weights alone with {shell(['--pretrained_weights', config.run.resume])}"
        )


def _validate_model(config: ConfigDict) -> None:
    variant = FAMILY[config.model.arch]
    stages = config.model.stages or variant.stages
    widths = config.model.widths or tuple(config.model.width * 2**stage for stage in range(len(stages)))
    if len(widths) != len(stages):
        raise UserError(
            f"config.model.widths={widths} has {len(widths)} stages, but config.model.stages={tuple(stages)}; "
            "give one width per stage"
        )
    for width in widths:
        if width * variant.inner % variant.groups:
            raise UserError(
                f"config.model.arch={config.model.arch!r} has {variant.groups} groups, so the width of a stage must be "
                f"a multiple of {variant.groups // variant.inner}, and config.model.width or widths makes it {width}"
            )


def _validate_tuning(config: ConfigDict) -> None:
    parts = part_names(len(config.model.stages or FAMILY[config.model.arch].stages))
    frozen, scaled = config.tune.freeze, [part for part, _ in config.tune.lr_scales]
    for key, names in (("freeze", frozen), ("lr_scales", scaled)):
        for name in names:
            if name not in parts:
                raise UserError(f"config.tune.{key} names {name!r}; the parts of the model are {', '.join(parts)}")
        if len(set(names)) < len(names):
            raise UserError(f"config.tune.{key}={config.tune[key]} names a part twice")
    if len(frozen) == len(parts):
        raise UserError(f"config.tune.freeze={frozen} leaves nothing to train; leave a part out")
    for name in set(frozen) & set(scaled):
        raise UserError(f"config.tune.lr_scales has a rate for {name!r}, which config.tune.freeze holds; drop one")
