"""Answers of a model, as a table, CSV, JSON, JSON lines or as NVIDIA prints it, written while it comes."""

import textwrap
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TextIO

from rn50_jax.io.json_files import to_json
from rn50_jax.io.terminal import fit
from rn50_jax.io.text import csv_row, printable

# {"file", "predictions": [{"class", "index", "probability"}, ...]}, best first, or {"file", "error"}.
Answer = dict[str, Any]


def write_lines(answers: Iterable[Answer], file: TextIO, *, form: str) -> None:
    """Writes for people: a line with the file and one for each class, with its {name} and {percent}, as in `form`."""
    for answer in answers:
        first = printable(answer["file"] + (f": {answer['error']}" if "error" in answer else ""))
        print(fit(first, file), file=file)
        for p in answer.get("predictions", []):
            print(fit(form.format(name=printable(p["class"]), percent=100 * p["probability"]), file), file=file)
        file.flush()


def write_csv(answers: Iterable[Answer], file: TextIO) -> None:
    """Writes a row for each file and class, with its rank from 1; of a file that failed, one row with its error."""
    file.write(csv_row(["file", "rank", "class", "index", "probability", "error"]))
    for answer in answers:
        if "error" in answer:
            file.write(csv_row([answer["file"], "", "", "", "", answer["error"]]))
        for rank, p in enumerate(answer.get("predictions", []), 1):
            file.write(csv_row([answer["file"], rank, p["class"], p["index"], p["probability"], ""]))
        file.flush()


def write_json(answers: Iterable[Answer], file: TextIO) -> None:
    """Writes one list."""
    separator = "[\n"
    for answer in answers:
        file.write(separator + textwrap.indent(to_json(answer, indent=2), "  "))
        file.flush()
        separator = ",\n"
    file.write("[]\n" if separator == "[\n" else "\n]\n")


def write_jsonl(answers: Iterable[Answer], file: TextIO) -> None:
    """Writes one object a line."""
    for answer in answers:
        file.write(to_json(answer) + "\n")
        file.flush()


# On standard output, people read these in their terminal's encoding.
FOR_PEOPLE = ("table", "nvidia")
FORMATS: dict[str, Callable[[Iterable[Answer], TextIO], None]] = {
    "table": partial(write_lines, form="  {percent:5.1f}%  {name}"),
    "csv": write_csv,
    "json": write_json,
    "jsonl": write_jsonl,
    "nvidia": partial(write_lines, form="{name}: {percent:.1f}%"),  # as its classify.py does
}
