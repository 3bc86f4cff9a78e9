"""Images that cannot be decoded: named, written down, and replaced without disturbing the others."""

from contextlib import closing
from pathlib import Path

import numpy as np
from typing_extensions import TypedDict

from rn50_jax.data.image_set import ImageSet, names_from_root, root_of
from rn50_jax.errors import RunStopped, UserError
from rn50_jax.io.json_files import read_json, write_json
from rn50_jax.io.lines import Appended
from rn50_jax.io.messages import warn
from rn50_jax.io.text import counted


class Entry(TypedDict):
    """A bad image of a run.

    file: its path from the data's root, see `names_from_root`. root: where that was, empty for tars. epoch: in which it
    was found, from 1.
    """

    file: str
    root: str
    split: str
    epoch: int
    reason: str


class _Entries(TypedDict):
    files: list[Entry]


class BadImages:
    """The bad images of a run, over restarts and processes.

    Kept in a file {"files": [`Entry`, ...]}. An image found in epoch e is tried again in e + 1 and replaced from e + 2
    on: by then every process knows of it, so that an interrupted run replaces the same images as one that is not.

    Args:
      path: of that file; None keeps the list in memory.
      limit: bad images that do not yet end the run.
    """

    def __init__(self, path: Path | None, *, limit: int) -> None:
        self._path, self._limit = path, limit
        self._entries: list[Entry] = []
        self._named: set[tuple[str, str]] = set()
        self._entries = self._read()

    def known(self, split: str, images: ImageSet, epoch: int) -> np.ndarray:
        """Returns which images of a split are bad by `epoch` (from 0): their indices, int64."""
        self._entries = self._read()
        entries = [entry for entry in self._entries if entry["split"] == split and entry["epoch"] < epoch]
        if not entries:
            return np.zeros(0, np.int64)
        bad = {entry["file"] for entry in entries}
        return np.flatnonzero([name in bad for name in names_from_root(images)])

    def add(self, split: str, images: ImageSet, index: int, *, epoch: int, reason: str) -> None:
        """Adds an image that cannot be decoded in `epoch` (from 0).

        Raises:
          UserError: it is bad, and the limit is 0.
          RunStopped: there are more than the limit.
        """
        file = images.files[index]
        if not self._limit:
            raise UserError(
                f"{file} cannot be used: {reason}; replace it, or let a run replace so many such images by others: "
                "--config.data.max_bad_images=100"
            )
        if (split, file) not in self._named:
            self._named.add((split, file))
            warn(f"{file} is left out: {reason}")
        name = names_from_root(images)[index]
        self._write({"file": name, "root": root_of(images), "split": split, "epoch": epoch + 1, "reason": reason})
        if len(self._entries) > self._limit:
            where = f" (listed in {self._path})" if self._path else ""
            raise RunStopped(
                f"more than config.data.max_bad_images={self._limit} images cannot be decoded{where}, the last one is "
                f"{file}; look at the data with python -m rn50_jax.check_data DIR"
            )

    def warn_at_end(self) -> None:
        """Warns at the end of a run of images that were not used."""
        if self._entries:
            where = f"; listed in {self._path}" if self._path else ""
            warn(f"{counted(len(self._entries), 'image')} could not be decoded, and so not used{where}")

    def _write(self, entry: Entry) -> None:
        if self._path is None:
            self._merge(entry)
            return
        try:
            with closing(Appended(self._path.with_suffix(".lock"))) as lock:
                lock.hold()  # several processes may find images at the same time
                self._entries = self._read()
                if self._merge(entry):
                    write_json(self._path, {"files": self._entries}, own=True)
        except OSError as error:
            warn(f"{error.filename or self._path} cannot be written: {error.strerror}")

    def _merge(self, entry: Entry) -> bool:
        if any(e["file"] == entry["file"] and e["split"] == entry["split"] for e in self._entries):
            return False
        self._entries.append(entry)
        return True

    def _read(self) -> list[Entry]:
        if self._path is None:
            return self._entries
        try:
            return read_json(self._path, _Entries)["files"]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{self._path} cannot be read as the list of bad images ({why}); remove it") from None
