"""The part of a run's page that looks at single images: worst classes, confusions, samples, calibration."""

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure

from rn50_jax.analysis import BINS, Predictions
from rn50_jax.curves import look
from rn50_jax.data.names import human_names
from rn50_jax.errors import UserError
from rn50_jax.evaluate import examine_stored
from rn50_jax.mistakes import thumbnail
from rn50_jax.page_parts import inline_svg, table
from rn50_jax.sheets import draw_reliability
from rn50_jax.stored import StoredModel

SAMPLES = 12  # images of each kind
CLASSES = 12  # of the confusion matrix
PIXELS = 160


def mistakes_section(load: Callable[[], StoredModel]) -> Iterator[str]:
    """Evaluates the model and shows what it gets wrong; says why if that cannot be done."""
    yield "<h2>What it gets wrong</h2>"
    try:
        stored = load()
        result, predictions = examine_stored(stored)
    except UserError as error:
        yield f'<p class="soft">Single images could not be looked at: {escape(str(error))}.</p>'
        return
    wrong = int((~predictions.right()).sum())
    yield (
        f"<p>{escape(stored.name)}, on {result['val.images']:,} validation images: top-1 {result['val.top1']:.2f} %, "
        f"top-5 {result['val.top5']:.2f} %, {wrong:,} mistakes.</p>"
    )
    yield '<div class="columns"><div>'
    yield from _worst(predictions)
    yield "</div><div>"
    yield from _calibration(predictions)
    yield "</div></div>"
    yield from _matrix(predictions)
    rng = np.random.default_rng(0)
    count = min(SAMPLES, len(predictions.labels))
    sample = np.sort(rng.choice(len(predictions.labels), count, replace=False))
    yield from _cards("Sample predictions, drawn at random", predictions, sample)
    yield from _cards("The most confident mistakes", predictions, predictions.confident_mistakes()[:SAMPLES])


def _worst(predictions: Predictions) -> Iterator[str]:
    names = dict(zip(predictions.class_names, human_names(predictions.class_names), strict=True))
    results = predictions.per_class()
    rows = [
        [
            names[result.name],
            str(result.images),
            f"{100 * result.top1:.1f}",
            f"{100 * result.top5:.1f}",
            f"{names[result.mistaken_for]} ({result.mistakes})" if result.mistaken_for else "-",
        ]
        for result in results[:CLASSES]
    ]
    yield f"<h3>Worst classes, of {len(results)}</h3>"
    yield table(["class", "images", "top-1 %", "top-5 %", "most often taken for"], rows, numbers=(1, 2, 3))


def _calibration(predictions: Predictions) -> Iterator[str]:
    found = predictions.calibration()
    with look():
        figure = Figure(figsize=(4.2, 3.4), layout="constrained")
        axes = figure.subplots()
        draw_reliability(axes, found)
        axes.set_xlabel("confidence")
        axes.spines[["top", "right"]].set_visible(False)
        drawn = inline_svg(figure, "accuracy over confidence", "Calibration")
    yield "<h3>Calibration</h3>"
    yield f'<div class="panels alone">{drawn}</div>'
    yield (
        f'<p class="soft">Accuracy of the images in each of {BINS} bins of confidence; on the dashed line the model is '
        "as sure as it is right.</p>"
    )


def _matrix(predictions: Predictions) -> Iterator[str]:
    """The confusion matrix of the worst classes and those that they are taken for."""
    confusion, names = predictions.confusion(), human_names(predictions.class_names)
    chosen: list[int] = []
    for true, guess, _ in predictions.confused_pairs():
        new = [label for label in (true, guess) if label not in chosen]
        if len(chosen) + len(new) <= CLASSES:
            chosen += new
    if not chosen:
        return
    chosen.sort()
    yield "<h3>The most frequent confusions</h3>"
    yield '<div class="wide"><table class="matrix"><thead><tr><th>is, taken for</th>'
    yield "".join(f"<th>{escape(_cut(names[label]))}</th>" for label in chosen) + "<th>others</th></tr></thead><tbody>"
    for label in chosen:
        row, total = confusion[label, chosen], max(int(confusion[label].sum()), 1)
        cells = "".join(_cell(int(count), count / total) for count in row)
        others = _cell(total - int(row.sum()), (total - int(row.sum())) / total)
        yield f"<tr><th>{escape(_cut(names[label]))}</th>{cells}{others}</tr>"
    yield "</tbody></table></div>"


def _cell(count: int, share: float) -> str:
    if not count:
        return '<td class="soft">·</td>'
    return f'<td style="background:rgba(var(--heat),{0.08 + 0.5 * share:.2f})">{count}</td>'


def _cut(name: str) -> str:
    name = name.split(",")[0]
    return name if len(name) <= 16 else name[:15] + "…"


def _cards(title: str, predictions: Predictions, rows: Sequence[int] | np.ndarray) -> Iterator[str]:
    if not len(rows) or not predictions.images.files:
        return
    names = human_names(predictions.class_names)
    yield f'<h3>{title}</h3><ul class="cards">'
    for row in map(int, rows):
        label, guess = predictions.labels[row], predictions.classes[row, 0]
        told = f"{_cut(names[guess])} {100 * predictions.probabilities[row, 0]:.1f} %"
        verdict = '<span class="right">✓ ' if label == guess else '<span class="wrong">✗ '
        truth = "" if label == guess else f"<span>is {escape(_cut(names[label]))}</span>"
        others = ", ".join(
            f"{_cut(names[predictions.classes[row, rank]])} {100 * predictions.probabilities[row, rank]:.1f} %"
            for rank in range(1, min(3, predictions.classes.shape[1]))
        )
        picture = _picture(predictions, row, f"an image of class {names[label]}")
        yield f'<li>{picture}{verdict}{escape(told)}</span>{truth}<span class="soft">{escape(others)}</span></li>'
    yield "</ul>"


def _picture(predictions: Predictions, row: int, label: str) -> str:
    picture = thumbnail(predictions, row, PIXELS)
    if picture is None:
        return '<div class="none">no preview</div>'
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=80)
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img alt="{escape(label)}" src="data:image/webp;base64,{data}">'
