"""Progress bars on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from transprune.runtime import processes

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")

_showing: list[Progress] = []
"""The display on the terminal, if any: a terminal has room for one, and inner bars join it."""


class EpochProgress:
    """The bar of one phase; does nothing where there is no terminal."""

    def __init__(self, display: Progress | None = None, task: TaskID | None = None) -> None:
        self._display = display
        self._task = task

    def advance(self, text: str = "", *, steps: int = 1) -> None:
        """Moves the bar on.

        Args:
            text: The latest figures, shown beside the bar.
            steps: How far.
        """
        if self._display is not None and self._task is not None:
            self._display.update(self._task, advance=steps, text=text)


@contextmanager
def epoch_progress(description: str, epochs: int) -> Iterator[EpochProgress]:
    """Shows a bar on standard error while the block runs, if that is a terminal.

    Example:
        >>> with epoch_progress("search", epochs=2) as progress:
        ...     progress.advance("loss 0.41  top-1 92.0 %")
    """
    if not _is_terminal():
        yield EpochProgress()
        return
    with _bar(description, epochs) as (display, task):
        yield EpochProgress(display, task)


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Hands on the items one by one and shows how many there were.

    Args:
        iterable: The items.
        description: What is being done with them.
        total: How many items there will be; None asks the iterable for its length.
    """
    if not _is_terminal():
        yield from iterable
        return
    with _bar(description, total) as (display, task):
        yield from display.track(iterable, total=total, task_id=task)


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and processes.is_first()


@contextmanager
def _bar(description: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """A bar in a display of its own, or a passing one more in the display that is on the terminal."""
    if _showing:
        display = _showing[0]
        task = display.add_task(description, total=total, text="")
        try:
            yield display, task
        finally:
            display.remove_task(task)
        return
    with _new_display() as display:
        _showing.append(display)
        try:
            yield display, display.add_task(description, total=total, text="")
        finally:
            _showing.clear()


def _new_display() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[text]}", markup=False),
        console=Console(stderr=True),
        # A print goes above the bar; but one that is piped into a file must stay in that pipe.
        redirect_stdout=sys.stdout.isatty(),
    )
