"""Names and messages as terminals, shells and spreadsheets may safely see them."""

import re
import shlex
from collections.abc import Iterable

# Control characters (escape sequences among them), line and paragraph separators, what changes the direction of
# writing, and the surrogates that stand for bytes that are not UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The same on one line, without what a terminal would obey: a line break becomes `\n`, the byte E9 `\xe9`."""
    return _UNSAFE.sub(lambda found: _escape(found[0]), text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte, as Python reads names of files
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode()


def shell(words: Iterable[object]) -> str:
    """A command line that a shell reads as these words, for hints to copy."""
    return " ".join(map(_quote, map(str, words)))


def _quote(word: str) -> str:
    if not _UNSAFE.search(word):
        return shlex.quote(word)
    return "$'" + printable(word.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def csv_cell(text: str) -> str:
    """A name as a cell that no spreadsheet takes for a formula: with an apostrophe before =, +, -, @ and tabs."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
