"""Renders templates to self-contained pages, and figures to SVG inside them.

Colours have medium lightness, so that they are legible on light and dark pages; text and axes take the colour of the
page's text.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from transprune.reports.words import percent, points

BLUE = "#1f7fc4"
"""Colour of what is kept, expected or held out."""
ORANGE = "#d9650f"
"""Colour of what is chosen or a limit; distinct from blue in all kinds of colour vision."""
GREY = "#7f8790"
"""Colour of what is dropped or secondary."""
INK, PAPER = "#010203", "#fdfcfb"
"""Placeholders for the page's colours of text and background."""
WIDTH = 278.0
"""Width of every figure in points: about 370 pixels, which fits a phone."""

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # keep text as text: searchable, and in the page's font
    "image.composite_image": False,
    "text.parse_math": False,  # names may contain dollar signs
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
    """Renders a self-contained page. Text is escaped; drawings, which are `Markup`, are not.

    Args:
        template: Name of a file in `templates/`.
        context: The variables of the template.
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
    environment.filters |= {"anchor": _anchor, "headings": _headings, "code": _code, "unbroken": _unbroken}
    return _with_units_unbroken(environment.get_template(template).render(context))


def _anchor(title: str) -> str:
    """The id of a section."""
    return "-".join(re.findall(r"[a-z0-9]+", title.lower()))


def _headings(body: str) -> list[tuple[str, Markup]]:
    """The id and the title of each section of a page."""
    return [(place, Markup(title)) for place, title in re.findall(r'<h2 id="([^"]*)">(.*?)</h2>', body)]


def _code(sentence: str) -> Markup:
    """A sentence in which what stands in backticks is code."""
    pieces = sentence.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if n % 2 else escape(p) for n, p in enumerate(pieces))


def _unbroken(text: str) -> Markup:
    """A command in which browsers break no line at the hyphens of its words."""
    return Markup(re.sub(r"\S*-\S*", r'<span class="whole">\g<0></span>', str(escape(text))))


def _with_units_unbroken(text: str) -> str:
    """Prevents line breaks between a figure and its unit, except in text that is quoted verbatim."""
    pieces = _AS_WRITTEN.split(text)
    return "".join(piece if place % 2 else _UNIT.sub("&nbsp;", piece) for place, piece in enumerate(pieces))


@contextmanager
def page_style(name: str) -> Iterator[None]:
    """Applies matplotlib's settings for one figure, and restores the caller's afterwards."""
    settings: Any = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(settings), warnings.catch_warnings():
        # The page's own font draws the text, so letters missing from the measuring font do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


SAID = "said: "
"""Begins the id of what has a text of its own, which browsers show under the pointer."""


def hovered(artists: Iterable[Artist], text: str) -> None:
    """Gives what was drawn a text that browsers show under the pointer."""
    for artist in artists:
        artist.set_gid(SAID + text)


def inline_svg(figure: Figure, name: str, description: str) -> Markup:
    """A figure as a self-contained `<svg>` element.

    Args:
        figure: The figure, drawn within `page_style(name)`.
        name: A name unique in the page; the prefix of the ids in the figure.
        description: A description for screen readers.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)  # contains the date
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(rf'<g id="{SAID}([^"]*)">', r"<g><title>\1</title>", body)
    body = body.replace("xlink:href", "href").replace(INK, "currentColor").replace(PAPER, "var(--page)")
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', body))
    body = re.sub(r' id="([\w.-]+)"', lambda match: match[0] if match[1] in used else "", body)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    width, height = figure.get_size_inches() * 72
    start = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {:.1f} {:.1f}">').format(description, width, height)
    return start + Markup(body.strip())
