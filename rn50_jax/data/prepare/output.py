"""Writing large data sets: one process at a time, only where there is room, and files complete or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rn50_jax.errors import UserError
from rn50_jax.io.files import lock
from rn50_jax.io.text import size_text


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Makes a folder, and holds it for this process alone.

    Raises:
      UserError: it cannot be made, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        try:
            lock(handle)
        except BlockingIOError:
            raise UserError(f"another process is writing to {folder}; wait for it") from None
        yield
    finally:
        os.close(handle)


def require_space(folder: Path, needed: int) -> None:
    """Refuses to begin what the disk has no room for.

    Raises:
      UserError: fewer than `needed` bytes are free where `folder` is.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder} needs {size_text(needed)} more, and its disk has {size_text(free)} free")


@contextmanager
def telling_of_the_disk(folder: Path, *, goes_on: bool = True) -> Iterator[None]:
    """Turns what fails while writing into one line that says what to do.

    Args:
      goes_on: the same command continues where it stopped; else it starts anew.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            cause = f"the disk of {folder} is full: {error.strerror}; make room"
        else:
            cause = f"{error.filename or folder}: {error.strerror}; mend that"
        again = ", it goes on from here" if goes_on else ""
        raise UserError(f"{cause} and run the same command again{again}") from error
