"""Figures of predictions: the image sheet of mistakes and the reliability diagram."""

import io
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from rn50_jax.analysis.curves import COLORS, GRID, INK, as_text, look, save
from rn50_jax.analysis.predictions import Calibration, Predictions
from rn50_jax.data.formats.imagenet_names import human_names
from rn50_jax.data.image_set import read_image
from rn50_jax.data.images.decodable import to_decodable

COLUMNS, PIXELS = 6, 224


def draw_sheet(predictions: Predictions, rows: np.ndarray, path: Path) -> None:
    """Draws the images of some rows with their class, the best guess and its probability, and their files' names.

    Raises:
      OSError: the file cannot be written.
    """
    names = human_names(predictions.class_names)
    height = -(-len(rows) // COLUMNS)
    with look():
        figure = Figure(figsize=(1.75 * COLUMNS, 2.3 * height + 0.35), layout="constrained")
        grid = figure.subplots(height, COLUMNS, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        paths = predictions.names()
        files = short_names([paths[predictions.places[row]] for row in rows], 26)
        for axes, row, file in zip(grid.flat, rows, files, strict=False):
            picture = thumbnail(predictions, int(row), PIXELS)
            if picture is None:
                axes.text(0.5, 0.5, "no preview", ha="center", va="center")
            else:
                axes.imshow(np.asarray(picture))
            guess, label = names[predictions.classes[row, 0]], names[predictions.labels[row]]
            told = f"{_cut(guess)}  {100 * predictions.probabilities[row, 0]:.1f} %"
            axes.set_title(as_text(told) + "\nis " + as_text(_cut(label)), fontsize=8, loc="left")
            axes.text(0, -0.02, as_text(file), fontsize=5.5, va="top", transform=axes.transAxes)
        figure.suptitle(
            "The most confident mistakes: best guess, its probability, what it is, and its file (see mistakes.csv)",
            fontsize=9,
        )
        save(figure, path, own=True)


def _cut(name: str) -> str:
    name = name.split(",")[0]
    return name if len(name) <= 18 else name[:17] + "…"


def draw_calibration(calibration: Calibration, path: Path) -> None:
    """Draws accuracy over confidence, and how many images have which confidence.

    Raises:
      OSError: the file cannot be written.
    """
    with look():
        figure = Figure(figsize=(4.2, 4.8), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        draw_reliability(above, calibration)
        edges = np.linspace(0, 1, len(calibration.counts) + 1)
        below.bar(
            edges[:-1], calibration.counts, width=np.diff(edges), align="edge", color=COLORS[4], edgecolor="white"
        )
        below.set_xlabel("confidence")
        below.set_ylabel("images")
        below.set_xlim(0, 1)
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
        save(figure, path, own=True)


def draw_reliability(axes: Axes, calibration: Calibration) -> None:
    """Accuracy of each bin of confidence; on the dashed line confidence is right."""
    edges = np.linspace(0, 1, len(calibration.counts) + 1)
    accuracy = np.nan_to_num(calibration.accuracy)
    axes.bar(edges[:-1], accuracy, width=np.diff(edges), align="edge", color=COLORS[0], edgecolor="white")
    axes.plot([0, 1], [0, 1], linestyle="--", color=INK, linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy")
    axes.grid(alpha=0.45, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.text(0.03, 0.95, f"ECE {100 * calibration.error:.2f} %", va="top", transform=axes.transAxes)


_LONGEST = 32  # characters of a name


def short_names(files: Sequence[str], most: int) -> list[str]:
    """Returns names by which files can be told apart: what their paths do not have in common, the middle cut out.

    Args:
      files: paths, each of them once.
      most: characters of a name, exceeded where names would be the same.
    """
    names = list(files)
    ends = [PurePath(file).name for file in files]
    if len(set(ends)) == len(ends):
        names = ends
    for length in range(most, max(map(len, names), default=0) + 1):
        cut = [_middle_cut(name, length) for name in names]
        if len(set(cut)) == len(cut):
            return cut
    return names


def _middle_cut(name: str, most: int) -> str:
    if len(name) <= most:
        return name
    end = 2 * most // 3
    return f"{name[: most - 1 - end]}…{name[-end:]}"


def thumbnail(predictions: Predictions, row: int, size: int) -> Image.Image | None:
    """The image of a row, at most `size` pixels high and wide, small ones enlarged; None if it cannot be shown."""
    try:
        data = to_decodable(read_image(predictions.images, int(predictions.places[row])), predictions.rendering)
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (2 * size, 2 * size))  # large JPEGs are decoded at a fraction of their size
            upright = ImageOps.exif_transpose(image) if predictions.rendering.exif_rotation else image
            picture = upright.convert("RGB")
    except Exception:  # DALI reads files that Pillow does not
        return None
    if max(picture.size) <= size // 2:
        factor = size // max(picture.size)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((size, size))
    return picture
