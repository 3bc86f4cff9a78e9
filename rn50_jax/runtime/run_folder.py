"""The work folder and the files that describe a run."""

import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax

from rn50_jax.config.schema import Config
from rn50_jax.errors import UserError
from rn50_jax.io.files import check_writable, telling_of_writes
from rn50_jax.io.json_files import write_json
from rn50_jax.io.text import in_utf8
from rn50_jax.runtime.machine import describe_machine


def describe_devices(devices: Sequence[jax.Device]) -> str:
    """Returns how many of which, for example "8 x NVIDIA H100 80GB HBM3" or "1 x CPU"; kinds that differ one by one."""
    kinds = Counter("CPU" if device.platform == "cpu" else device.device_kind for device in devices)
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items())


# What orbax and tensorstore take for a path of a network, or for another folder.
_MISREAD = re.compile(r"^/(gs|s3|az|hf)/|gs:/|\.__lock/|\\")


def check_path(workdir: Path) -> None:
    """Refuses a work folder in whose path the libraries that write checkpoints would go wrong.

    Raises:
      UserError: naming what is in the path.
    """
    path = f"{workdir.resolve()}/"
    found = _MISREAD.search(path)
    if in_utf8(path) != path:
        problem = "has bytes that are not UTF-8"
    elif found:
        problem = f"has {found[0]!r}" if found[0] != "\\" else "has a backslash"
    else:
        return
    raise UserError(f"{workdir.resolve()} cannot hold checkpoints: its path {problem}; choose another --workdir")


def make_workdir(workdir: Path) -> None:
    """Creates the work folder.

    Raises:
      UserError: it cannot be created or written to, or see `check_path`.
    """
    check_path(workdir)
    try:
        check_writable(workdir)
    except OSError as error:
        reason = "it is a file" if os.path.isfile(workdir) else error.strerror  # noqa: PTH113, names may be too long
        raise UserError(f"cannot write to the work folder {workdir}: {reason}; choose another --workdir") from error


def write_run_files(workdir: Path, config: Config, devices: Sequence[jax.Device], argv: Sequence[str]) -> None:
    """Writes `config.json`, resolved, and `run.json` to the work folder.

    `run.json` tells the command, when it started, its devices, and what `describe_machine` tells.

    Raises:
      UserError: they cannot be written.
    """
    facts = {
        "command": ["python", "-m", "rn50_jax.train", *argv],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "devices": describe_devices(devices),
        **describe_machine(devices),
    }
    with telling_of_writes():
        write_json(workdir / "config.json", config.to_dict(), own=True)
        write_json(workdir / "run.json", facts, own=True)
