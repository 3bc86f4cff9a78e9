"""JSON that is read without trusting it, and written in plain ASCII."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rn50_jax.io.files import read_whole, write_whole

T = TypeVar("T")
BOM = b"\xef\xbb\xbf"  # a byte order mark, with which some programs begin UTF-8
_DEEPEST = 100  # levels of nesting that are read


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Returns JSON text in ASCII; numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def parse_json(data: bytes | str, shape: type[T], *, finite: bool = True) -> T:
    """Reads JSON of a given shape.

    Args:
      data: UTF-8 if bytes, with or without a byte order mark.
      shape: what pydantic understands: a `typing_extensions.TypedDict`, whose further keys are kept, `dict[str, Any]`.
      finite: refuse NaN and infinities, which are no JSON.

    Raises:
      ValueError: it is no JSON, not of this shape, nested more than 100 levels deep, or holds a number that is not
        finite or a whole number of more than 64 bits. The message is one line.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        constant = _refuse if finite else float
        value = json.loads(text, parse_int=_parse_int, parse_float=_parse_float, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if text.count("[") + text.count("{") > _DEEPEST and _is_deep(value):
        raise ValueError("nested too deeply")
    return check_shape(value, shape)


def check_shape(value: Any, shape: type[T]) -> T:
    """Returns the value, if it is of a shape, see `parse_json`.

    Raises:
      ValueError: it is not; the message names the first place.
    """
    from pydantic import ValidationError

    try:
        known: Any = shape  # in the cache
        checked: T = _adapter(known).validate_python(value, strict=True, extra="allow")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None
    return checked


@cache
def _adapter(shape: Any) -> Any:
    from pydantic import TypeAdapter  # 0.1 s to import

    return TypeAdapter(shape)


def _parse_int(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"a whole number of {len(text)} digits, more than 64 bits hold")
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for item in level:
            below.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        if not below:
            return False
        level = below
    return True


def read_json(path: Path, shape: type[T]) -> T:
    """Reads a JSON file, see `parse_json`.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not what it should be.
    """
    return parse_json(read_whole(path), shape)


def write_json(path: Path, value: Any, *, own: bool = False) -> None:
    """Writes or replaces an indented JSON file, see `to_json` and `files.written_whole`.

    Raises:
      OSError: it cannot be written; what was there before stays.
    """
    write_whole(path, to_json(value, indent=2) + "\n", own=own)


class Lines(NamedTuple):
    """What a file of JSON lines holds. good: those of the right shape. bad: the bytes of the others, in order."""

    good: list[Any]
    bad: list[bytes]


def read_json_lines(path: Path, shape: Any) -> Lines:
    """Reads a file of JSON lines; whatever is in it, the lines that are right are found.

    Args:
      shape: of a line, see `parse_line`.

    Raises:
      OSError: it cannot be read.
    """
    lines = read_whole(path).removeprefix(BOM).split(b"\n")
    good, bad = [], []
    for line in filter(None, map(bytes.strip, lines)):
        try:
            good.append(parse_line(line, shape))
        except ValueError:
            bad.append(line)
    return Lines(good, bad)


def parse_line(line: bytes, shape: Any) -> Any:
    """Reads a line as `parse_json` does; NaN and infinities, which other programs write, are null.

    Raises:
      ValueError: see `parse_json`.
    """
    return check_shape(_finite(parse_json(line, dict[str, Any], finite=False)), shape)
