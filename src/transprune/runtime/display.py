"""Bars and tables drawn by rich; imported only on a terminal, because it is slow to import."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text


class Display(Progress):
    """Bars with counts and texts, and lines of figures below them."""

    lines: tuple[str, ...] = ()
    notice = ""
    """A line that stays: what other code writes on the terminal is drawn over."""

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
            # Prints go above the bars, unless standard output is a file or pipe, where they must arrive.
            redirect_stdout=sys.stdout.isatty(),
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, then the lines, then what must stay."""
        yield from super().get_renderables()
        yield from (Text(f"  {line}", style="dim") for line in self.lines)
        if self.notice:
            yield Text(self.notice)

    def notify(self, text: str) -> None:
        """Shows a line with the next drawing; may be called in the middle of one."""
        self.notice = text


def print_boxed(title: str, columns: Sequence[str], cells: list[list[str]], is_right: list[bool]) -> None:
    """Prints a table in a box."""
    table = Table(title=Text(title) if title else None, title_justify="left")
    for column, right in zip(columns, is_right, strict=True):
        table.add_column(Text(column), justify="right" if right else "left")
    for row in cells:
        table.add_row(*map(Text, row))  # Text, since rich would read a cell such as "[1, 8, 8]" as markup
    Console().print(table)
