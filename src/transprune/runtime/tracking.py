"""Trackers: functions that are told everything that a journal records."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any

Tracker = Callable[[Mapping[str, Any]], None]
"""Called with each record of a journal as it is made; `docs/journal.md` lists the records."""

log = logging.getLogger("transprune.run")


class Guarded:
    """A tracker whose errors are warned of, the first time, and change nothing.

    Args:
        tracker: The tracker; it gets a copy of each record of its own.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self._has_failed = tracker, False

    def __call__(self, entry: Mapping[str, Any]) -> None:
        """Hands a record on."""
        try:
            self._tracker(copy.deepcopy(entry))
        except (Exception, SystemExit) as error:  # a tracker may raise anything
            if not self._has_failed:
                log.warning(
                    "the tracker %s failed on a record %r (%s: %s); the run goes on, and later failures are not said",
                    getattr(self._tracker, "__qualname__", type(self._tracker).__qualname__),
                    entry["event"],
                    type(error).__name__,
                    error,
                )
            self._has_failed = True
