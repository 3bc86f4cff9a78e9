"""Pieces of a page: the content of its template, and figures."""

import io
import re
from collections.abc import Collection, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from rn50_jax.analysis.curves import COLORS, INK
from rn50_jax.io.text import printable

# The colors of figures, and those that page.css has for light and for dark paper.
THEME = {color.lower(): f"var(--c{number})" for number, color in enumerate(COLORS)} | {INK: "currentColor"}


class Tile(NamedTuple):
    """A headline figure."""

    label: str
    value: str
    more: str


class LegendItem(NamedTuple):
    """A color, what it stands for, and the share of a bar that it takes, if any."""

    label: str
    color: str
    more: str = ""
    share: float = 0.0


class Table(NamedTuple):
    """Texts. numbers: columns that are aligned to the right. bold: the number of the row that stands out."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Collection[int] = ()
    bold: int = -1


def render(**content: Any) -> str:
    """Returns the page that page.html makes of its content, in which every text is escaped and in one line."""
    home = files("rn50_jax.analysis")
    # Texts of a page come from files that anybody may have written.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_in_one_line, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((home / "page.html").read_text(encoding="utf-8"))
    style = Markup((home / "page.css").read_text(encoding="utf-8"))
    return template.render(style=style, **content) + "\n"


def _in_one_line(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def inline_svg(figure: Any, label: str, name: str) -> Markup:
    """Returns a figure as an SVG element whose ink is the text color of the page and whose paper is the page's."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub("|".join(THEME), lambda found: THEME[found[0].lower()], text, flags=re.IGNORECASE)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace(' xlink:href="', ' href="')
    # The same identifiers in two figures of a page would be mixed up.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))
