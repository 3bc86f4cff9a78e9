"""File lists: a text file that says which images a split has, and of which class each is.

UTF-8, one image a line: its path, a tab, its class. Paths are relative to the data folder (`config.data.dir`), or
absolute. A line `#class<TAB>NAME` names the next class, from number 0 on; other lines that begin with `#`, and empty
ones, are comments. See docs/data.md.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rn50_jax.config.limits import MOST_CLASSES
from rn50_jax.errors import UserError
from rn50_jax.io.files import open_regular, written_whole

_CLASS = "#class\t"


class FileList(NamedTuple):
    """class_names: their position is the label. files: N paths as written. labels: int32 [N]."""

    class_names: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray


def list_file(split_dir: Path) -> Path:
    """Returns where `pack` keeps the list of what it packed into a split: `train.tsv` beside `train/`."""
    return split_dir.with_name(f"{split_dir.name}.tsv")


def write_list(file: Path, class_names: Sequence[str], files: Sequence[str], labels: Sequence[int]) -> None:
    """Writes a list that `read_list` reads back equal, complete or not at all.

    Raises:
      UserError: a name cannot be in a list, see `listable`.
      OSError: it cannot be written.
    """
    for name in (*class_names, *files):
        if not listable(name):
            raise UserError(f"{name!r} has a tab, a line break or bytes that are not UTF-8; rename it")
    with written_whole(file) as unfinished, unfinished.open("w", encoding="utf-8", newline="\n") as out:
        out.write("# images of rn50-jax: path, tab, class; the classes in the order of their labels:\n")
        out.writelines(f"{_CLASS}{name}\n" for name in class_names)
        out.writelines(
            f"{'./' if path.startswith('#') else ''}{path}\t{class_names[label]}\n"
            for path, label in zip(files, labels, strict=True)
        )


def listable(name: str) -> bool:
    """Returns whether a name can be in a list: UTF-8, not empty, without tabs and line breaks of any kind."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\t" not in name and "\0" not in name and name.splitlines() == [name]


def read_list(file: Path) -> FileList:
    """Reads a list; looks at no image.

    A class is a name of the `#class` lines or else its number. Without such lines, classes that are all numbers are
    labels from 0, called by their numbers, and other classes are numbered in the order of their sorted names.

    Raises:
      UserError: it cannot be read, has no images, a line without a tab, or an unknown class.
    """
    try:
        with open_regular(file) as opened:
            text = opened.read().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"file list {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"file list {file} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if (at := text.find("\0")) >= 0:
        raise UserError(f"file list {file} has a NUL character ({at} characters in); save it as UTF-8")
    names: list[str] = []
    files: list[str] = []
    classes: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line.startswith(_CLASS):
            names.append(line.removeprefix(_CLASS))
        elif line and not line.startswith("#"):
            path, tab, label = line.partition("\t")
            if not (path and tab and label) or "\t" in label:
                raise UserError(f"{file}, line {number}: expected a path, one tab and a class, got {line[:80]!r}")
            files.append(path)
            classes.append(label)
    if not files:
        raise UserError(f"file list {file} names no images")
    class_names, label_of = _number_classes(file, names, set(classes))
    labels = np.fromiter((label_of[name] for name in classes), np.int32, len(classes))
    return FileList(class_names, tuple(files), labels)


def _number_classes(file: Path, names: list[str], used: set[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, and the label of each word used for a class."""
    numbers = {word: int(word) for word in used if re.fullmatch("[0-9]{1,18}", word)}
    if not names and len(numbers) == len(used):
        count = max(numbers.values()) + 1
        if count > MOST_CLASSES:
            raise UserError(
                f"file list {file}: {count - 1} is no label; they count from 0 and are below {MOST_CLASSES:,}"
            )
        return tuple(map(str, range(count))), numbers
    if not names and (odd := next((word for word in sorted(used) if _is_no_label(word)), None)):
        raise UserError(
            f"file list {file}: {odd[:20]!r} is no label, which are whole numbers from 0; if it is the name of a "
            "class, begin with a #class line for each"
        )
    if "" in names:
        raise UserError(f"file list {file} has a #class line without a name")
    names = names or sorted(used)
    label_of = {name: label for label, name in enumerate(names)}
    if len(label_of) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"file list {file} names class {twice!r} twice")
    for word in used - set(label_of):
        if word not in numbers or numbers[word] >= len(names):
            raise UserError(f"file list {file}: class {word!r} is not one of its {len(names)} #class lines")
        label_of[word] = numbers[word]
    return tuple(names), label_of


def _is_no_label(word: str) -> bool:
    return bool(re.fullmatch(r"\s*[-+]?[0-9]*[.,]?[0-9]+\s*", word) and not re.fullmatch("[0-9]{1,18}", word))
