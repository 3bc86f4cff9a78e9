"""What a weight file says besides its tensors: inside it, or in `FILE.json` beside it where it has no room."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from rn50_jax.config.schema import options
from rn50_jax.errors import UserError
from rn50_jax.io.files import open_regular, telling_of_writes
from rn50_jax.io.json_files import check_shape, parse_json, read_json, write_json
from rn50_jax.io.text import first_line

Facts = dict[str, Any]

# How images are prepared, by the option's name in `data`; background is a list, mean and std are on the 0-255 scale.
PREPARATION = tuple(key.removeprefix("data.") for key, option in options().items() if option.prepares)
_LARGEST = 10_000  # pixels of a side that images are made to
_FILE = "file"  # the entry of FILE.json that tells which file it was written for


class _Facts(TypedDict, total=False):
    """What is relied upon of a file's facts; any may be missing, and others are kept."""

    class_names: list[str]
    image_size: int
    resize: int
    transform: str
    mean: list[float]
    std: list[float]
    exif_rotation: bool
    background: list[int]
    val_share: float
    val_images: list[str]
    seed: int
    step: int


class _File(TypedDict):
    bytes: int
    sha256: str


def parse_facts(text: str, classes: int | None, source: Path) -> Facts:
    """Reads what a file says about itself, if that can be so.

    Args:
      text: JSON.
      classes: of the file's classifier; None if it has none.
      source: the file that says so, for messages.

    Raises:
      UserError: it is no JSON, or something in it cannot be right.
    """
    try:
        return _check(parse_json(text, dict[str, Any]), classes)
    except ValueError as error:
        raise UserError(f"weight file {source}: what it says about itself cannot be right: {error}") from None


def _check(facts: Facts, classes: int | None) -> Facts:
    checked = check_shape(facts, _Facts)
    for key, value in config_values(facts).items():
        valid = options()[key].valid
        if not options()[key].holds(value) or (key in ("data.image_size", "data.resize") and value > _LARGEST):
            name = key.removeprefix("data.")
            raise ValueError(f"{name}={facts[name]!r:.80} must be {valid}{', times 255' * (name in ('mean', 'std'))}")
    if not 0 <= checked.get("step", 0) < 2**63:
        raise ValueError(f"step={checked['step']}")
    names = checked.get("class_names", [])
    if names and classes and len(names) != classes:
        raise ValueError(f"it names {len(names)} classes, and its classifier has {classes}")
    return facts


def config_values(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config keys that a file's facts set, with their values: image preparation, and the split of the data.

    A split, `data.val_share` and the `seed` that drew it, is set where there was one.
    """
    values = {f"data.{key}": facts[key] for key in PREPARATION if key in facts}
    for key in ("data.mean", "data.std"):
        if key in values:
            values[key] = tuple(float(f"{value / 255:.12g}") for value in values[key])
    if "data.background" in values:
        values["data.background"] = tuple(values["data.background"])
    if facts.get("val_share"):
        values |= {"data.val_share": facts["val_share"], "seed": facts.get("seed", 0)}
    return values


def to_pixels(values: tuple[float, ...]) -> list[float]:
    """Returns `data.mean` or `data.std` on the 0-255 scale, as files have it; `config_values` gives back the same."""
    return [float(f"{255 * value:.12g}") for value in values]


def beside(path: Path) -> Path:
    """Returns where the facts about a file lie: `FILE.json`."""
    return path.with_name(f"{path.name}.json")


def read_beside(path: Path, classes: int | None = None) -> Facts:
    """Reads the facts beside a file; {} if there are none, or a JSON file of another program.

    Args:
      classes: of the file's classifier, if it is known.

    Raises:
      UserError: the JSON file is damaged, or was written for another file than the one that is there now.
    """
    place = beside(path)
    if not os.path.lexists(place):
        return {}
    try:
        facts: Any = read_json(place, Any)
        if not _is_ours(facts):
            return {}
        file = facts.pop(_FILE, None)
        recorded = None if file is None else check_shape(file, _File)
        _check(facts, classes)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{place} says what there is to know about {path.name}, and cannot be used: {first_line(error)}; "
            f"write both again with rn50_jax.convert, or remove {place.name} to use {path.name} without it"
        ) from None
    if recorded and (recorded["bytes"] != path.stat().st_size or recorded != _identify(path)):
        raise UserError(
            f"{place} was written for another {path.name} than this one: remove it, or, if the rest of it still holds, "
            f'its entry "{_FILE}"'
        )
    return dict(facts)


def has_facts(path: Path) -> bool:
    """Returns whether the JSON file beside a weight file is one of this program, for whatever weights."""
    try:
        return _is_ours(read_json(beside(path), Any))
    except (OSError, ValueError):
        return False


def refuse_foreign(path: Path) -> None:
    """Refuses to write a file beside which another program's JSON would be written over.

    Raises:
      UserError: it is there.
    """
    if os.path.lexists(beside(path)) and not has_facts(path):
        raise UserError(
            f"cannot write {path}: what there is to know about it goes to {beside(path)}, which is another program's "
            "or damaged; move that away, or choose another name"
        )


def write_beside(path: Path, facts: Facts) -> None:
    """Writes the facts about a file beside it, with its size and hash.

    Raises:
      UserError: they cannot be written.
    """
    with telling_of_writes():
        write_json(beside(path), facts | {_FILE: _identify(path)})


def _is_ours(facts: Any) -> bool:
    if not isinstance(facts, dict):
        return False
    file, versions = facts.get(_FILE), facts.get("versions")  # the former may have been removed, see `read_beside`
    return (isinstance(file, dict) and "sha256" in file) or (isinstance(versions, dict) and "rn50_jax" in versions)


def _identify(path: Path) -> _File:
    with open_regular(path) as file:
        digest = hashlib.sha256()
        while part := file.read(1 << 20):
            digest.update(part)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}
