"""What pages are made of: templates, which draw what modules prepare as plain values, and drawings inside the page.

The colours are of middle lightness, so that they read on a light and on a dark page; text and axes take the colour of
the page's text.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from transprune.reports.words import percent, points

BLUE = "#1f7fc4"
"""What is kept, expected or held out."""
ORANGE = "#d9650f"
"""What is chosen or must not be exceeded; told from blue by every kind of colour vision."""
GREY = "#7f8790"
"""What is dropped or of less weight."""
INK, PAPER = "#010203", "#fdfcfb"
"""Stand for the colours of the text and the ground of the page."""
WIDTH = 278.0
"""Width of every figure in points: about 370 pixels, so that it is read without enlarging on a phone."""

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's font
    "image.composite_image": False,
    "text.parse_math": False,  # names may hold dollar signs
    "font.sans-serif": ["DejaVu Sans"],  # for measuring; the page sets its own font
    "font.size": 8.0,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.unicode_minus": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "hatch.linewidth": 0.7,
    "lines.solid_capstyle": "round",
}
_AS_WRITTEN = re.compile(r"(<pre.*?</pre>|<title>.*?</title>)", re.DOTALL)
_UNIT = re.compile(r"(?<=\d) (?=%|ms\b|[kMG]?B\b|h\b|min\b|s\b)")


def render(template: str, **context: Any) -> str:
    """A page that needs nothing but itself. Texts are escaped; drawings, which are markup, are not.

    Args:
        template: Name of a file in `templates/`.
        context: What it shows.
    """
    environment = Environment(
        loader=PackageLoader("transprune.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "percentage": "{:.2f} %".format, "points": points}
    return _with_units_unbroken(environment.get_template(template).render(context))


def _with_units_unbroken(text: str) -> str:
    """No line ends between a figure and its unit, but in what is quoted word by word."""
    pieces = _AS_WRITTEN.split(text)
    return "".join(piece if place % 2 else _UNIT.sub("&nbsp;", piece) for place, piece in enumerate(pieces))


@contextmanager
def page_style(name: str) -> Iterator[None]:
    """Matplotlib's settings for one figure; the caller's own come back afterwards."""
    settings: Any = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(settings), warnings.catch_warnings():
        # The page's font draws the text; that the measuring font lacks a letter is of no matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def inline_svg(figure: Figure, name: str, description: str) -> Markup:
    """A figure as an `<svg>` element without any reference to something outside it.

    Args:
        figure: Drawn within `page_style(name)`.
        name: Unique in the page; the ids in the figure begin with it.
        description: What the figure shows, for those who do not see it.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)  # holds the date
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href").replace(INK, "currentColor").replace(PAPER, "var(--page)")
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', body))
    body = re.sub(r' id="([\w.-]+)"', lambda match: match[0] if match[1] in used else "", body)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    width, height = figure.get_size_inches() * 72
    start = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {:.1f} {:.1f}">').format(description, width, height)
    return start + Markup(body.strip())
