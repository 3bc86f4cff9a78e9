"""Files of lines that a run appends to, whatever happened to its earlier processes or to the disk."""

import os
from pathlib import Path


class LineFile:
    """A file that is appended to line by line, each of them written at once.

    What a killed process left of a last line is dropped first; a line that cannot be written whole leaves no trace.

    Raises:
      OSError: the file cannot be opened, and from `write`: the line cannot be written, as when the disk is full.
    """

    def __init__(self, path: Path) -> None:
        if path.exists():
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        self._file = path.open("ab", buffering=0)

    def write(self, line: str) -> None:
        """Appends `line`, without its newline."""
        data = line.encode() + b"\n"
        end = os.fstat(self._file.fileno()).st_size
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError:
            os.ftruncate(self._file.fileno(), end)
            raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
