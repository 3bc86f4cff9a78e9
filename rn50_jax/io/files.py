"""Files and folders that are written whole or not at all, that are locked, or whose names are looked for."""

import difflib
import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rn50_jax.errors import UserError
from rn50_jax.io.text import first_line

UNFINISHED = ".unfinished"
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


def open_to_append(path: Path, *, links: bool = False) -> int:
    """Opens or makes a plain file to append to; returns its descriptor.

    Args:
      links: a link is followed; not in a run's folder, which anybody may have made.

    Raises:
      OSError: it cannot be opened, or is a folder, pipe, device or link.
    """
    if not links and path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link", str(path))
    # A pipe would wait for its reader.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW)
    file = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return file


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
        # A write that fails names nothing; what is in the way of the other name, a folder, is better told by that.
        if isinstance(error, OSError) and (
            error.filename is None or (str(error.filename) == str(unfinished) and not unfinished.exists())
        ):
            error.filename = name
        raise


def _make_way(path: Path) -> None:
    """Removes a link, pipe or device, which writing would follow or wait for."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            path.unlink()


def write_whole(path: Path, content: str | bytes, *, own: bool = False) -> None:
    """Writes or replaces a file, see `written_whole`; text as UTF-8.

    Raises:
      OSError: it cannot be written; what was there before stays.
    """
    with written_whole(path, own=own) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Gives a hidden folder to fill; it becomes `path` at the end, unless another process was faster, or vanishes.

    Raises:
      OSError: the folder cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}{UNFINISHED}-", dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        unfinished.mkdir()
        yield unfinished
        try:
            unfinished.rename(path)
        except OSError:
            if not path.is_dir():
                raise


@contextmanager
def telling_of_writes() -> Iterator[None]:
    """Turns a file that cannot be written into one line that names it.

    Raises:
      UserError: for an error of the system that names a file, as `written_whole` raises it.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise UserError(f"cannot write {error.filename}: {first_line(error)}") from error


def check_writable(folder: Path) -> None:
    """Makes a folder, if need be, and a file in it that is gone at once.

    Raises:
      OSError: one of them cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def no_such_run(path: Path) -> str:
    """Says that the work folder of a run does not exist, and which may be meant: of the most similar name beside it."""
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        beside = []
    if meant := difflib.get_close_matches(path.name, beside, 1):
        return f"{path} does not exist; did you mean {path.parent / meant[0]}?"
    return f"{path} does not exist; name the work folder of a run, such as runs/quickstart"


def free_name(path: Path) -> Path:
    """Returns the path, with a number behind it if something is there."""
    target, number = path, 1
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}-{number}")
    return target


def lock(descriptor: int, *, wait: bool = False) -> bool:
    """Locks an open file or folder for this process alone; the system lets go of it when the process ends.

    Args:
      wait: until no other process holds it.

    Returns:
      Whether it is locked now; False on a file system that cannot do that.

    Raises:
      BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError(*error.args) from None
        return False
    return True
