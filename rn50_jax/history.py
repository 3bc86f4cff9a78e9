"""What a run has written down about itself, read back: metrics over the epochs, configuration, facts."""

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rn50_jax.errors import UserError

Points = dict[float, float]
KEYS = ("time", "step", "epoch", "epochs_done")  # of every line


class History(NamedTuple):
    """The metrics of a run.

    lines: those of its metrics file that count, in order: of lines with the same kind and step, the last one. Where a
    run went on from a checkpoint, steps that it has done again are there once. x: what `series` goes by: "epoch", or
    "step" for a file that does not tell how long an epoch is.
    """

    lines: list[dict[str, Any]]
    x: str

    def series(self, name: str) -> Points:
        """One metric by epochs done (or steps)."""
        key = "epochs_done" if self.x == "epoch" else "step"
        return {line[key]: line[name] for line in self.lines if line.get(name) is not None}

    def validations(self) -> list[dict[str, Any]]:
        """The lines of validations."""
        return [line for line in self.lines if "val.top1" in line]

    def last(self, prefix: str) -> dict[str, Any]:
        """The last line that has a metric of the prefix; {} if none has."""
        found = [line for line in self.lines if any(name.startswith(prefix) for name in line)]
        return found[-1] if found else {}


def metrics_file(run: Path) -> Path:
    """The metrics file of a work folder, whatever its configuration calls it; a file stands for itself.

    Raises:
      UserError: there is none.
    """
    if not run.is_dir():
        if run.is_file():
            return run
        raise UserError(f"{run} does not exist; name the work folder of a run, such as runs/quickstart")
    path = run / read_config(run).get("report", {}).get("file", "metrics.jsonl")
    if not path.is_file():
        raise UserError(f"{run} has no {path.name}: it is no run, or has not reported anything yet")
    return path


def read_history(path: Path) -> History:
    """Reads a metrics file.

    Raises:
      UserError: it cannot be read, or a line is not JSON.
    """
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    found: dict[tuple[str, float], dict[str, Any]] = {}
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            step = line["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            if number == len(texts):
                break  # a killed run may leave half a line
            raise UserError(f"{path}, line {number} is no line of metrics; remove it") from None
        kind = next((name.split(".")[0] for name in line if name not in KEYS), "")
        place = line.get("epochs_done", step)
        found.pop((kind, place), None)  # so that the later line stands later
        found[kind, place] = line
    lines = list(found.values())
    if any("epochs_done" not in line for line in lines):
        lines = _with_epochs(lines)
    known = bool(lines) and all("epochs_done" in line for line in lines)
    return History(lines, "epoch" if known else "step")


def _with_epochs(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of older files with epochs_done: their validations tell how long an epoch is."""
    lengths = [line["step"] / line["epoch"] for line in lines if "val.top1" in line and "epoch" in line]
    if not lengths:
        return lines
    return [{"epochs_done": line["step"] / lengths[-1]} | line for line in lines]


def read_config(run: Path) -> dict[str, Any]:
    """The resolved configuration of a work folder; {} if it has none."""
    return _read_json(run / "config.json")


def read_facts(run: Path) -> dict[str, Any]:
    """Command, start, devices and versions of a work folder's last process; {} if it does not tell."""
    return _read_json(run / "run.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_csv(history: History, file: TextIO) -> None:
    """A row for each line, a column for each metric, empty where a line does not have it."""
    names = list(KEYS)
    for line in history.lines:
        names += [name for name in line if name not in names]
    writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history.lines)
