"""A config as a tree of plain values, and back."""

from typing import Any

from ml_collections import ConfigDict

from rn50_jax.errors import UserError


def from_tree(tree: Any, *, source: str = "what is stored") -> ConfigDict:
    """Returns the config that a checkpoint or JSON file holds as nested dicts, in which tuples have become lists.

    Raises:
      UserError: a key is none that a config can have; the message begins with `source`.
    """
    if not isinstance(tree, dict):
        raise UserError(f"{source} is not a config: it is no object with keys")
    tree = {
        key: {name: _tuples(v) for name, v in x.items()} if isinstance(x, dict) else _tuples(x)
        for key, x in tree.items()
    }
    try:
        return ConfigDict(tree).lock()
    except (AttributeError, TypeError, ValueError) as error:  # a key with a dot, or like __class__
        raise UserError(f"{source} is not a config: {error}") from None


def _tuples(value: Any) -> Any:
    """With all lists made tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Returns the config as {"section.key": value}, in its own order."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{k}": v for k, v in value.items()}
        else:
            flat[key] = value
    return flat
