"""The folders of checkpoints on the disk: their names, and how one comes and goes without ever being half there."""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from rn50_jax.io.files import free_name, open_regular

# Ends of the names of folders that are no checkpoints: found damaged; making room for another one of the same step; the
# best of its time whose step was reached again; about to be deleted.
DAMAGED, REPLACED, EARLIER, REMOVED = ".damaged", ".replaced", ".earlier", ".removed"
_UNFINISHED = re.compile(r"(0|[1-9]\d*)(\.orbax-checkpoint-tmp.*|\.removed(-\d+)?)", re.ASCII)
_MOST_FILES, _DEEPEST = 100_000, 8  # in a checkpoint
_LARGEST = 1 << 28  # bytes of a file in it that holds no arrays; those that do lie in folders called `d`


def parse_step(name: str) -> int | None:
    """Returns the step that a folder's name, or a user, means; None for all but plain numbers, as for `007`."""
    if not re.fullmatch(r"0|[1-9]\d{0,18}", name, re.ASCII) or int(name) >= 2**63:
        return None
    return int(name)


def find_steps(directory: Path) -> list[int]:
    """Steps of the checkpoints in a folder, which need not exist, in ascending order.

    Raises:
      OSError: it cannot be read.
    """
    try:
        found = [(parse_step(path.name), path) for path in directory.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(step for step, path in found if step is not None and path.is_dir())


def rename(place: Path, end: str) -> Path:
    """Gives a checkpoint a name with another end, of which there is none yet.

    Raises:
      OSError: it cannot be renamed.
    """
    return place.rename(free_name(place.with_name(place.name + end)))


def remove(place: Path) -> None:
    """Deletes a checkpoint; a process that is killed meanwhile leaves no half one under its name.

    Raises:
      OSError: it cannot be renamed.
    """
    _delete(rename(place, REMOVED))


def clean_up(directory: Path) -> None:
    """Ends what a killed or failed process had begun: half-written checkpoints go, those that made room come back.

    Raises:
      OSError: one cannot come back.
    """
    for path in directory.glob(f"*{REPLACED}"):
        place = path.with_suffix("")
        if parse_step(place.name) is None:
            continue
        if place.exists():  # complete: it has its name
            _delete(path)
        else:
            path.rename(place)
    for path in directory.iterdir():
        if _UNFINISHED.fullmatch(path.name):
            _delete(path)


def _delete(path: Path) -> None:
    # Not by orbax, whose background thread outlives a run that ends at once.
    if path.is_symlink():
        with suppress(OSError):
            path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def check_files(place: Path, *, read: bool = False) -> None:
    """Looks whether everything in a checkpoint can be opened, before a library does, and is made of files and folders.

    Args:
      read: read it all, too.

    Raises:
      OSError: something cannot be opened or read, or is a pipe, a device or a link to a folder.
      ValueError: there are more or larger files than in any checkpoint.
    """

    def fail(error: OSError) -> None:
        raise error

    count = 0
    for folder, folders, files in os.walk(place, onerror=fail):
        count += len(folders) + len(files)
        if count > _MOST_FILES or len(Path(folder).relative_to(place).parts) > _DEEPEST:
            raise ValueError("it holds more folders and files than any checkpoint")
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for path in (Path(folder, name) for name in (*files, *links)):
            with open_regular(path) as file:
                if path.parent.name != "d" and os.fstat(file.fileno()).st_size > _LARGEST:
                    raise ValueError(f"{path.relative_to(place)} is larger than any checkpoint has")
                while read and file.read(1 << 24):
                    pass
