"""Who is told what a run records: TensorBoard, and functions of the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transprune.errors import OptionError
from transprune.runtime import Tracker, UserFunction

MakeTracker = Callable[[Path], Tracker]
"""Makes a tracker of the run in a folder."""


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Who is told; it decides nothing about the result."""

    tensorboard: bool = False
    """Write curves, heat maps of the probabilities and the configuration to RUN/tensorboard, for TensorBoard."""
    tracker: tuple[str, ...] = ()
    """Functions of yours that are called with each record of the journal, FILE.py:FUNCTION or package.module:FUNCTION,
    whose code is run."""

    def loaded(self) -> list[MakeTracker]:
        """What makes the trackers.

        Raises:
            OptionError: TensorBoard is not installed, or a function cannot be imported.
        """
        makers: list[MakeTracker] = []
        if self.tensorboard:
            from transprune.reports.tensorboard import TensorBoardTracker, require_tensorboard

            require_tensorboard()
            makers.append(TensorBoardTracker)
        return makers + [_always(_imported(name)) for name in self.tracker]


def _imported(name: str) -> Tracker:
    with UserFunction(name=name, purpose="use the tracker", error=OptionError).imported() as tracker:
        return tracker


def _always(tracker: Tracker) -> MakeTracker:
    return lambda _: tracker
