"""Reads configs: recipes, the `config.json` of earlier runs, and what a command line changes in them."""

import argparse
import ast
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from pydantic import ValidationError

from rn50_jax.config import hints, renamed
from rn50_jax.config.describe import help_text
from rn50_jax.config.fields import is_sound
from rn50_jax.config.recipes import FOLDER, find_config
from rn50_jax.config.schema import Config, exact_reference, flatten, options, sections
from rn50_jax.errors import UserError
from rn50_jax.io.json_files import read_json
from rn50_jax.io.messages import warn
from rn50_jax.io.terminal import fit
from rn50_jax.io.text import first_line, shell

Overrides = Sequence[tuple[str, str]]


class Saved(NamedTuple):
    """A config that a run of this version or an earlier one has written.

    lacking: options that the run did not know, which have their defaults. moved: those that it gave under an earlier
    name, and gone: those that it gave and that no longer exist; each a sentence.
    """

    config: Config
    lacking: tuple[str, ...]
    moved: tuple[str, ...]
    gone: tuple[str, ...]


def parse_args(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, Overrides]:
    """Splits a command line into the parser's own arguments and the `--config.key=value` overrides.

    Adds `--help_config [SECTION]`, which also takes a key, to the parser.

    Returns:
      The parsed arguments and a list of (key, text) pairs.
    """
    parser.add_argument(
        "--help_config",
        nargs="?",
        const="",
        metavar="SECTION",
        action=_HelpConfig,
        help="list the config's options: all, a section's, or one by its key",
    )
    args, rest = parser.parse_known_args(argv)
    overrides = []
    words = iter(rest)
    for word in words:
        key, equals, text = word.removeprefix("--config.").partition("=")
        if not word.startswith("--config.") or f"--{key}" in hints.options_of(parser):
            raise UserError(f"unknown argument {word!r}; {hints.for_unknown(word, argv, parser, options())}")
        _check_known(key)
        if not equals:
            text = next(words, "")
            if not text or text.startswith("--"):
                raise UserError(f"{word} has no value; write {word}=VALUE")
        overrides.append((key, text))
    return args, overrides


class _HelpConfig(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        name = "" if values == "general" else values.removesuffix(".")
        if name and name not in sections() and name not in options():
            hint = hints.for_name(name, options()) or f"its sections are {', '.join(sections())}"
            raise UserError(f"config has no section or option {name!r}; {hint}")
        sys.stdout.write(fit(help_text(name), sys.stdout))
        parser.exit()


def load(spec: str, overrides: Overrides = (), *, to_run: bool = True) -> tuple[Config, str]:
    """Reads `FILE.py[:variant]`, a ready config by its name alone, or the `config.json` of an earlier run.

    A `.py` file is executed; a `.json` file is only read. A file goes before a ready config of that name.

    Args:
      to_run: whether the config's network is going to be made, see `refuse_unnamed_network`.

    Returns:
      The config with the overrides, checked, and its name: the file's stem, with `-variant` if one was given.

    Raises:
      UserError: naming the first option at fault and its valid values.
    """
    name, _, variant = spec.partition(":")
    path = find_config(name)
    if path.suffix == ".json":
        config = override(read_config(path, source=name), overrides)
        if to_run:
            refuse_unnamed_network(config, overrides, name)
        return config, path.stem
    if path.suffix != ".py":
        raise UserError(f"config file {name!r} must end in .py (a recipe) or .json (the config of an earlier run)")
    recipe = _execute(path, variant)
    if not isinstance(recipe, ml_collections.ConfigDict | Config):
        raise UserError(f"{name}: get_config() must return an ml_collections ConfigDict, not {type(recipe).__name__}")
    flat = {key: _tuples(value) for key, value in flatten(recipe.to_dict()).items()}
    return _build(flat, overrides), path.stem + (f"-{variant}" if variant else "")


def refuse_unnamed_network(config: Config, overrides: Overrides, source: str) -> None:
    """Refuses to run a network's code that a saved config names, which may be a stranger's, and the command line not.

    Raises:
      UserError: it is so.
    """
    if config.model.is_own and "model.arch" not in dict(overrides):
        written = shell([f"--config.model.arch={config.model.arch}"])
        raise UserError(f"the network of {source} is code of a file; if you trust that file, name it: {written}")


def defaults() -> ml_collections.ConfigDict:
    """Returns every option at its default, for recipes to start from."""
    return ml_collections.ConfigDict(Config().to_dict()).lock()


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
        told = first_line(error, kind=True)
        names = re.findall(r"['\"](\w+)['\"]", told) if isinstance(error, KeyError | AttributeError) else []
        hint = next((f"; {name}: {text}" for name in names if (text := _became(name))), "")
        raise UserError(f"config {path} cannot be used: {told}{hint}") from error
    finally:
        sys.path[:] = before


def _became(name: str) -> str:
    """What became of an earlier option or section, by the name alone."""
    keys = (key for key in (*renamed.MOVED, *renamed.REMOVED) if key.rpartition(".")[2] == name)
    return next(filter(None, map(renamed.explain, (*keys, name))), "")


def read_config(path: Path, *, source: str = "") -> Config:
    """Reads the `config.json` of a run, and notes what reads otherwise now if an earlier version wrote it.

    Raises:
      UserError: it cannot be read, or is no config.
    """
    source = source or str(path)
    try:
        tree = read_json(path, dict[str, Any])
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{source} is not a config: {error}") from None
    saved = from_saved(tree, source=source)
    if notes := saved.gone + saved.moved:
        warn(f"{source} is of an earlier version: {'; '.join(notes)}")
    if saved.lacking:
        more = f" and {len(saved.lacking) - 8} more" if len(saved.lacking) > 8 else ""
        warn(f"{source} does not say {', '.join(saved.lacking[:8])}{more}: the defaults are used")
    return saved.config


def from_saved(tree: Any, *, source: str) -> Saved:
    """Returns the config that a checkpoint or JSON file holds as nested dicts, in which tuples have become lists.

    Options that have another name now are taken over, and those that are gone are left out.

    Raises:
      UserError: it is none, or has an option that this version does not have.
    """
    if not isinstance(tree, dict):
        raise UserError(f"{source} is not a config: it is no object with keys")
    flat = {key: _tuples(value) for key, value in flatten(tree).items()}
    gone, moved = [], []
    for key in [key for key in flat if key in renamed.MOVED]:
        value, new = flat.pop(key), renamed.MOVED[key]
        flat[new] = value
        if value != options()[new].default:
            moved.append(f"config.{key} is config.{new} now")
    for key in [key for key in flat if key in renamed.REMOVED]:
        if (value := flat.pop(key)) != renamed.REMOVED[key].usual:
            gone.append(f"config.{key}={_cut(value)} is gone: {renamed.REMOVED[key].now}")
            if (key, value) == ("data.on_bad_file", "error"):
                flat["data.max_bad_images"] = 0
    lacking = tuple(key for key in options() if key not in flat)
    try:
        return Saved(_build(flat), lacking, tuple(moved), tuple(gone))
    except UserError as error:
        raise UserError(f"{source} is not a config of this version: {error}") from None


def override(config: Config, assignments: Iterable[tuple[str, str]]) -> Config:
    """Returns the config with the `(key, text)` assignments made, each read as its option's type.

    If `recipe.exact_reference` is then True, the options that it stands for are set too, unless they are assigned.

    Raises:
      UserError: naming the option at fault and its valid values.
    """
    assignments = list(assignments)
    return _build(config.flat(), assignments) if assignments else config


def _build(flat: dict[str, Any], assignments: Iterable[tuple[str, str]] = ()) -> Config:
    assigned: dict[str, Any] = {}
    for key, text in assignments:
        _check_known(key)
        assigned[key] = _parse_value(key, text)
    if (flat | assigned).get("recipe.exact_reference") is True:
        assigned = exact_reference() | assigned
    tree: dict[str, Any] = {}
    for key, value in (flat | assigned).items():
        _check_known(key)
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        place = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"]
        key = next(key for key in (".".join(map(str, place[:2])), str(place[0])) if key in options())
        value = (flat | assigned)[key]
        shown = repr(value) if is_sound(value) else value
        raise UserError(f"config.{key}={_cut(shown)} must be {options()[key].valid}") from None


def _check_known(key: str) -> None:
    if key not in options():
        raise UserError(f"config has no key {key!r}; {hints.for_key(key, options())}")


def _parse_value(key: str, text: str) -> Any:
    option = options()[key]
    if option.kind is str:
        return text
    try:
        if option.kind is tuple:
            return _tuples(ast.literal_eval(text))
        if option.kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        return option.kind(text)
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError):
        raise UserError(f"config.{key}={_cut(text)} must be {option.valid}") from None


def _cut(value: Any) -> str:
    """A value as it was given, its beginning if it is long."""
    try:
        text = str(value)
    except ValueError:  # an integer of more than 4,300 digits
        return "a number of thousands of digits"
    except RecursionError:
        return "a list of thousands of lists"
    return text if len(text) <= 100 else f"{text[:97]}..."


def _tuples(value: Any, depth: int = 5) -> Any:
    """With all lists made tuples, down to a depth that no option has: a list may hold itself."""
    return tuple(_tuples(item, depth - 1) for item in value) if depth and isinstance(value, list | tuple) else value
