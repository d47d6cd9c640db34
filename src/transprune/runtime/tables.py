"""Tables for people: boxed on a terminal, plain and aligned in files and pipes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"[-+−±]?[\d.,]*\d( ?[%×A-Za-z]+)?")
"""A figure with at most a unit, such as `-47.3 %` or `20,400,000` or `1.8 ms`."""


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table to standard output; columns of figures are aligned at their right ends.

    Args:
        title: One line above the table; empty for none.
        columns: The headings.
        rows: The cells, as many a row as there are headings; each is shown as `str` shows it.

    Raises:
        ValueError: A row has more or fewer cells than there are headings.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    by_column = [list(column) for column in zip(columns, *cells, strict=True)]
    is_right = [_is_numeric(column[1:]) for column in by_column]
    if sys.stdout.isatty():
        _print_boxed(title, columns, cells, is_right)
    else:
        _print_plain(title, by_column, is_right)


def _print_boxed(title: str, columns: Sequence[str], cells: list[list[str]], is_right: list[bool]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, title_justify="left")
    for column, right in zip(columns, is_right, strict=True):
        table.add_column(Text(column), justify="right" if right else "left")
    for row in cells:
        table.add_row(*map(Text, row))  # Text, since a cell such as "[1, 8, 8]" is no markup
    Console().print(table)


def _print_plain(title: str, by_column: list[list[str]], is_right: list[bool]) -> None:
    widths = [max(map(len, column)) for column in by_column]
    padded = [
        [cell.rjust(width) if right else cell.ljust(width) for cell in column]
        for column, width, right in zip(by_column, widths, is_right, strict=True)
    ]
    heading, *lines = ("  ".join(row).rstrip() for row in zip(*padded, strict=True))
    print("\n".join([*([title] if title else []), heading, "  ".join("-" * width for width in widths), *lines]))


def _is_numeric(cells: list[str]) -> bool:
    figures = [cell for cell in cells if cell not in {"", "-"}]
    return bool(figures) and all(_NUMBER.fullmatch(cell) for cell in figures)
