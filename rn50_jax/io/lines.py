"""Files that a run appends to, whatever happened to its earlier processes or to the disk."""

import os
from pathlib import Path

from rn50_jax.io.files import lock, open_to_append


class Appended:
    """A plain file that is appended to at once; what cannot be written whole leaves no trace.

    Args:
      links: a link is followed; not in a run's folder, which anybody may have made.
      lines: it is appended to line by line; what a killed process left of a last line is dropped.

    Raises:
      OSError: the file cannot be opened, or is a folder, pipe, device or link; from `write`: it cannot be written, as
        when the disk is full.
    """

    def __init__(self, path: Path, *, links: bool = False, lines: bool = False) -> None:
        self._path, self._links = path, links
        self._file = open_to_append(path, links=links)
        if lines:
            self._drop_unfinished()

    def write(self, data: bytes) -> int:
        """Appends `data` and returns its length; to a new file if somebody has deleted the one there was."""
        if not os.fstat(self._file).st_nlink:
            found = open_to_append(self._path, links=self._links)
            self.close()
            self._file = found
        end = os.fstat(self._file).st_size
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, end)
            raise
        return written

    def write_line(self, line: str) -> None:
        """Appends `line`, without its newline."""
        self.write(line.encode() + b"\n")

    def flush(self) -> None:
        """Does nothing: everything has been written."""

    def hold(self) -> None:
        """Waits until no other process holds the file, and holds it until it is closed."""
        lock(self._file, wait=True)

    def _drop_unfinished(self) -> None:
        """Drops what a killed process left of a last line."""
        start, found = os.fstat(self._file).st_size, -1
        while start and found < 0:
            start, end = max(start - 65536, 0), start
            found = os.pread(self._file, end - start, start).rfind(b"\n")
        os.ftruncate(self._file, start + found + 1)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)
