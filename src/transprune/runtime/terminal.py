"""What people see: bars while something takes long, and tables; plain lines where that is no terminal."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from transprune.runtime import processes

if TYPE_CHECKING:
    from rich.progress import TaskID

    from transprune.runtime.display import Display

Item = TypeVar("Item")

SPEAK_SECONDS = 30.0
"""Time between two plain lines."""
REFRESH_SECONDS = 2.0
"""Time between two looks at the figures of the running epoch: on CUDA they wait for the device."""
SILENCE_SECONDS = 600.0
"""How long there may be no plain line while steps are made."""
_NUMBER = re.compile(r"[-+−±]?[\d.,]*\d( ?[%×A-Za-z]+)?")
"""A figure with at most a unit, such as `-47.3 %` or `20,400,000` or `1.8 ms`."""
_showing: list[Display] = []
"""The display on the terminal, if any: a terminal has room for one, and inner bars join it."""


def duration(seconds: float) -> str:
    """A time in the two largest units that it needs."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s"


class TimeLeft:
    """How long the rest will take, at the speed since this object was made.

    Args:
        share: How much of it was done by then, in [0, 1].
    """

    def __init__(self, share: float = 0.0) -> None:
        self._share, self._began = share, time.monotonic()

    def at(self, share: float) -> str:
        """The time left in words once `share` of the whole is done; empty while unknown, and at the end."""
        gone = share - self._share
        if gone <= 0 or share >= 1:
            return ""
        return f"about {duration((time.monotonic() - self._began) * (1 - share) / gone)} left"


def announce(text: str) -> None:
    """Prints a line on standard error, once for all processes."""
    if processes.is_first() and sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


class Bar:
    """A bar on a terminal; where there is none, plain lines.

    Args:
        description: What takes long.
        total: How far it goes; None: unknown.
        display: What is on the terminal.
        task: The bar's place in it.
    """

    def __init__(
        self, description: str, total: int | None, display: Display | None = None, task: TaskID | None = None
    ) -> None:
        self._description, self._total, self._display, self._task = description, total, display, task
        self._done, self._left, self._spoke = 0.0, TimeLeft(), time.monotonic()

    def advance(self, text: str = "", *, steps: int = 1) -> None:
        """Moves the bar on; without a terminal prints a line, if the last was some time ago.

        Args:
            text: What to say beside it; the time left is added.
            steps: How far.
        """
        self._done += steps
        left = self._left.at(self._done / self._total) if self._total else ""
        said = "  ".join(part for part in (text, left) if part)
        self.set(self._done, said)
        if self._display is None and time.monotonic() - self._spoke >= SPEAK_SECONDS:
            of_all = f" of {self._total}" if self._total else ""
            announce(f"{self._description}: {self._done:g}{of_all}  {said}".rstrip())
            self._spoke = time.monotonic()

    def set(self, done: float, text: str = "", *, below: Iterable[str] = ()) -> None:
        """Moves the bar to a place; does nothing where there is no terminal.

        Args:
            done: How far it has come.
            text: What to say beside it.
            below: Lines to show below all bars.
        """
        if self._display is not None and self._task is not None:
            self._display.lines = tuple(below)
            self._display.update(self._task, completed=done, text=text)


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Bar]:
    """Shows a bar while the block runs; one inside another disappears at its end.

    Example:
        >>> with progress_bar("timing", total=2) as shown:
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
    """Yields the items and shows how many there were.

    Args:
        iterable: The items.
        description: What is being done with them.
        total: How many items there will be.
    """
    with progress_bar(description, total) as shown:
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


class PhaseProgress:
    """What is shown of one phase.

    Args:
        phase: What it is called.
        epochs: How many there will be.
        done: How many are behind it already; a part of one counts.
        shown: Its bar.
    """

    def __init__(self, phase: str, epochs: int, done: float, shown: Bar) -> None:
        self._phase, self._epochs, self._bar = phase, epochs, shown
        self._left, self._spoke, self._last = TimeLeft(done / epochs), time.monotonic(), ""
        shown.set(done)

    def step(self, epoch: int, steps: int, total: int, figures: Callable[[], str]) -> None:
        """Shows, now and then, that a step is made.

        Args:
            epoch: Which epoch is running, from 1.
            steps: How many steps of it are made.
            total: How many it has.
            figures: Returns the epoch's figures so far; called now and then.
        """
        interval = REFRESH_SECONDS if is_terminal() else SILENCE_SECONDS
        if time.monotonic() - self._spoke < interval or not processes.is_first():
            return
        with processes.alone():
            line = f"epoch {epoch}, step {steps} of {total}: {figures()}"
        self._say(epoch - 1 + min(1.0, steps / total), line, self._last)

    def epoch(self, epoch: int, figures: str, seconds: float) -> None:
        """Shows that an epoch is over.

        Args:
            epoch: Which one, from 1.
            figures: What came out of it.
            seconds: How long it took.
        """
        self._last = f"epoch {epoch} of {self._epochs}: {figures}  {duration(seconds)}"
        self._say(epoch, self._last)

    def _say(self, done: float, *lines: str) -> None:
        """Shows the newest line and, on a terminal, that of the last epoch below it."""
        left = self._left.at(done / self._epochs)
        self._bar.set(done, left, below=[line for line in lines if line])
        if not is_terminal():
            announce(f"{self._phase}: {lines[0]}" + (f"  {left}" if left else ""))
        self._spoke = time.monotonic()


@contextmanager
def phase_progress(phase: str, epochs: int, done: float = 0.0) -> Iterator[PhaseProgress]:
    """Shows how far a phase has come while the block runs.

    Args:
        phase: What it is called.
        epochs: How many there will be.
        done: How many are behind it already.

    Example:
        >>> with phase_progress("search", epochs=40) as progress:
        ...     progress.step(1, 50, 200, lambda: "loss 0.93")
        ...     progress.epoch(1, "loss 0.41  top-1 92.0 %", seconds=61.0)
    """
    with progress_bar(phase, epochs) as shown:
        yield PhaseProgress(phase, epochs, done, shown)


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
        from transprune.runtime.display import print_boxed

        print_boxed(title, columns, cells, is_right)
    else:
        _print_plain(title, by_column, is_right)


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
