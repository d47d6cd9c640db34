"""Measured times of one operator over a grid of widths, and what lies between them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from transprune.latency.operators import Operator
from transprune.layer_costs import Channels
from transprune.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class Table:
    """Times of an operator for pairs of an input and an output width."""

    operator: Operator
    inputs: tuple[int, ...]
    """Input widths that were measured, ascending."""
    outputs: tuple[int, ...]
    """Output widths that were measured, ascending."""
    nanoseconds: tuple[tuple[int, ...], ...]
    """[inputs, outputs]: the time of one batch."""

    def parts(self, batch: int, inputs: int, outputs: int) -> tuple[float, float, float, float]:
        """What the time in a network is made of: the time alone, elements read or written, elements handed on, one.

        All are 0 where the operator does not exist.
        """
        if self.operator.needs_change and inputs == outputs:
            return 0.0, 0.0, 0.0, 0.0
        traffic = self.operator.traffic(batch, inputs, outputs)
        return self.time(inputs, outputs), traffic, self.operator.handed_on(batch, inputs, outputs), 1.0

    def time(self, inputs: float, outputs: float) -> float:
        """The time at a pair of widths: where it was measured, the measured one; else bilinear between neighbours.

        Beyond the grid, the nearest width of the grid counts.
        """
        row, down = _place(self.inputs, inputs)
        column, right = _place(self.outputs, outputs)
        total = 0.0
        for below, weight_down in ((0, 1 - down), (1, down)):
            for beside, weight_right in ((0, 1 - right), (1, right)):
                if weight_down and weight_right:
                    total += weight_down * weight_right * self.nanoseconds[row + below][column + beside]
        return total


def _place(grid: Sequence[int], width: float) -> tuple[int, float]:
    """The grid point before a width, and how far it is on the way to the next."""
    if len(grid) == 1 or width <= grid[0]:
        return 0, 0.0
    before = min(bisect_right(grid, width) - 1, len(grid) - 2)
    return before, min(1.0, (width - grid[before]) / (grid[before + 1] - grid[before]))


def grid_of(space: SearchSpace, channels: Channels, most: int) -> tuple[int, ...]:
    """The widths at which channels are measured: all that the candidates can give, or as many of them as allowed.

    Args:
        space: The candidates.
        channels: Input or output of a layer.
        most: Points at most, at least 2; the smallest and the largest width are always among them.
    """
    widths = sorted(_totals(space, channels))
    if len(widths) <= most:
        return tuple(widths)
    return tuple(sorted({widths[round(point * (len(widths) - 1) / (most - 1))] for point in range(most)}))


def _totals(space: SearchSpace, channels: Channels) -> set[int]:
    """All widths that the candidates can give; of concatenations those of equal shares, since all are too many."""
    each = [_part_widths(space, part) for part in channels.parts]
    if len(each) == 1:
        return set(each[0])
    steps = max(map(len, each))
    return {
        sum(widths[round(step * (len(widths) - 1) / max(1, steps - 1))] for widths in each) for step in range(steps)
    }


def _part_widths(space: SearchSpace, part: Channels) -> list[int]:
    if part.source is None:
        return [part.full * part.repeat]
    if part.source in space.group_index:
        return [width * part.repeat for width in space.groups[space.group_index[part.source]].candidates]
    stage = space.stages[space.stage_index[part.source]]
    ends = {width * part.repeat for end in stage.outputs for width in _totals(space, end)}
    return sorted(ends)
