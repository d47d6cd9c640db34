"""Timing many things on a machine that others use too.

Things take turns, so that a busy moment meets all of them; of each, the time at a low quantile counts, since a machine
only ever adds to a time; and a piece of reference work that runs in every turn tells how fast the machine was, so that
what was measured minutes apart can be compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

from transprune.latency.backends import Call

Clock = Callable[[], int]
Advance = Callable[[int], None]
QUANTILE = 0.2
"""Which of the sorted times of one thing counts, from 0 (the shortest) to 1."""
TURNS = 3
"""Times that the turn comes to each thing."""
TOGETHER = 48
"""Things that take turns with one another: more would fill the memory."""


def low_quantile(times: Sequence[float]) -> float:
    """The time that counts."""
    return sorted(times)[int(QUANTILE * (len(times) - 1))]


def time_all(
    makers: Sequence[Callable[[], Call]],
    *,
    reference: Call,
    clock: Clock,
    repeats: int,
    advance: Advance = lambda steps: None,
) -> list[float]:
    """Times of many things, in nanoseconds, as if the machine had been equally fast all along.

    Args:
        makers: Each makes one thing ready to run; they are made a few at a time.
        reference: Work that runs in every turn.
        clock: The time now, in nanoseconds.
        repeats: Times that each runs.
        advance: Told how many were measured.
    """
    measured: list[tuple[list[float], float]] = []
    for first in range(0, len(makers), TOGETHER):
        calls = [reference, *(make() for make in makers[first : first + TOGETHER])]
        pace, *times = map(low_quantile, take_turns(calls, clock=clock, repeats=repeats))
        measured.append((times, pace))
        advance(len(times))
    usual = statistics.median(pace for _, pace in measured) if measured else 1.0
    return [time * usual / pace for times, pace in measured for time in times]


def take_turns(calls: Sequence[Call], *, clock: Clock, repeats: int, turns: int = TURNS) -> list[list[float]]:
    """Times of several calls in nanoseconds, in the order in which they were measured.

    Args:
        calls: What is timed; each runs once untimed before its part of a turn.
        clock: The time now, in nanoseconds.
        repeats: Times that each is timed, over all turns.
        turns: Times that the turn comes to each.
    """
    times: list[list[float]] = [[] for _ in calls]
    for each in _shares(repeats, turns):
        for call, found in zip(calls, times, strict=True):
            call()
            for _ in range(each):
                started = clock()
                call()
                found.append(clock() - started)
    return times


def _shares(total: int, parts: int) -> Iterator[int]:
    """A number in parts that differ by at most one; empty ones are left out."""
    for part in range(parts):
        share = total * (part + 1) // parts - total * part // parts
        if share:
            yield share
