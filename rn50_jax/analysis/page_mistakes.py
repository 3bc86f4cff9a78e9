"""The part of a run's page that looks at single images: worst classes, confusions, samples, calibration."""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from rn50_jax.analysis.curves import look
from rn50_jax.analysis.evaluation import evaluate_model
from rn50_jax.analysis.figures import draw_reliability, thumbnail
from rn50_jax.analysis.page_html import Table, inline_svg
from rn50_jax.analysis.predictions import BINS, Predictions
from rn50_jax.data.formats.imagenet_names import human_names
from rn50_jax.inference.trained_model import TrainedModel
from rn50_jax.io.text import counted
from rn50_jax.loggers.console import is_trivial, top5_text

SAMPLES = 12  # images of each kind
CLASSES = 12  # of the confusion matrix
PIXELS = 160


class Confused(NamedTuple):
    """A row of the confusion matrix: images of a class by what they were taken for."""

    name: str
    counts: list[int]
    others: int
    total: int


class Card(NamedTuple):
    """An image and what the model says of it.

    picture: its URL, which holds it; empty if it cannot be shown. file: its path from the data's folder.
    """

    picture: str
    alt: str
    right: bool
    told: str
    truth: str
    others: str
    file: str


class Mistakes(NamedTuple):
    """What the section shows; docs/reports.md says more."""

    about: str
    classes: int
    worst: Table
    calibration: Markup
    bins: int
    confusions: list[Confused]
    cards: list[tuple[str, list[Card]]]


def look_at_mistakes(trained: TrainedModel) -> Mistakes:
    """Evaluates the model and finds what it gets wrong.

    Raises:
      UserError: the model or its data cannot be read.
    """
    result, predictions = evaluate_model(trained, predictions=True)
    assert predictions
    top5 = "" if is_trivial(len(predictions.class_names)) else f"top-5 {result['val.top5']:.2f} %, "
    wrong = int((~predictions.right()).sum())
    count = min(SAMPLES, len(predictions.labels))
    sample = np.sort(np.random.default_rng(0).choice(len(predictions.labels), count, replace=False))
    groups = {
        "Sample predictions, drawn at random": list(_cards(predictions, sample)),
        "The most confident mistakes": list(_cards(predictions, predictions.confident_mistakes()[:SAMPLES])),
    }
    return Mistakes(
        about=f"{trained.name}, on {counted(result['val.images'], 'validation image')}: "
        f"top-1 {result['val.top1']:.2f} %, {top5}{counted(wrong, 'mistake')}.",
        classes=len(predictions.per_class()),
        worst=_worst(predictions),
        calibration=_calibration(predictions),
        bins=BINS,
        confusions=list(_confusions(predictions)),
        cards=[(title, cards) for title, cards in groups.items() if cards],
    )


def _worst(predictions: Predictions) -> Table:
    names = dict(zip(predictions.class_names, human_names(predictions.class_names), strict=True))
    rows = [
        [
            names[result.name],
            str(result.images),
            f"{100 * result.top1:.1f}",
            top5_text(100 * result.top5, 1, len(names)),
            f"{names[result.mistaken_for]} ({result.mistakes})" if result.mistaken_for else "-",
        ]
        for result in predictions.per_class()[:CLASSES]
    ]
    return Table(["class", "images", "top-1 %", "top-5 %", "most often taken for"], rows, numbers=(1, 2, 3))


def _calibration(predictions: Predictions) -> Markup:
    found = predictions.calibration()
    with look():
        figure = Figure(figsize=(4.2, 3.4), layout="constrained")
        axes = figure.subplots()
        draw_reliability(axes, found)
        axes.set_xlabel("confidence")
        axes.spines[["top", "right"]].set_visible(False)
        return inline_svg(figure, "accuracy over confidence", "Calibration")


def _confusions(predictions: Predictions) -> Iterator[Confused]:
    """The confusion matrix of the worst classes and those that they are taken for."""
    confusion, names = predictions.confusion(), human_names(predictions.class_names)
    chosen: list[int] = []
    for true, guess, _ in predictions.confused_pairs():
        new = [label for label in (true, guess) if label not in chosen]
        if len(chosen) + len(new) <= CLASSES:
            chosen += new
    chosen.sort()
    for label in chosen:
        counts, total = confusion[label, chosen].tolist(), int(confusion[label].sum())
        yield Confused(_cut(names[label]), counts, total - sum(counts), max(total, 1))


def _cut(name: str) -> str:
    name = name.split(",")[0]
    return name if len(name) <= 16 else name[:15] + "…"


def _cards(predictions: Predictions, rows: Sequence[int] | np.ndarray) -> Iterator[Card]:
    if not predictions.images.files:
        return
    names, files = human_names(predictions.class_names), predictions.names()
    for row in map(int, rows):
        label, guess = predictions.labels[row], predictions.classes[row, 0]
        told = [
            f"{_cut(names[predictions.classes[row, rank]])} {100 * predictions.probabilities[row, rank]:.1f} %"
            for rank in range(min(3, predictions.classes.shape[1]))
        ]
        yield Card(
            picture=_picture(predictions, row),
            alt=f"an image of class {names[label]}",
            right=bool(label == guess),
            told=told[0],
            truth=_cut(names[label]),
            others=", ".join(told[1:]),
            file=files[predictions.places[row]],
        )


def _picture(predictions: Predictions, row: int) -> str:
    picture = thumbnail(predictions, row, PIXELS)
    if picture is None:
        return ""
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
