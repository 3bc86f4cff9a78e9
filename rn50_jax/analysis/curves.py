"""Figures of the metrics of one or several runs, side by side."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from rn50_jax.io.files import write_whole
from rn50_jax.io.text import printable
from rn50_jax.loggers.history import History

# Okabe and Ito's colors, which the color-blind can tell apart, without the yellow, which does not show on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
INK, GRID = "#2b2b2b", "#b8b8b8"
_METADATA: dict[str, dict[str, Any]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}

TRAINING, VALIDATION, AVERAGED = "training", "validation", "validation, averaged weights"
_KIND_COLORS = {TRAINING: COLORS[0], VALIDATION: COLORS[1], AVERAGED: COLORS[2]}  # of a run alone
_STYLES: dict[str, dict[str, Any]] = {
    TRAINING: {"linewidth": 1.1, "alpha": 0.75},
    VALIDATION: {"linewidth": 1.6, "marker": "o", "markersize": 3.5},
    AVERAGED: {"linewidth": 1.4, "marker": "s", "markersize": 3.5, "linestyle": "--", "markerfacecolor": "white"},
}


class Panel(NamedTuple):
    """One pair of axes. series: (metric, kind of line). smoothed: whether training may be drawn as a running mean."""

    name: str
    label: str
    series: tuple[tuple[str, str], ...]
    from_zero: bool = False
    smoothed: bool = True


PANELS = (
    Panel("Loss", "loss", (("train.loss", TRAINING), ("val.loss", VALIDATION), ("val_ema.loss", AVERAGED))),
    Panel("Top1", "top-1 (%)", (("train.top1", TRAINING), ("val.top1", VALIDATION), ("val_ema.top1", AVERAGED))),
    Panel("Top5", "top-5 (%)", (("val.top5", VALIDATION), ("val_ema.top5", AVERAGED))),
    Panel("LearningRate", "learning rate", (("lr", TRAINING),), from_zero=True, smoothed=False),
    Panel("Throughput", "images per second", (("train.total_ips", TRAINING),), from_zero=True),
    Panel("LossScale", "loss scale", (("train.loss_scale", TRAINING),), smoothed=False),
)
# The three figures of NVIDIA's document.
VALIDATION_FIGURES = tuple(
    Panel(f"Validation{panel.name}", f"validation {panel.label}", panel.series[-2:]) for panel in PANELS[:3]
)


class Run(NamedTuple):
    """A run to draw, and what to call it."""

    label: str
    history: History


def overview(runs: Sequence[Run], smooth: int = 1) -> Figure:
    """Draws all panels that any of the runs has something for; one run by kinds of lines, several by colors.

    Args:
      smooth: training curves are running means over so many lines of the metrics file.
    """
    panels = drawable(runs)
    columns = min(3, max(len(panels), 1))
    rows = -(-max(len(panels), 1) // columns)
    figure = Figure(figsize=(3.9 * columns, 2.85 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        draw_panel(axes, panel, runs, smooth)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    handles = _handles(panels, runs, smooth)
    if len(panels) < grid.size and len(handles) <= 11:
        grid.flat[len(panels)].legend(handles=handles, loc="center", frameon=False)
    elif handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), frameon=False)
    return figure


def drawable(runs: Sequence[Run]) -> list[Panel]:
    """Returns the panels that any of the runs has something for."""
    return [panel for panel in PANELS if any(run.history.series(name) for run in runs for name, _ in panel.series)]


def single(panel: Panel, runs: Sequence[Run], size: tuple[float, float] = (4.8, 3.4), *, legend: bool = True) -> Figure:
    """Draws one panel as a figure, `size` in inches, with a legend if there is more than one kind of line."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    draw_panel(axes, panel, runs)
    handles = _handles([panel], runs, 1)
    if legend and len(handles) > 1:
        axes.legend(handles=handles, frameon=False, fontsize=8)
    return figure


def draw_panel(axes: Axes, panel: Panel, runs: Sequence[Run], smooth: int = 1) -> None:
    """Draws what the runs have for a panel; validation lies above training."""
    values: list[float] = []
    for run, run_color in zip(runs, cycle(COLORS), strict=False):
        for name, kind in panel.series:
            points = sorted(run.history.series(name).items())
            if name == "train.total_ips":
                points = [point for point in points if point[1] > 0]  # the step that compiled claims no speed
            if not points:
                continue
            x, y = np.array(points).T
            if kind == TRAINING and smooth > 1 and panel.smoothed:
                x, y = running_mean(x, smooth), running_mean(y, smooth)
            color = run_color if len(runs) > 1 else _KIND_COLORS[kind]
            axes.plot(x, y, color=color, markevery=max(len(x) // 25, 1), **_STYLES[kind])
            values += list(y)
    if values and panel.label.endswith("loss") and min(values) > 0 and max(values) > 10 * float(np.median(values)):
        axes.set_yscale("log")  # one early validation must not flatten the rest
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    elif panel.name == "LossScale" and min(values, default=0.0) > 0:
        axes.set_yscale("log", base=2)
    elif panel.from_zero:
        axes.set_ylim(0, 1.08 * max(values, default=1.0) or 1.0)
    axes.set_xlabel("epoch")
    axes.set_ylabel(panel.label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(alpha=0.45, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def running_mean(values: np.ndarray, count: int) -> np.ndarray:
    """Returns means of `count` neighbours each, fewer of them at the beginning: float64 [N] of [N]."""
    sums = np.cumsum(np.insert(np.asarray(values, np.float64), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - count, 0)
    means: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def kinds_drawn(run: Run) -> list[tuple[str, str]]:
    """Returns the kinds of lines in the panels of a run alone, and their colors."""
    return [(str(line.get_label()), str(line.get_color())) for line in _handles(PANELS, [run], 1)]


def _handles(panels: Sequence[Panel], runs: Sequence[Run], smooth: int) -> list[Line2D]:
    """The legend: colors for runs if there are several, and the kinds of lines that are drawn."""
    found = {kind for panel in panels for name, kind in panel.series if any(run.history.series(name) for run in runs)}
    kinds = [kind for kind in _STYLES if kind in found]
    several = len(runs) > 1
    names = {TRAINING: f"training, mean of {smooth} lines" if smooth > 1 else TRAINING}
    lines = [
        Line2D([], [], color=INK if several else _KIND_COLORS[kind], label=names.get(kind, kind), **_STYLES[kind])
        for kind in kinds
    ]
    if not several:
        return lines
    colors = [
        Line2D([], [], color=color, linewidth=3, label=as_text(run.label))
        for run, color in zip(runs, cycle(COLORS), strict=False)
    ]
    return colors + (lines if len(kinds) > 1 else [])


def as_text(name: str) -> str:
    """Returns a name as matplotlib shows it in one line, without taking what is between dollars for a formula."""
    text = printable(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # which would leave it out of a legend


def save(figure: Figure, target: Path, *, own: bool = False) -> list[Path]:
    """Writes a figure as .png, .svg or .pdf, see `written_whole`; by a name with another end as .png and .svg.

    Returns:
      The files.

    Raises:
      OSError: one of them cannot be written.
    """
    ends = [""] if target.suffix in _METADATA else [".png", ".svg"]
    paths = [target.with_name(target.name + end) for end in ends]
    for path in paths:
        drawn = io.BytesIO()  # not all of matplotlib's writers can fail in good order
        figure.savefig(drawn, format=path.suffix[1:], dpi=200, metadata=_METADATA[path.suffix])
        write_whole(path, drawn.getvalue(), own=own)
    return paths


@contextmanager
def look() -> Iterator[None]:
    """Gives figures their common look; to be used in a `with` around making and saving them."""
    settings: Any = {
        "font.size": 9,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.linewidth": 0.8,
        "lines.solid_capstyle": "round",
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Names of classes may have characters that the font has not; boxes stand for them.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        yield
