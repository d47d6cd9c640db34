"""What rich draws on a terminal: bars, and lines below them. Imported only where there is one."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text


class Display(Progress):
    """Bars with their counts and texts; lines of figures below them."""

    lines: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
            # A print goes above the bars; but one that is piped into a file must stay in that pipe.
            redirect_stdout=sys.stdout.isatty(),
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, then the lines."""
        yield from super().get_renderables()
        yield from (Text(f"  {line}", style="dim") for line in self.lines)
