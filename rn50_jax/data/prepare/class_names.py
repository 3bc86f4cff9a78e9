"""Class names that a user gives in a file, or by the name of a data set."""

from pathlib import Path
from typing import Any

from rn50_jax.data.formats.imagenet_names import likely_names
from rn50_jax.errors import UserError
from rn50_jax.io.files import read_whole
from rn50_jax.io.json_files import parse_json

# In the order of their labels, from 0 on.
FASHION_MNIST = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")


def read_class_names(source: str) -> list[str]:
    """Reads names: a line each of text, or of JSON a list, {"name": label} or {"label": "name" or ["name", ...]}.

    "imagenet" and "fashion-mnist" stand for the names of these.

    Raises:
      UserError: it cannot be read, or two classes have one name or label.
    """
    if source == "imagenet":
        return list(likely_names(1000))
    if source == "fashion-mnist":
        return list(FASHION_MNIST)
    try:
        data = read_whole(Path(source))
        is_json = source.endswith(".json")
        found: Any = parse_json(data, object) if is_json else data.decode("utf-8-sig").rstrip().splitlines()
        if isinstance(found, dict):
            pairs = found.items() if all(key.isdecimal() for key in found) else ((v, k) for k, v in found.items())
            by_label = {int(label): name if isinstance(name, str) else name[0] for label, name in pairs}
            found = [by_label[label] for label in range(len(found))]
        names = [str(name).strip() for name in found]
    except OSError as error:
        raise UserError(f"--class_names {source}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"--class_names {source} is no list of names, nor of names with labels from 0 on") from error
    if not names or "" in names or len(set(names)) < len(names):
        raise UserError(f"--class_names {source} has none, an empty one or one twice")
    return names
