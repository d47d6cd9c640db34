"""Bars and tables drawn by rich; imported only on a terminal, because it is slow to import."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

REDRAW_SECONDS = 0.3
"""Seconds between two drawings in a notebook."""


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


class NotebookDisplay:
    """The same in the output of a notebook's cell, which is drawn anew in place."""

    lines: tuple[str, ...] = ()
    notice = ""
    """A line that stays."""

    def __init__(self) -> None:
        self._tasks: dict[TaskID, dict[str, Any]] = {}
        self._drawn = 0.0

    def __enter__(self) -> Self:
        from IPython.display import HTML, display

        self._handle, self._html = display(HTML(""), display_id=True), HTML
        return self

    def __exit__(self, *_: object) -> None:
        self._draw()

    def add_task(self, description: str, *, total: float | None, text: str) -> TaskID:
        """Adds a bar."""
        task = TaskID(len(self._tasks))
        self._tasks[task] = {"description": description, "total": total, "completed": 0, "text": text}
        self._draw()
        return task

    def update(self, task: TaskID, *, completed: float, text: str) -> None:
        """Sets a bar; drawn at most a few times a second."""
        self._tasks[task] |= {"completed": completed, "text": text}
        if time.monotonic() - self._drawn >= REDRAW_SECONDS or completed == self._tasks[task]["total"]:
            self._draw()

    def remove_task(self, task: TaskID) -> None:
        """Takes a bar away."""
        self._tasks.pop(task)
        self._draw()

    def notify(self, text: str) -> None:
        """Shows a line with the next drawing."""
        self.notice = text

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        bars = [
            f"{escape(task['description'])} <progress value='{task['completed']:g}' max='{task['total'] or 1:g}'>"
            f"</progress> {task['completed']:g} of {task['total'] or '?'} {escape(task['text'])}"
            for task in self._tasks.values()
        ]
        below = [f"<span style='opacity:.7'>{escape(line)}</span>" for line in (*self.lines, self.notice) if line]
        self._handle.update(self._html("<br>".join([*bars, *below])))


def print_folded(title: str, columns: Sequence[str], cells: list[list[str]], is_right: list[bool]) -> None:
    """Prints a table whose texts are broken where it is wider than the terminal, and whose figures are whole."""
    table = Table(
        title=Text(f"\n{title}") if title else None,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column, right in zip(columns, is_right, strict=True):
        table.add_column(Text(column), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in cells:
        table.add_row(*map(Text, row))  # Text, since rich would read a cell such as "[1, 8, 8]" as markup
    Console().print(table)
