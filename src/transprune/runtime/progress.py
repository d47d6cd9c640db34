"""Bars on standard error while something takes long; now and then a plain line where that is no terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from transprune.runtime import processes
from transprune.runtime.duration import Pace

if TYPE_CHECKING:
    from rich.progress import TaskID

    from transprune.runtime.display import Display

Item = TypeVar("Item")

SPEAK_SECONDS = 30.0
"""Time between two plain lines."""
_showing: list[Display] = []
"""The display on the terminal, if any: a terminal has room for one, and inner bars join it."""


def announce(text: str) -> None:
    """Prints a line on standard error, once for all processes."""
    if processes.is_first() and sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


class Bar:
    """A bar on a terminal; where there is none, plain lines.

    Args:
        description: What takes long.
        total: How far it goes; None: nobody knows.
        display: What is on the terminal.
        task: The bar's place in it.
    """

    def __init__(
        self, description: str, total: int | None, display: Display | None = None, task: TaskID | None = None
    ) -> None:
        self._description, self._total, self._display, self._task = description, total, display, task
        self._done, self._pace, self._spoke = 0.0, Pace(), time.monotonic()

    def advance(self, text: str = "", *, steps: int = 1) -> None:
        """Moves the bar on, or says so in a line if the last is some time ago.

        Args:
            text: What to say beside it; the time left is added.
            steps: How far.
        """
        self._done += steps
        left = self._pace.left(self._done / self._total) if self._total else ""
        said = "  ".join(part for part in (text, left) if part)
        self.set(self._done, said)
        if self._display is None and time.monotonic() - self._spoke >= SPEAK_SECONDS:
            of_all = f" of {self._total}" if self._total else ""
            announce(f"{self._description}: {self._done:g}{of_all}  {said}".rstrip())
            self._spoke = time.monotonic()

    def set(self, done: float, text: str = "", *, below: Iterable[str] = ()) -> None:
        """Moves the bar to a place; says nothing where there is no terminal.

        Args:
            done: How far it is then.
            text: What to say beside it.
            below: Lines to show below all bars.
        """
        if self._display is not None and self._task is not None:
            self._display.lines = tuple(below)
            self._display.update(self._task, completed=done, text=text)


@contextmanager
def bar(description: str, total: int | None) -> Iterator[Bar]:
    """Shows a bar while the block runs; one inside another disappears at its end.

    Example:
        >>> with bar("timing", total=2) as shown:
        ...     shown.advance("operators")
    """
    if not is_terminal():
        yield Bar(description, total)
        return
    is_inner = bool(_showing)
    with _display() as display:
        task = display.add_task(description, total=total, text="")
        try:
            yield Bar(description, total, display, task)
        finally:
            if is_inner:
                display.remove_task(task)


def track(iterable: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Hands on the items one by one and shows how many there were.

    Args:
        iterable: The items.
        description: What is being done with them.
        total: How many items there will be.
    """
    with bar(description, total) as shown:
        for item in iterable:
            yield item
            shown.advance()


def is_terminal() -> bool:
    """Whether bars can be shown: standard error is a terminal that can move its cursor, and this process speaks."""
    can_move = os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    return sys.stderr is not None and sys.stderr.isatty() and can_move and processes.is_first()


@contextmanager
def _display() -> Iterator[Display]:
    """The display that is on the terminal, or a new one."""
    if _showing:
        yield _showing[0]
        return
    from transprune.runtime.display import Display

    with Display() as display:
        _showing.append(display)
        try:
            yield display
        finally:
            _showing.clear()
