"""The lock on a work folder: one run writes to it."""

import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rn50_jax.errors import UserError
from rn50_jax.io.files import lock, open_regular
from rn50_jax.io.messages import warn


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the work folder for this run alone; the system lets go of it when the process ends, however it does.

    The folder itself is locked. Its file `lock` tells who holds it, and is locked where folders cannot be (NFS).

    Raises:
      UserError: another process holds it, or it cannot be read.
    """
    path = workdir / "lock"
    with ExitStack() as stack:
        try:
            folder = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"cannot read the work folder {workdir}: {error.strerror}") from error
        stack.callback(os.close, folder)
        file = _open_to_tell(path)
        if file is not None:
            stack.callback(os.close, file)
        try:
            if not lock(folder) and file is not None:
                lock(file)
        except BlockingIOError:
            raise UserError(
                f"another run is writing to {workdir} ({_holder(path)}); wait for it, or choose another --workdir"
            ) from None
        if file is not None:
            told = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
            with suppress(OSError):  # a full disk
                os.ftruncate(file, 0)
                os.pwrite(file, told.encode(), 0)
        yield


def _open_to_tell(path: Path) -> int | None:
    """The lock file, opened; None with a note if it cannot be: it is a folder, or another user's."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        reason = "it is a link" if path.is_symlink() else error.strerror
        warn(f"{path} cannot be written ({reason}), so it does not tell who writes to the folder")
        return None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        warn(f"{path} is no plain file, so it does not tell who writes to the folder")
        return None
    return file


def _holder(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.read(200).decode("utf-8", "replace").strip() or "it does not tell which"
    except OSError:
        return "it does not tell which"
