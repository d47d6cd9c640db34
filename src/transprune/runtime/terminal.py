"""Progress bars and tables for people; plain lines where there is no terminal."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from transprune.runtime import interruption, processes
from transprune.runtime.environment import fitted

if TYPE_CHECKING:
    from rich.progress import TaskID

    from transprune.runtime.display import Display, NotebookDisplay

Item = TypeVar("Item")

SPEAK_SECONDS = 30.0
"""Seconds between two plain lines of a bar."""
REFRESH_SECONDS = 2.0
"""Seconds between two readings of the current epoch's figures on a terminal: on CUDA, reading them waits for the
device."""
SILENCE_SECONDS = 600.0
"""The same without a terminal, where each reading prints a plain line."""
_NUMBER = re.compile(r"[-+−±]?[\d.,]*\d( ?[%×A-Za-z]+)?")
"""A figure with an optional unit, such as `-47.3 %`, `20,400,000` or `1.8 ms`."""
_is_silent: ContextVar[bool] = ContextVar("_is_silent", default=False)
_showing: list[Display | NotebookDisplay] = []
"""The display on the terminal, if any; there can only be one, which inner bars join."""


def duration(seconds: float) -> str:
    """Formats a time in its two largest units."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s"


def roughly(seconds: float) -> str:
    """An estimated time, with no more digits than an estimate deserves.

    Example:
        >>> roughly(20), roughly(143), roughly(2_000), roughly(20_000)
        ('less than a minute', 'about 2 min', 'about 35 min', 'about 5.5 h')
    """
    if seconds < 60:
        return "less than a minute"
    minutes, hours = seconds / 60, seconds / 3600
    if round(minutes) < 60:
        return f"about {round(minutes) if minutes < 10 else 5 * round(minutes / 5)} min"
    return f"about {round(2 * hours) / 2 if hours < 10 else round(hours):g} h"


def milliseconds(nanoseconds: float) -> str:
    """Formats a time in milliseconds, with at least four digits.

    Example:
        >>> milliseconds(4_200_000), milliseconds(23_456)
        ('4.200 ms', '0.02346 ms')
    """
    return f"{nanoseconds / 1e6:,.{max(3, decimals(nanoseconds / 1e6))}f} ms"


def decimals(value: float) -> int:
    """How many digits behind the point make four in all; fewer than none for thousands."""
    return 3 - math.floor(math.log10(value)) if value > 0 else 0


class TimeLeft:
    """An estimate of the time left, from the speed since it was created.

    Args:
        share: The share already done at that moment, in [0, 1].
    """

    def __init__(self, share: float = 0.0) -> None:
        self._share, self._began = share, time.monotonic()

    def at(self, share: float) -> str:
        """The time left once `share` is done, in words; empty while unknown, and at the end."""
        gone = share - self._share
        if gone <= 0 or share >= 1:
            return ""
        return f"about {duration((time.monotonic() - self._began) * (1 - share) / gone)} left"


@contextmanager
def silent() -> Iterator[None]:
    """Shows no progress inside the block, neither bars nor lines."""
    token = _is_silent.set(True)
    try:
        yield
    finally:
        _is_silent.reset(token)


def announce(text: str) -> None:
    """Prints a line on standard error, or in a notebook, which shows that as a fault, on standard output; once."""
    place = sys.stdout if is_notebook() else sys.stderr
    if processes.is_first() and place is not None and not _is_silent.get():
        print(fitted(text, place), file=place, flush=True)


def say(text: str) -> None:
    """Prints a sentence on standard output."""
    print(fitted(text))


class Bar:
    """A progress bar on a terminal; plain lines without one.

    Args:
        description: What is in progress.
        total: Number of steps; None: unknown.
        display: The display on the terminal; None: there is no terminal.
        task: The bar's task in the display.
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        display: Display | NotebookDisplay | None = None,
        task: TaskID | None = None,
    ) -> None:
        self._description, self._total, self._display, self._task = description, total, display, task
        self._done, self._left, self._spoke, self._moves = 0.0, TimeLeft(), time.monotonic(), 0

    def advance(self, text: str = "", *, steps: int = 1) -> None:
        """Advances the bar; without a terminal, prints a line at most every `SPEAK_SECONDS`.

        Args:
            text: Text beside the bar, to which the time left is added.
            steps: Number of steps done.
        """
        self._done, self._moves = self._done + steps, self._moves + 1
        left = self._left.at(self._done / self._total) if self._total and self._moves > 1 else ""
        said = "  ".join(part for part in (text, left) if part)
        self.set(self._done, said)
        if self._display is None and time.monotonic() - self._spoke >= SPEAK_SECONDS:
            of_all = f" of {self._total}" if self._total else ""
            announce(f"{self._description}: {self._done:g}{of_all}  {said}".rstrip())
            self._spoke = time.monotonic()

    def set(self, done: float, text: str = "", *, below: Iterable[str] = ()) -> None:
        """Sets the bar; does nothing without a terminal.

        Args:
            done: Number of steps done.
            text: Text beside the bar.
            below: Lines below all bars.
        """
        if self._display is not None and self._task is not None:
            self._display.lines = tuple(below)
            self._display.update(self._task, completed=done, text=text)


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Bar]:
    """Shows a bar while the block runs; a bar inside another one disappears at its end.

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
    """Yields the items and shows progress.

    Args:
        iterable: The items.
        description: What is in progress.
        total: Number of items.
    """
    with progress_bar(description, total) as shown:
        for item in iterable:
            yield item
            shown.advance()


def is_terminal() -> bool:
    """Whether bars can be shown: in a notebook, or on a terminal with a movable cursor; in the first process alone."""
    can_move = os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    is_movable = sys.stderr is not None and sys.stderr.isatty() and can_move
    return (is_movable or is_notebook()) and processes.is_first() and not _is_silent.get()


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


@contextmanager
def _display() -> Iterator[Display | NotebookDisplay]:
    """The display on the terminal, or a new one."""
    if _showing:
        yield _showing[0]
        return
    from transprune.runtime.display import Display, NotebookDisplay

    with NotebookDisplay() if is_notebook() else Display() as display:
        _showing.append(display)
        interruption.tell.append(display.notify)
        try:
            yield display
        finally:
            interruption.tell.remove(display.notify)
            _showing.clear()


class PhaseProgress:
    """The progress of one phase.

    Args:
        phase: Its name.
        epochs: Number of epochs.
        done: Number of epochs already done; may be fractional.
        shown: Its bar.
    """

    def __init__(self, phase: str, epochs: int, done: float, shown: Bar) -> None:
        self._phase, self._epochs, self._bar = phase, epochs, shown
        self._left, self._spoke, self._last = TimeLeft(done / epochs), time.monotonic(), ""
        self._steps = 0
        shown.set(done)

    def step(self, epoch: int, steps: int, total: int, figures: Callable[[], str]) -> None:
        """Shows the current step, but not more often than every `REFRESH_SECONDS` or `SILENCE_SECONDS`.

        Args:
            epoch: The current epoch, from 1.
            steps: Number of its steps that are done.
            total: Number of its steps.
            figures: Returns its figures so far; called only when they are shown.
        """
        self._steps += 1
        interval = REFRESH_SECONDS if is_terminal() else SILENCE_SECONDS
        if time.monotonic() - self._spoke < interval or not processes.is_first():
            return
        with processes.alone():
            line = f"epoch {epoch}, step {steps} of {total}: {figures()}"
        self._say(epoch - 1 + min(1.0, steps / total), line, self._last)

    def epoch(self, epoch: int, figures: str, seconds: float, *, brief: str = "") -> None:
        """Shows a finished epoch.

        Args:
            epoch: The epoch, from 1.
            figures: Its figures.
            seconds: The time that it took.
            brief: What a plain line says instead, with the time left.
        """
        start = f"epoch {epoch} of {self._epochs}: "
        self._last = f"{start}{figures}  {duration(seconds)}"
        self._say(epoch, self._last if is_terminal() or not brief else f"{start}{brief}")

    def _say(self, done: float, *lines: str) -> None:
        """Shows the newest line and, on a terminal, that of the last epoch below it."""
        left = "" if self._steps == 1 else self._left.at(done / self._epochs)  # the first step has more to do
        self._bar.set(done, left, below=[line for line in lines if line])
        if not is_terminal():
            announce(f"{self._phase}: {lines[0]}" + (f"  {left.removeprefix('about ')}" if left else ""))
        self._spoke = time.monotonic()


@contextmanager
def phase_progress(phase: str, epochs: int, done: float = 0.0) -> Iterator[PhaseProgress]:
    """Shows the progress of a phase while the block runs; see `PhaseProgress` for the arguments.

    Example:
        >>> with phase_progress("search", epochs=40) as progress:
        ...     progress.step(1, 50, 200, lambda: "loss 0.93")
        ...     progress.epoch(1, "loss 0.41  top-1 92.0 %", seconds=61.0)
    """
    with progress_bar(phase, epochs) as shown:
        yield PhaseProgress(phase, epochs, done, shown)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table to standard output, with columns of figures right-aligned.

    Args:
        title: A line above the table; empty for none.
        columns: The headings.
        rows: The cells of each row, one for each heading; shown with `str`.

    Raises:
        ValueError: A row does not have one cell for each heading.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    by_column = [list(column) for column in zip(columns, *cells, strict=True)]
    is_right = [_is_numeric(column[1:]) for column in by_column]
    if sys.stdout.isatty():
        from transprune.runtime.display import print_folded

        print_folded(title, columns, cells, is_right)
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
