"""Times in words, and how long something will still take."""

from __future__ import annotations

import time


def duration(seconds: float) -> str:
    """A time in the two largest units that it needs."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s"


class Pace:
    """How long the rest of something will take, if it goes on as fast as since this object was made.

    Args:
        share: How much of it was done by then, in [0, 1].
    """

    def __init__(self, share: float = 0.0) -> None:
        self._share, self._began = share, time.monotonic()

    def left(self, share: float) -> str:
        """The time left in words where `share` of the whole is done; empty as long as nobody knows, and at the end."""
        gone = share - self._share
        if gone <= 0 or share >= 1:
            return ""
        return f"about {duration((time.monotonic() - self._began) * (1 - share) / gone)} left"
