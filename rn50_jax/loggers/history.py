"""The files of a run, read back: metrics over the epochs, configuration, facts."""

import os
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator

from rn50_jax.config.file_names import DAMAGED, METRICS
from rn50_jax.errors import UserError
from rn50_jax.io.files import LARGEST, free_name, no_such_run, open_regular, write_whole
from rn50_jax.io.json_files import BOM, parse_line, read_json, read_json_lines
from rn50_jax.io.lines import Appended
from rn50_jax.io.messages import warn
from rn50_jax.io.text import counted, csv_row, printable

# What float32 holds, of which most metrics are made.
_LARGEST = 3.5e38
# By key of every line: type, smallest and largest value.
_PLACE: dict[str, tuple[Any, float, float]] = {
    "time": (int | float, 0, 1e11),
    "step": (int, 0, 2**53),
    "epoch": (int, 1, 2**53),
    "epochs_done": (int | float, 0, 2**53),
}
KEYS = tuple(_PLACE)


class History(NamedTuple):
    """The metrics of a run.

    lines: those of its metrics file that count, in order: of lines with the same kind and place, the last one. Where a
    run continued from a checkpoint, steps that it has done again are there once. unread: how many other lines there
    are.
    """

    lines: list[dict[str, Any]]
    unread: int = 0

    def series(self, name: str) -> dict[float, float]:
        """Returns one metric by epochs done."""
        return {line["epochs_done"]: line[name] for line in self.lines if line.get(name) is not None}

    def validations(self) -> list[dict[str, Any]]:
        """Returns the lines of validations."""
        return [line for line in self.lines if "val.top1" in line]


def metrics_file(run: Path) -> Path:
    """Finds the metrics file of a work folder; a file stands for itself.

    Raises:
      UserError: there is none.
    """
    # Names that no file can have, and folders that may not be looked into, raise nothing here.
    if not os.path.isdir(run):  # noqa: PTH112
        if os.path.isfile(run):  # noqa: PTH113
            return run
        raise UserError(no_such_run(run))
    path = run / METRICS
    if not os.path.isfile(path):  # noqa: PTH113
        raise UserError(f"{run} has no {path.name}: it is no run, or has not reported anything yet")
    return path


def read_history(path: Path) -> History:
    """Reads a metrics file; lines that are none of metrics are passed over.

    Raises:
      UserError: it cannot be read.
    """
    try:
        every = read_json_lines(path, _LINE)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    found: dict[tuple[str, float], dict[str, Any]] = {}
    for line in every.good:
        kind = next((name.split(".")[0] for name in line if name not in KEYS), "")
        found.pop((kind, line["epochs_done"]), None)  # so that the later line stands later
        found[kind, line["epochs_done"]] = line
    return History(list(found.values()), len(every.bad))


def last_line(path: Path) -> dict[str, Any]:
    """Returns the last line of a metrics file that can be read; {} if its last MiB has none."""
    try:
        with open_regular(path) as file:
            file.seek(max(os.fstat(file.fileno()).st_size - (1 << 20), 0))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines):
        with suppress(ValueError):
            return dict(parse_line(line.strip(), _LINE))
    return {}


def set_aside_unreadable(path: Path) -> None:
    """Moves the lines of a metrics file that are none of metrics to a file beside it, and says so.

    Raises:
      OSError: a file cannot be read or written; the metrics file is as it was then.
    """
    if path.is_symlink() or not path.is_file():
        return
    damaged = path.with_name(path.name + DAMAGED)
    if path.stat().st_size > LARGEST:
        warn(f"{path} is larger than any run's, and was moved to {path.rename(free_name(damaged))}")
        return
    bad = set(read_json_lines(path, _LINE).bad)
    if not bad:
        return
    lines = [line + b"\n" for line in path.read_bytes().removeprefix(BOM).split(b"\n") if line.strip()]
    moved = [line for line in lines if line.strip() in bad]
    with closing(Appended(damaged)) as file:
        file.write(b"".join(moved))
    write_whole(path, b"".join(line for line in lines if line.strip() not in bad), own=True)
    warn(f"{path}: moved {counted(len(moved), 'line')} without metrics to {damaged}")


def _check_line(line: dict[str, Any]) -> dict[str, Any]:
    """Refuses a line that is none of metrics."""
    for name, (kind, low, high) in _PLACE.items():
        value = line.get(name)
        if not isinstance(value, kind) or not low <= value <= high:
            raise ValueError(f"{name} is {value}")
    for name, value in line.items():
        if value is None and name.endswith((".top1", ".top5")):
            raise ValueError(f"{name} is null")
        if value is not None and abs(value) > _LARGEST and name not in _PLACE:
            raise ValueError(f"{name} is {value}")
    return line


_LINE = Annotated[dict[str, int | float | None], AfterValidator(_check_line)]


def read_description(path: Path) -> dict[str, Any]:
    """Reads `run.json` of a work folder; {} if it cannot be read."""
    try:
        return read_json(path, dict[str, Any])
    except (OSError, ValueError):
        return {}


def to_csv(history: History) -> str:
    """Returns a table with a row for each line, a column for each metric, empty where a line does not have it."""
    names = list(dict.fromkeys([*KEYS, *(name for line in history.lines for name in line)]))
    rows = [[line.get(name) for name in names] for line in history.lines]
    return "".join(csv_row(row) for row in [map(printable, names), *rows])
