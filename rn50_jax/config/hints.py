"""Guesses at what a command line was meant to say, as hints at the end of error messages."""

import argparse
import difflib
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from rn50_jax.config.renamed import explain
from rn50_jax.config.synonyms import find_absent, find_key, find_option, normalize
from rn50_jax.io.text import shell

_WEIGHTS = (".pth", ".pt", ".tar", ".safetensors", ".npz")
# Positional arguments, by what others give as an option: the folder of a run or a weight file, or data.
_POSITIONAL = {"run": ("runs", "source"), "data": ("dir", "folder", "images")}


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Returns the options of a command by name, such as "--workdir"."""
    return parser._option_string_actions


def for_key(key: str, keys: Collection[str]) -> str:
    """Says what to write instead of a config key that does not exist.

    Args:
      key: as it was given, such as "recipe.learning_rate".
      keys: those that exist.
    """
    if named := for_name(key, keys):
        return named
    if section := [known for known in keys if known.startswith(f"{key}.")]:
        return f"did you mean {', '.join(section)}?"
    if option := "--workdir" if normalize(key) == "workdir" else find_option(key, ("--workdir",)):
        return f"did you mean the option {option}?"
    close = difflib.get_close_matches(key, keys, n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else "--help_config lists the keys"


def for_name(name: str, keys: Collection[str]) -> str:
    """Says what an option of earlier versions or of others is here; "" if nothing is known by that name."""
    if absent := explain(name.replace("-", "_")) or find_absent(name):
        return absent
    found = find_key(name) or _same_name(name, keys)
    return f"did you mean {found}?" if found else ""


def for_unknown(word: str, words: Sequence[str], parser: argparse.ArgumentParser, keys: Collection[str] = ()) -> str:
    """Says what to write instead of an argument that a command does not have.

    Args:
      word: the argument. words: the whole command line.
      keys: config keys that the command takes as --config.KEY=VALUE.
    """
    if not word.startswith("-") and ("=" not in word or not keys):
        return _for_bare(word, words, parser) or _see_help(keys)
    given, equals, value = word.partition("=")
    given = given.lstrip("-").removeprefix("config.")
    options, name = options_of(parser), normalize(given)
    if by_itself := _by_itself(word, words, parser):
        return by_itself
    absent = find_absent(given)
    if absent and word.startswith("--config."):
        return absent
    key = given if given in keys else _same_name(given, keys) or find_key(given)
    same = (f"--{n}" for n in (name, normalize(key or name)) if f"--{n}" in options)
    if own := find_option(name, options) or next(same, None):
        return f"did you mean {own}?"
    if absent:
        return absent
    if key in keys:
        return f"did you mean --config.{key}={value if equals else 'VALUE'}?"
    if keys and (gone := explain(given.replace("-", "_"))):
        return gone
    if close := difflib.get_close_matches(f"--{name}", options, 1, cutoff=0.7):
        return f"did you mean {close[0]}?"
    close = difflib.get_close_matches(given, keys, 1, cutoff=0.7)
    return f"did you mean --config.{close[0]}={value if equals else 'VALUE'}?" if close else _see_help(keys)


def for_complaint(message: str, words: Sequence[str], parser: argparse.ArgumentParser) -> str | None:
    """Says what to write where argparse misses an argument or has one too many; None if nothing can be said.

    Args:
      message: argparse's. words: the whole command line.
    """
    kind, _, named = message.partition(": ")
    if kind == "unrecognized arguments":
        unknown_word = next((word for word in words if word and named.startswith(word)), None)
        return for_unknown(unknown_word, words, parser) if unknown_word else None
    if "required" not in message:
        return None
    options, is_value = options_of(parser), False
    for word in words:
        name, equals, _ = word.partition("=")
        hint = None
        if word.startswith("-") and word != "-":
            takes_none = name in options and options[name].nargs == 0
            is_value = not equals and not takes_none
            hint = _by_itself(word, words, parser) if name not in options else None
        elif is_value:
            is_value = False
        else:
            hint = _for_bare(word, words, parser)
        if hint:
            return hint
    if "--workdir" in message and "--weights" in message:
        return "say which model: --workdir RUN, the folder of a training run, or --weights FILE"
    return None


def _same_name(name: str, keys: Collection[str]) -> str | None:
    """The key of another section, or of none, with this name."""
    return next((key for key in keys if normalize(key) == normalize(name)), None)


def _see_help(keys: Collection[str]) -> str:
    return "see --help (config keys are given as --config.key=value)" if keys else "see --help"


def _by_itself(word: str, words: Sequence[str], parser: argparse.ArgumentParser) -> str | None:
    """Says that what was given with an option is to stand by itself, such as plot's RUN; None if it is not so."""
    given, equals, value = word.partition("=")
    name = normalize(given)
    if name in ("workdir", "weights") or find_option(name, ("--workdir",)):
        kind = "run"
    elif name == "dir" or find_key(name) == "data.dir" or given == "--config":
        kind = "data"
    else:
        return None
    wanted = next((action for action in parser._actions if action.dest in _POSITIONAL[kind]), None)
    if wanted is None or wanted.option_strings:
        return None
    if not equals:
        behind = words[words.index(word) + 1 :][:1]
        value = behind[0] if behind and not behind[0].startswith("-") and given != "--config" else ""
    shown = shell([value]) if value else str(wanted.metavar or wanted.dest.upper())
    return f"give it without an option: {parser.prog} {shown}"


def _for_bare(word: str, words: Sequence[str], parser: argparse.ArgumentParser) -> str | None:
    """The option that a word by itself was meant for, by what it names; None if that cannot be told."""
    options = options_of(parser)
    given = {other.partition("=")[0] for other in words}

    def meant(option: str) -> str | None:
        free = option in options and option not in given
        return f"did you mean {option} {shell([word])}?" if free else None

    # Not by Path's methods, which raise for what no file can be named.
    path = Path(word)
    if os.path.lexists(path / "config.json") or os.path.lexists(path / "checkpoints"):
        return meant("--workdir")
    if path.suffix in _WEIGHTS:
        return meant("--weights") or meant("--pretrained_weights")
    has_words = any(not action.option_strings for action in parser._actions)
    if os.path.isdir(path):  # noqa: PTH112
        takes_data = not has_words and not given & {"--config.data.dir"}
        return f"did you mean --config.data.dir={shell([word])}?" if takes_data else None
    if path.suffix in (".py", ".json") or ".py:" in word:
        return meant("--config")
    if has_words:
        return None
    return (meant("--config") if "/" not in word else None) or meant("--workdir")
