"""Figures of predictions: the image sheet of mistakes and the reliability diagram."""

import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from rn50_jax.analysis.curves import COLORS, GRID, INK, as_text
from rn50_jax.analysis.predictions import Calibration, Predictions, cut
from rn50_jax.data.image_set import read_image
from rn50_jax.data.images.decodable import to_decodable

COLUMNS, PIXELS = 6, 224


def draw_sheet(predictions: Predictions, rows: np.ndarray) -> Figure:
    """Draws the images of some rows with their class, the best guess and its probability, and the end of their path."""
    names = [as_text(name) for name in predictions.short_names(18)]
    paths = predictions.names()
    height = -(-len(rows) // COLUMNS)
    figure = Figure(figsize=(1.75 * COLUMNS, 2.3 * height + 0.35), layout="constrained")
    grid = figure.subplots(height, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (axes, row) in enumerate(zip(grid.flat, rows.tolist(), strict=False), 1):
        picture = thumbnail(predictions, row, PIXELS)
        if picture is None:
            axes.text(0.5, 0.5, "no preview", ha="center", va="center")
        else:
            axes.imshow(np.asarray(picture))
        guess, label = names[predictions.classes[row, 0]], names[predictions.labels[row]]
        axes.set_title(f"{guess}  {100 * predictions.probabilities[row, 0]:.1f} %\nis {label}", fontsize=8, loc="left")
        file = f"{number}: {cut(paths[predictions.places[row]][::-1], 26)[::-1]}"
        axes.text(0, -0.02, as_text(file), fontsize=5.5, va="top", transform=axes.transAxes)
    title = "The most confident mistakes: best guess, its probability, what it is; row and end of the file"
    figure.suptitle(f"{title} in mistakes.csv", fontsize=9)
    return figure


def draw_calibration(calibration: Calibration) -> Figure:
    """Draws accuracy over confidence, and how many images have which confidence; on the dashed line both are equal."""
    figure = Figure(figsize=(4.2, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = np.linspace(0, 1, len(calibration.counts) + 1)
    bars: dict[str, Any] = {"width": np.diff(edges), "align": "edge", "edgecolor": "white"}
    above.bar(edges[:-1], np.nan_to_num(calibration.accuracy), color=COLORS[0], **bars)
    above.plot([0, 1], [0, 1], linestyle="--", color=INK, linewidth=1)
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    above.grid(alpha=0.45, color=GRID, linewidth=0.6)
    above.set_axisbelow(True)
    above.text(0.03, 0.95, f"ECE {100 * calibration.error:.2f} %", va="top", transform=above.transAxes)
    below.bar(edges[:-1], calibration.counts, color=COLORS[4], **bars)
    below.set(xlabel="confidence", ylabel="images")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def thumbnail(predictions: Predictions, row: int, size: int) -> Image.Image | None:
    """Returns the image of a row as large as fits into `size` pixels high and wide; None if that fails."""
    try:
        data = to_decodable(read_image(predictions.images, int(predictions.places[row])), predictions.rendering)
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (2 * size, 2 * size))  # large JPEGs are decoded at a fraction of their size
            upright = ImageOps.exif_transpose(image) if predictions.rendering.exif_rotation else image
            return ImageOps.contain(upright.convert("RGB"), (size, size))
    except Exception:  # DALI reads files that Pillow does not
        return None
