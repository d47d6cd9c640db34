"""Pieces of HTML. What is called text is escaped here; what is called content is HTML already."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

_UNBROKEN_TOP1 = '<span class="whole">top-1</span>'
_AS_WRITTEN = re.compile(r"(<pre.*?</pre>|<title>.*?</title>)", re.DOTALL)
_UNIT = re.compile(r"(?<=\d) (?=%|ms\b|[kMG]?B\b|h\b|min\b|s\b)")


def page(title: str, kicker: str, content: str, beneath: str = "") -> str:
    """A whole page that needs nothing but itself.

    Args:
        title: Text of its title and heading.
        kicker: Text above the heading.
        content: What `section` made.
        beneath: Content beneath the heading.
    """
    style = resources.files("transprune.reports").joinpath("report_style.css").read_text(encoding="utf-8")
    sentence = escape(title)
    return _with_units_unbroken(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{sentence}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<p class="kicker">{escape(kicker)}</p>\n<h1>{sentence.replace("top-1", _UNBROKEN_TOP1)}</h1>\n'
        f"{beneath}</header>\n{content}</main>\n</body>\n</html>\n"
    )


def _with_units_unbroken(text: str) -> str:
    """No line ends between a figure and its unit, but in what is quoted word by word."""
    pieces = _AS_WRITTEN.split(text)
    return "".join(piece if place % 2 else _UNIT.sub("&nbsp;", piece) for place, piece in enumerate(pieces))


def section(title: str, content: str) -> str:
    """A part of the page under a heading of the second level."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}</section>\n"


def note(text: str) -> str:
    """A plain sentence in place of something that is not there."""
    return f'<p class="note">{escape(text)}</p>\n'


def code(text: str, label: str) -> str:
    """Text as it stands in a file; scrolled, also by keyboard, where it is wider than the page."""
    return f'<pre tabindex="0" role="region" aria-label="{escape(label)}"><code>{escape(text.strip())}</code></pre>\n'


def details(summary: str, content: str, *, is_open: bool = False) -> str:
    """Content that folds away; the summary is text."""
    opened = " open" if is_open else ""
    return f"<details{opened}>\n<summary>{escape(summary)}</summary>\n{content}</details>\n"


def table(caption: str, head: Sequence[str], rows: Iterable[str], kind: str = "plain") -> str:
    """A table with its caption; scrolled, also by keyboard, where it is wider than the page.

    Args:
        caption: What the table holds.
        head: Texts of the head; empty: no head.
        rows: What `row` made.
        kind: Class for the style sheet.
    """
    cells = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    top = f"<thead><tr>{cells}</tr></thead>\n" if head else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">\n<table class="{kind}">\n'
        f"<caption>{escape(caption)}</caption>\n{top}<tbody>\n{''.join(rows)}</tbody>\n</table>\n</div>\n"
    )


def row(header: str, *contents: str) -> str:
    """A table row: the text of its header and the contents of its cells."""
    cells = "".join(f"<td>{content}</td>" for content in contents)
    return f'<tr><th scope="row">{escape(header)}</th>{cells}</tr>\n'


def bar(share: float, target: float | None = None) -> str:
    """A share as a bar, with a line at the target; hidden from screen readers, as the text beside it says the same."""
    mark = "" if target is None else f'<i class="target" style="left:{100 * min(1, target):.1f}%"></i>'
    more = " more" if share > 1 else ""
    return f'<span class="bar{more}" aria-hidden="true"><i style="width:{100 * min(1, share):.1f}%"></i>{mark}</span>'


def figures(drawings: Iterable[tuple[str, str, str]]) -> str:
    """Figures side by side where there is room: title (text), explanation and drawing (contents) of each."""
    drawn = "".join(
        f"<figure>\n<figcaption><h3>{escape(title)}</h3><p>{explanation}</p></figcaption>\n{drawing}\n</figure>\n"
        for title, explanation, drawing in drawings
    )
    return f'<div class="figures">\n{drawn}</div>\n' if drawn else ""


def wide_figure(title: str, explanation: str, drawing: str, width: float) -> str:
    """A figure as wide as the page, scrolled, also by keyboard, where the page is narrower than it can be read.

    Args:
        title: Text above it.
        explanation: Content beneath the title.
        drawing: Content.
        width: Points that it needs to be read.
    """
    return (
        f'<figure class="wide">\n<figcaption><h3>{escape(title)}</h3><p>{explanation}</p></figcaption>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">'
        f'<div style="min-width:{width:.0f}px">{drawing}</div></div>\n</figure>\n'
    )
