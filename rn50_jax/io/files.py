"""Files that are written whole or not at all, and JSON that is read without trusting it."""

import difflib
import errno
import fcntl
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

T = TypeVar("T")

UNFINISHED = ".unfinished"
BOM = b"\xef\xbb\xbf"  # a byte order mark, with which some programs begin UTF-8
_DEEPEST = 100  # levels of nesting that are read
LARGEST = 1 << 30  # bytes of a file of JSON, of which far fewer are of any use


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a plain file for reading.

    Raises:
      OSError: it cannot be opened, or is a folder, pipe or device, whose reading might never end.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(mode) else "it is no plain file", os.fspath(path))
    return os.fdopen(file, "rb")


def read_whole(path: Path) -> bytes:
    """Reads a plain file of at most `LARGEST` bytes.

    Raises:
      OSError: it cannot be read, or is larger: there may be nothing in it, and memory for it nowhere.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise OSError(errno.EFBIG, f"it has more than {LARGEST >> 20} MiB", str(path))
        return file.read(LARGEST + 1)


@contextmanager
def written_whole(path: Path, *, own: bool = False) -> Iterator[Path]:
    """Gives a name to write to; what was written there becomes `path` at the end, and vanishes if something fails.

    Of a link, what it points to is replaced; a pipe or device is written to as it is.

    Args:
      own: the file is one that a run keeps in its folder, which anybody may have made: a link, pipe or device of that
        name is replaced itself.

    Raises:
      OSError: the file cannot be put on the disk; the error names it.
    """
    name = str(path)
    path = path if own else Path(os.path.realpath(path))
    special = path.is_dir() if own else path.exists() and not path.is_file()
    unfinished = path if special else path.with_name(path.name + UNFINISHED)
    try:
        if not special:
            _make_way(unfinished)
        yield unfinished
        if not special:
            with unfinished.open("rb") as written:
                os.fsync(written.fileno())
            unfinished.replace(path)
    except BaseException as error:
        if not special:
            with suppress(OSError):
                unfinished.unlink()
        if isinstance(error, OSError) and _names_only(error, unfinished):
            error.filename = name
        raise


def no_such_run(path: Path) -> str:
    """Says that the work folder of a run does not exist, and which may be meant: of the most similar name beside it."""
    meant = _similar(path)
    hint = f"did you mean {meant}?" if meant else "name the work folder of a run, such as runs/quickstart"
    return f"{path} does not exist; {hint}"


def _similar(path: Path) -> Path | None:
    parent = path.parent
    if not os.path.isdir(parent):  # noqa: PTH112, names that no file can have raise nothing here
        if parent == path or not (there := _similar(parent)):
            return None
        parent, path = there, there / path.name
    if os.path.isdir(path):  # noqa: PTH112
        return path
    try:
        with os.scandir(parent) as entries:
            folders = [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return None
    found = difflib.get_close_matches(path.name, folders, 1)
    return parent / found[0] if found else None


def free_name(path: Path) -> Path:
    """Returns the path, with a number behind it if something is there."""
    target, number = path, 1
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}-{number}")
    return target


def _make_way(path: Path) -> None:
    """Removes a link, pipe or device, which writing would follow or wait for."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            path.unlink()


def _names_only(error: OSError, unfinished: Path) -> bool:
    # A write that fails names nothing; what is in the way of the other name, a folder, is better told by that.
    return error.filename is None or (str(error.filename) == str(unfinished) and not unfinished.exists())


def write_whole(path: Path, content: str | bytes, *, own: bool = False) -> None:
    """Writes or replaces a file, see `written_whole`; text as UTF-8.

    Raises:
      OSError: it cannot be written; what was there before stays.
    """
    data = content.encode() if isinstance(content, str) else content
    with written_whole(path, own=own) as unfinished:
        unfinished.write_bytes(data)


def lock(descriptor: int) -> bool:
    """Locks an open file or folder for this process alone; the system lets go of it when the process ends.

    Returns:
      Whether it is locked now; False on a file system that cannot do that.

    Raises:
      BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError(*error.args) from None
        return False
    return True


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
