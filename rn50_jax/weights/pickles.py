"""What a pickle would make, found without making it: containers in containers that no reader survives."""

import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

_DEEPEST = 100  # containers in each other; Python's hash of a tuple in a hundred thousand others ends the process
_MOST = 10**8  # objects, each counted wherever it is referred to: as many are hashed
_STEPS = 2_000_000  # of all pickles in a file
_LEGACY = 5  # pickles that PyTorch writes one behind the other before the values of the tensors
_MARK = (-1, -1)
_GROWS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")

_Node = tuple[int, int]  # depth and objects


def check_pickles(file: BinaryIO) -> None:
    """Refuses a file of PyTorch whose objects are nested beyond reason; leaves it at its start.

    Raises:
      ValueError: they are, or take too long to look through.
    """
    steps = 0
    for pickle in _pickles(file):
        with suppress(IndexError, KeyError):  # no pickle that any reader takes
            for _ in _walk(pickle):
                steps += 1
                if steps > _STEPS:
                    raise ValueError(f"it holds more than {_STEPS:,} steps of a pickle")
    file.seek(0)


def _pickles(file: BinaryIO) -> Iterator[BinaryIO]:
    file.seek(0)
    if file.read(4) == b"PK\x03\x04":  # as PyTorch tells its two forms apart
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".pkl"):
                    with archive.open(info) as member:
                        yield member  # type: ignore[misc]
        return
    file.seek(0)
    for _ in range(_LEGACY):
        yield file


def _walk(pickle: BinaryIO) -> Iterator[None]:
    """Follows a pickle's stack, step by step, with the depths and sizes of what would be on it."""
    stack: list[_Node] = []
    memo: dict[int, _Node] = {}
    operations = pickletools.genops(pickle)
    while True:
        code: pickletools.OpcodeInfo
        argument: Any
        try:
            code, argument, _ = next(operations)
        except Exception:  # its end, or what is wrong with it and told by its reader
            return
        yield
        if code.name == "MARK":
            stack.append(_MARK)
        elif code.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif code.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(argument)] = stack[-1]
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        else:
            _apply(code, stack)


def _apply(code: pickletools.OpcodeInfo, stack: list[_Node]) -> None:
    taken: list[_Node] = []
    wanted = [kind.name for kind in code.stack_before]
    if "mark" in wanted:
        while (node := stack.pop()) != _MARK:
            taken.append(node)
        wanted = wanted[: wanted.index("mark")]
    taken += [stack.pop() for _ in wanted]
    depth, size = max((d for d, _ in taken), default=0), sum(s for _, s in taken)
    if code.name in _GROWS and wanted:
        own = taken[-1][0]
        depth = max(own, 1 + max((d for d, _ in taken[:-1]), default=0)) - 1
    if depth >= _DEEPEST or size > _MOST:
        raise ValueError("its objects are nested beyond reason")
    stack += [(depth + 1, size + 1)] * len(code.stack_after)
