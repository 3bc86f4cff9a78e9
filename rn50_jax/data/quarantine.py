"""Images that cannot be decoded: named, written down, and left out without disturbing the others."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from rn50_jax.data.folder import ImageSet, short_name
from rn50_jax.errors import RunStopped, UserError, warn

POLICIES = ("substitute", "error")


class Quarantine:
    """The bad images of a run, over restarts and processes.

    Kept in a file {"files": [{"file", "split", "epoch", "reason"}]}, `epoch` (from 1) being the one in which an image
    was found. An image found in epoch e is tried again in e + 1 and left out from e + 2 on: by then every process knows
    of it, so that a run which is interrupted leaves out the same images as one that is not.

    Args:
      path: of that file; None keeps the list in memory.
      policy: one of `POLICIES`; with "error" the first bad image ends the run.
      limit: bad images that the run puts up with.
    """

    def __init__(self, path: Path | None, *, policy: str, limit: int) -> None:
        self._path, self._policy, self._limit = path, policy, limit
        self._entries: list[dict[str, Any]] = []
        self._told: set[tuple[str, str]] = set()
        self._entries = self._read()

    def left_out(self, split: str, epoch: int) -> set[str]:
        """The short names of images of a split that are bad by `epoch` (from 0)."""
        self._entries = self._read()
        return {short_name(e["file"]) for e in self._entries if e["split"] == split and e["epoch"] < epoch}

    def add(self, split: str, images: ImageSet, index: int, *, epoch: int, reason: str) -> None:
        """Takes note of an image that cannot be decoded in `epoch` (from 0).

        Raises:
          UserError: with the policy "error".
          RunStopped: there are more than the limit.
        """
        file = images.files[index]
        if self._policy == "error":
            raise UserError(
                f"{file} is damaged or no image ({reason}); repair or remove it, or let "
                "--config.data.on_bad_file=substitute leave out such files"
            )
        if (split, file) not in self._told:
            self._told.add((split, file))
            warn(f"{file} is left out: it is damaged or no image ({reason})")
        self._write({"file": file, "split": split, "epoch": epoch + 1, "reason": reason})
        if len(self._entries) > self._limit:
            where = f" (listed in {self._path})" if self._path else ""
            raise RunStopped(
                f"more than config.data.max_bad_files={self._limit} images cannot be decoded{where}, the last one is "
                f"{file}; look at the data with python -m rn50_jax.check_data"
            )

    def tell(self) -> None:
        """Says at the end of a run that images were left out, if some were."""
        if self._entries:
            where = f"; they are listed in {self._path}" if self._path else ""
            warn(f"{len(self._entries)} images could not be decoded and were left out{where}")

    def _write(self, entry: dict[str, Any]) -> None:
        if self._path is None:
            self._merge(entry)
            return
        try:
            with self._path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # several processes may find images at the same time
                self._entries = self._read()
                if self._merge(entry):
                    unfinished = self._path.with_suffix(".unfinished")
                    unfinished.write_text(json.dumps({"files": self._entries}, indent=2) + "\n", encoding="utf-8")
                    os.replace(unfinished, self._path)  # noqa: PTH105
        except OSError as error:
            warn(f"{self._path} cannot be written: {error.strerror}")

    def _merge(self, entry: dict[str, Any]) -> bool:
        if any(e["file"] == entry["file"] and e["split"] == entry["split"] for e in self._entries):
            return False
        self._entries.append(entry)
        return True

    def _read(self) -> list[dict[str, Any]]:
        if self._path is None:
            return self._entries
        try:
            entries: list[dict[str, Any]] = json.loads(self._path.read_text(encoding="utf-8"))["files"]
            return [e for e in entries if {"file", "split", "epoch", "reason"} <= e.keys()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self._path} cannot be read as the list of bad images; remove it") from None
