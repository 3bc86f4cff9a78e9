"""Pieces of a page: tables, figures."""

import io
import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from rn50_jax.curves import COLORS, INK

LONG = 25  # lines of a table from which on it is folded


def inline_svg(figure: Any, label: str, name: str) -> str:
    """A figure as an SVG element whose ink is the text colour of the page and whose paper is the page's."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = themed(text)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace(' xlink:href="', ' href="')
    # The same identifiers in two figures of a page would be mixed up.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def themed(text: str) -> str:
    """The same with the colours of figures replaced by those that page.css has for light and for dark paper."""
    for number, color in enumerate(COLORS):
        text = re.sub(color, f"var(--c{number})", text, flags=re.IGNORECASE)
    return re.sub(INK, "currentColor", text, flags=re.IGNORECASE)


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int], classes: Sequence[str] = ()
) -> str:
    """A table of texts, which are escaped; the columns in `numbers` are aligned to the right."""

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if place in numbers else ''}>{escape(text)}</{tag}>" for place, text in enumerate(texts)
        ).replace("class=n", 'class="n"')

    body = "".join(
        f"<tr{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{cells('td', row)}</tr>"
        for row, kind in zip(rows, classes or [""] * len(rows), strict=True)
    )
    return f'<div class="wide"><table><thead><tr>{cells("th", header)}</tr></thead><tbody>{body}</tbody></table></div>'


def folded(text: str, count: int, what: str) -> Iterator[str]:
    """A long table behind its summary, a short one as it is."""
    yield text if count <= LONG else f"<details><summary>All {count} {what}</summary>{text}</details>"
