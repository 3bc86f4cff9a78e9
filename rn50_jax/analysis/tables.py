"""Tables and figures of a model's mistakes, and its predictions as a file."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rn50_jax.analysis.predictions import ClassResult, Predictions, cut
from rn50_jax.errors import UserError
from rn50_jax.io.files import telling_of_writes, write_whole, written_whole
from rn50_jax.io.text import counted, csv_row, in_utf8, printable

SHOWN = 10  # classes and pairs on the console
SHEET = 24  # images on the sheet
_LONGEST = 32  # characters of a name


def tell_mistakes(predictions: Predictions, width: int | None = None) -> Iterator[str]:
    """Yields the worst classes and the most frequent confusions as lines whose names fit so many columns."""
    most = _LONGEST if width is None else min(max((width - 38) // 2, 12), _LONGEST)
    names = [cut(printable(name), most) for name in predictions.human_names()]
    per_class = predictions.per_class(names)
    shown = per_class[:SHOWN]
    yield f"worst {len(shown)} of {len(per_class)} classes" if len(shown) < len(per_class) else "classes, worst first"
    longest = max(len(result.name) for result in shown)
    yield f"  {'':<{longest}}  images  top-1 %  top-5 %  most often taken for"
    for result in shown:
        top5 = f"{100 * result.top5:.2f}" if len(names) > 5 else "-"
        other = f"{result.mistaken_for} ({result.mistakes})" if result.mistaken_for else "-"
        numbers = f"{result.images:6}  {100 * result.top1:7.2f}  {top5:>7}"
        yield f"  {result.name:<{longest}}  {numbers}  {other}"
    pairs = predictions.confused_pairs()
    yield f"most frequent confusions, of {counted(sum(count for _, _, count in pairs), 'mistake')}"
    for true, guess, count in pairs[:SHOWN]:
        yield f"  {count:6}  {names[true]} taken for {names[guess]}"


def write_analysis(predictions: Predictions, folder: Path) -> None:
    """Writes per_class.csv, confusion.csv, calibration.png and, unless the data are synthetic, mistakes.csv and .png.

    mistakes.csv has a row for each wrong answer, the most confident first; its files are named from the data's folder.

    Raises:
      UserError: the folder cannot be written.
    """
    from rn50_jax.analysis.curves import look, save
    from rn50_jax.analysis.figures import draw_calibration, draw_sheet  # a second to import

    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = predictions.class_names
        _write_csv(folder / "per_class.csv", ClassResult._fields, predictions.per_class(names), own=True)
        pairs = [(names[true], names[guess], count) for true, guess, count in predictions.confused_pairs()]
        _write_csv(folder / "confusion.csv", ["class", "taken_for", "images"], pairs, own=True)
        mistakes = predictions.confident_mistakes()
        with look():
            save(draw_calibration(predictions.calibration()), folder / "calibration.png", own=True)
            if predictions.images.files and len(mistakes):
                save(draw_sheet(predictions, mistakes[:SHEET]), folder / "mistakes.png", own=True)
        if predictions.images.files:
            header = ["file", "class", "taken_for", "probability", "probability_of_class"]
            _write_csv(folder / "mistakes.csv", header, list(_mistakes(predictions, mistakes)), own=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror} ({error.filename})") from error


def _mistakes(predictions: Predictions, rows: np.ndarray) -> Iterator[list[Any]]:
    files, names = predictions.names(), predictions.class_names
    for row in rows.tolist():
        label, classes = predictions.labels[row], predictions.classes[row]
        probabilities = predictions.probabilities[row]
        own = probabilities[classes == label].tolist()  # of a class that is none of the best, it is not known
        yield [files[predictions.places[row]], names[label], names[classes[0]], float(probabilities[0]), *(own or [""])]


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]], *, own: bool = False) -> None:
    write_whole(path, "".join(map(csv_row, [header, *rows])).encode("utf-8", "surrogateescape"), own=own)


def check_target(path: Path) -> None:
    """Refuses a file that `write_predictions` could not write, before the work is done.

    Raises:
      UserError: another kind of file than .csv and .parquet, a missing package or folder.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"--predictions {path} must end in .csv or .parquet")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"--predictions {path} needs the package pyarrow; pip install pyarrow, or write .csv")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: {path.parent} is no folder")


def write_predictions(predictions: Predictions, path: Path) -> None:
    """Writes a row for each image: file, label, class_1, probability_1 and so on, best first; classes by folder name.

    Raises:
      UserError: the file cannot be written.
    """
    names, files = np.array(predictions.class_names, dtype=object), predictions.images.files
    columns: dict[str, Sequence[Any]] = {
        "file": [files[place] for place in predictions.places] if files else [""] * len(predictions.places),
        "label": list(names[predictions.labels]),
    }
    for rank in range(predictions.classes.shape[1]):
        columns[f"class_{rank + 1}"] = list(names[predictions.classes[:, rank]])
        columns[f"probability_{rank + 1}"] = predictions.probabilities[:, rank].tolist()
    with telling_of_writes():
        if path.suffix == ".csv":
            _write_csv(path, list(columns), list(zip(*columns.values(), strict=True)))
            return
        import pyarrow
        import pyarrow.parquet

        named = {key: [in_utf8(x) if isinstance(x, str) else x for x in xs] for key, xs in columns.items()}
        with written_whole(path) as unfinished, unfinished.open("wb") as file:
            pyarrow.parquet.write_table(pyarrow.table(named), file)
