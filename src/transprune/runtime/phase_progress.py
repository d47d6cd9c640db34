"""How far a phase of epochs has come: on a terminal bars with the latest figures, elsewhere plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transprune.runtime import processes
from transprune.runtime.duration import Pace, duration
from transprune.runtime.progress import Bar, announce, bar, is_terminal

REFRESH_SECONDS = 2.0
"""Time between two looks at the figures of the running epoch: on CUDA they wait for the device."""
SILENCE_SECONDS = 600.0
"""How long there may be no plain line while steps are made."""


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
        self._pace, self._spoke, self._last = Pace(done / epochs), time.monotonic(), ""
        shown.set(done)

    def step(self, epoch: int, steps: int, total: int, figures: Callable[[], str]) -> None:
        """Says that a step is made.

        Args:
            epoch: Which epoch is running, from 1.
            steps: How many steps of it are made.
            total: How many it has.
            figures: Gives the epoch's figures so far; asked now and then.
        """
        interval = REFRESH_SECONDS if is_terminal() else SILENCE_SECONDS
        if time.monotonic() - self._spoke < interval or not processes.is_first():
            return
        with processes.alone():
            line = f"epoch {epoch}, step {steps} of {total}: {figures()}"
        self._say(epoch - 1 + min(1.0, steps / total), line, self._last)

    def epoch(self, epoch: int, figures: str, seconds: float) -> None:
        """Says that an epoch is over.

        Args:
            epoch: Which one, from 1.
            figures: What came out of it.
            seconds: How long it took.
        """
        self._last = f"epoch {epoch} of {self._epochs}: {figures}  {duration(seconds)}"
        self._say(epoch, self._last)

    def _say(self, done: float, *lines: str) -> None:
        """Shows the newest line and, on a terminal, that of the last epoch below it."""
        left = self._pace.left(done / self._epochs)
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
    with bar(phase, epochs) as shown:
        yield PhaseProgress(phase, epochs, done, shown)
