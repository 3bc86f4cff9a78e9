"""Lines as a terminal of some width shows them: broken at blanks, never inside a word; elsewhere they stay whole."""

import os
import re
from typing import Any
from unicodedata import east_asian_width

NARROWEST = 20  # columns below which nothing is wrapped

# From here to its end, a line is a command to be copied.
_COMMAND = re.compile(r"\bpython -m rn50_jax\b")
_WORD = re.compile(r" *[^ ]+| +$")
_FIRST_COLUMN = re.compile(r" *[^ ]+(?: [^ ]+)*  +(?=[^ ])")


def columns(stream: Any) -> int | None:
    """Returns how many columns the terminal has that a stream writes to; None if it is no terminal."""
    try:
        if not stream.isatty():
            return None
        given = os.environ.get("COLUMNS", "")
        # A terminal that does not tell its size says 0.
        return int(given) if given.isdecimal() and int(given) else os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return None


def width_of(text: str) -> int:
    """Returns how many columns a text takes."""
    return len(text) if text.isascii() else sum(1 + (east_asian_width(character) in "WF") for character in text)


def fit(text: str, stream: Any) -> str:
    """Returns lines as they are to be written to a stream, see `wrap`."""
    width = columns(stream)
    return "\n".join(wrap(line, width) for line in text.split("\n")) if width else text


def wrap(line: str, width: int) -> str:
    """Returns a line broken at blanks into lines of at most `width` columns, each as long as there is room.

    What follows is indented below the second column, if blanks set one off, or by two blanks more than the line. Words
    that are longer than a line stay whole, and so does a command at its end, on a line of its own: it is to be copied.
    """
    if width < NARROWEST or width_of(line) <= width:
        return line
    column = _FIRST_COLUMN.match(line)
    indent = width_of(column[0]) if column and width_of(column[0]) <= width // 3 else 0
    indent = indent or min(len(line) - len(line.lstrip(" ")) + 2, width // 3)
    found = _COMMAND.search(line)
    text, command = (line[: found.start()].rstrip(" "), line[found.start() :]) if found else (line, "")
    rows, row = [], ""
    for word in _WORD.findall(text):
        if row.strip() and width_of(row + word) > width:
            rows.append(row)
            row = " " * indent + word.lstrip(" ")
        else:
            row += word
    rows += [row, " " * indent + command]
    return "\n".join(filter(str.strip, rows))
