"""Names and messages as terminals, shells, spreadsheets and strict readers of UTF-8 may safely see them."""

import csv
import io
import re
import shlex
from collections.abc import Iterable
from pathlib import PurePath

# The surrogates that stand for bytes that are not UTF-8, alone or as half of a character.
_NOT_UTF8 = re.compile("[\ud800-\udfff]")
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # those that stand for nothing, as JSON may have them
# Besides them: control characters (escape sequences among them), line and paragraph separators, what changes the
# direction of writing, and what XML has not.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
# With these, cells of a spreadsheet are a formula, or begin with what it drops before it looks for one.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def printable(text: str) -> str:
    r"""Returns the text without what a terminal would obey: a line break becomes `\n`, the byte E9 `\xe9`."""
    return _UNSAFE.sub(_escaped, text)


def in_utf8(text: str) -> str:
    r"""Returns the text for what takes nothing but UTF-8: the byte E9, alone, becomes `\xe9`."""
    return _NOT_UTF8.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    if "\udc80" <= character <= "\udcff":  # a byte, as Python reads names of files
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode()


def shell(words: Iterable[object]) -> str:
    """Returns a command line that a shell reads as these words, to be copied; no path is taken for an option."""
    return " ".join(map(_quote, words))


def _quote(word: object) -> str:
    text = str(word)
    if isinstance(word, PurePath) and text.startswith("-"):
        text = f"./{text}"
    if not _UNSAFE.search(text):
        return shlex.quote(text)
    return "$'" + printable(text.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def counted(number: int, noun: str) -> str:
    """Returns how many there are: "1 epoch", "2,000 epochs"."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Returns the plural of a noun: "epochs", "passes", "classes"."""
    return noun + ("es" if noun.endswith(("s", "sh", "tch", "x")) else "s")


def decimal(value: float, digits: int) -> str:
    """Returns a number with so many digits behind the point, or a large one as 8.73e+13."""
    return f"{value:.2e}" if 1e4 <= abs(value) < float("inf") else f"{value:.{digits}f}"


def size_text(count: float) -> str:
    """Returns a number of bytes to read, such as "1.28 GB"."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"


def first_line(error: BaseException, *, kind: bool = False) -> str:
    """Returns an error in one line: the system's words, or the first line of its message, or its type if it has none.

    Args:
      kind: put the type before the message.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    name, lines = type(error).__name__, str(error).strip().splitlines()
    if not lines:
        return name
    return f"{f'{name}: ' if kind else ''}{lines[0][:200].rstrip('.')}"


def csv_cell(text: str) -> str:
    """Returns a name as a cell that no spreadsheet takes for a formula.

    One that begins with =, +, -, @, a tab, a line break or an apostrophe has an apostrophe before it, so that
    `cell.removeprefix("'")` is the name.
    """
    return f"'{text}" if text.startswith(_FORMULA) else text


def csv_row(cells: Iterable[object]) -> str:
    """Returns a line of a CSV file; texts are names or messages, see `csv_cell`, numbers are as they are.

    It is to be written with the error handler "surrogateescape", by which bytes that are not UTF-8 leave as they came.
    """
    line = io.StringIO()
    # With this end of line, line breaks of all kinds are put in quotes.
    csv.writer(line, lineterminator="\r\n").writerow(
        [csv_cell(_NO_BYTE.sub(_escaped, cell)) if isinstance(cell, str) else cell for cell in cells]
    )
    return line.getvalue().removesuffix("\r\n") + "\n"
