"""`metrics.jsonl`, the record of a run that everything else reads: a JSON object a line."""

from pathlib import Path

from rn50_jax.errors import UserError
from rn50_jax.io.json_files import to_json
from rn50_jax.io.lines import Appended
from rn50_jax.loggers.base import Record
from rn50_jax.loggers.history import KEYS, set_aside_unreadable


class JsonLines:
    """A metrics file, whose keys docs/reports.md explains; values that are not finite are null.

    Raises:
      UserError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            set_aside_unreadable(path)
            self._file = Appended(path, lines=True)
        except OSError as error:
            why = error.strerror
            raise UserError(f"cannot write {path}: {why}; mend that, or choose another --workdir") from error

    def log(self, record: Record) -> None:
        if not record.metrics:
            return
        place = (round(record.time, 3), record.step, record.epoch + 1, round(record.epochs_done, 6))
        self._file.write_line(to_json(dict(zip(KEYS, place, strict=True)) | record.metrics))

    def close(self) -> None:
        self._file.close()
