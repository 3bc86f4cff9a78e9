"""The lock on a work folder: one run writes to it."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rn50_jax.errors import UserError
from rn50_jax.io.files import lock, open_regular, open_to_append
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
        file = None
        try:
            file = open_to_append(path)
            stack.callback(os.close, file)
        except OSError as error:  # a folder or pipe, or another user's
            warn(f"{path} cannot be written ({error.strerror}), so it does not tell who writes to the folder")
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
                os.write(file, told.encode())
        yield


def _holder(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.read(200).decode("utf-8", "replace").strip() or "it does not tell which"
    except OSError:
        return "it does not tell which"
