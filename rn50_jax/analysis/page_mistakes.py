"""The part of a run's page that looks at single images: worst classes, confusions, samples, calibration."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from rn50_jax.analysis.curves import look
from rn50_jax.analysis.evaluation import evaluate_model
from rn50_jax.analysis.figures import draw_calibration, thumbnail
from rn50_jax.analysis.page_html import Table, inline_svg
from rn50_jax.analysis.predictions import BINS, Predictions
from rn50_jax.inference.trained_model import TrainedModel
from rn50_jax.io.text import counted

SAMPLES = 12  # images of each kind
CLASSES = 12  # of the confusion matrix
PIXELS = 160


def look_at_mistakes(trained: TrainedModel) -> dict[str, Any]:
    """Evaluates the model and returns the content of the section, as page.html names it; docs/reports.md says more.

    Raises:
      UserError: the model or its data cannot be read.
    """
    result, predictions = evaluate_model(trained, predictions=True)
    assert predictions
    wrong = int((~predictions.right()).sum())
    count = min(SAMPLES, len(predictions.labels))
    sample = np.sort(np.random.default_rng(0).choice(len(predictions.labels), count, replace=False))
    with look():
        calibration = draw_calibration(predictions.calibration())
        drawn = inline_svg(calibration, "accuracy over confidence, and images", "Calibration")
    groups = (
        ("Sample predictions, drawn at random", sample),
        ("The most confident mistakes", predictions.confident_mistakes()[:SAMPLES]),
    )
    return {
        "about": f"{trained.name}, on {counted(result['val.images'], 'validation image')}: "
        f"top-1 {result['val.top1']:.2f} %, top-5 {result['val.top5']:.2f} %, {counted(wrong, 'mistake')}.",
        "classes": len(np.unique(predictions.labels)),
        "worst": _worst(predictions),
        "calibration": drawn,
        "bins": BINS,
        "confusions": list(_confusions(predictions)),
        "cards": [(title, cards) for title, rows in groups if (cards := list(_cards(predictions, rows)))],
    }


def _worst(predictions: Predictions) -> Table:
    rows = [
        [
            result.name,
            str(result.images),
            f"{100 * result.top1:.1f}",
            f"{100 * result.top5:.1f}",
            f"{result.mistaken_for} ({result.mistakes})" if result.mistaken_for else "-",
        ]
        for result in predictions.per_class(predictions.human_names())[:CLASSES]
    ]
    return Table(["class", "images", "top-1 %", "top-5 %", "most often taken for"], rows, numbers=(1, 2, 3))


def _confusions(predictions: Predictions) -> Iterator[dict[str, Any]]:
    """The confusion matrix of the worst classes and those that they are taken for."""
    confusion, names = predictions.confusion(), predictions.short_names(16)
    chosen: list[int] = []
    for true, guess, _ in predictions.confused_pairs():
        new = [label for label in (true, guess) if label not in chosen]
        if len(chosen) + len(new) <= CLASSES:
            chosen += new
    chosen.sort()
    for label in chosen:
        counts, total = confusion[label, chosen].tolist(), int(confusion[label].sum())
        yield {"name": names[label], "counts": counts, "others": total - sum(counts), "total": max(total, 1)}


def _cards(predictions: Predictions, rows: np.ndarray) -> Iterator[dict[str, Any]]:
    if not predictions.images.files:
        return
    names, short, files = predictions.human_names(), predictions.short_names(16), predictions.names()
    for row in rows.tolist():
        label, classes = predictions.labels[row], predictions.classes[row, :3]
        guesses = [
            f"{short[name]} {100 * share:.1f} %"
            for name, share in zip(classes, predictions.probabilities[row, :3], strict=True)
        ]
        yield {
            "picture": _picture(predictions, row),
            "alt": f"an image of class {names[label]}",
            "right": label == classes[0],
            "told": guesses[0],
            "truth": short[label],
            "others": ", ".join(guesses[1:]),
            "file": files[predictions.places[row]],
        }


def _picture(predictions: Predictions, row: int) -> str:
    """The URL of an image, which holds it; "" if it cannot be shown."""
    picture = thumbnail(predictions, row, PIXELS)
    if picture is None:
        return ""
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
