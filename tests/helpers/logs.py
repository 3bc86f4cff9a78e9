"""Logs of runs, read by their own tools or by hand."""

import json
import resource
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rn50_jax.loggers.base import Record


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does: no file grows beyond so many bytes.

    Nor is bytecode written meanwhile: before 3.13.2, Python keeps half a .pyc (gh-126606), over which every later
    process stumbles. Processes of their own get PYTHONDONTWRITEBYTECODE for the same reason.
    """
    before, writes = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = writes


def wandb_records(path: Path) -> Iterator[object]:
    """The records of a .wandb file: a log of LevelDB behind 7 bytes of head.

    In blocks of 32 kB: pieces of records, each behind its checksum, length and kind (1 a whole record, 2 its first,
    3 another, 4 its last), and less than the 7 bytes of these at the end of a block.
    """
    from wandb.proto import wandb_internal_pb2

    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            found = wandb_internal_pb2.Record()
            found.ParseFromString(record)
            record = b""
            yield found


def read_dle(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines()
    assert all(line.startswith("DLLL {") for line in lines)
    return [json.loads(line.removeprefix("DLLL ")) for line in lines]


def logged(lines: list[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    """The LOG lines whose step has that many numbers."""
    return [line for line in lines if isinstance(line.get("step"), list) and len(line["step"]) == length]


def record(step: int, kind: str = "train", **metrics: float) -> Record:
    named = {name.replace("_", ".", 1): value for name, value in metrics.items()}
    return Record(kind, 1000.0 + step, step, step // 10, step / 10, named)
