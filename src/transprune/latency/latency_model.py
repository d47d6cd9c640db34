"""A model of latency: what every layer adds to the time of a network, for every pair of its widths.

    latency = Σ over kept layers of max(0, scale · time + traffic · elements + handing · handed on + dispatch)

The first is the operator's own time as measured alone (`TimeTable`). Alone, an operator also pays
for being called from outside, and for bringing its input and output into the blocks of channels that its kernel wants:
in a network that happens once or not at all, and not between two operators that both have blocks. A network also pays
for sums, pools and activations that belong to no operator. All of it grows with the elements that a layer reads and
writes, with those that it hands on in blocks, and with the number of layers, so three numbers, fitted on whole
networks, account for it (`fit_correction`); they may be negative.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from transprune.architecture import Architecture
from transprune.costs import Channels, Cost, Layer
from transprune.errors import LatencyError
from transprune.latency.operators import TimedOperator
from transprune.space import SearchSpace

PREFERENCE = 1e-2
"""Weight of the preference for no correction; an equation of one network has the weight 1."""
FULL = 3.0
"""Weight of the equation of the full network."""


def milliseconds(nanoseconds: float) -> str:
    """A time in milliseconds, to four digits at least.

    Example:
        >>> milliseconds(4_200_000), milliseconds(23_456)
        ('4.200 ms', '0.02346 ms')
    """
    digits = 3 - math.floor(math.log10(nanoseconds / 1e6)) if nanoseconds > 0 else 0
    return f"{nanoseconds / 1e6:,.{max(3, digits)}f} ms"


@dataclass(frozen=True, kw_only=True)
class TimeTable:
    """Times of an operator for pairs of an input and an output width."""

    operator: TimedOperator
    inputs: tuple[int, ...]
    """Input widths that were measured, ascending."""
    outputs: tuple[int, ...]
    """Output widths that were measured, ascending."""
    nanoseconds: tuple[tuple[int, ...], ...]
    """[inputs, outputs]: the time of one batch."""

    def parts(self, batch: int, inputs: int, outputs: int) -> tuple[float, float, float, float]:
        """The terms of the time in a network: time alone, elements read or written, elements handed on, 1.

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


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What turns the time of an operator alone into its part of a network's time."""

    scale: float = 1.0
    """Of the time alone."""
    traffic: float = 0.0
    """Nanoseconds for every element read or written."""
    handing: float = 0.0
    """Nanoseconds for every element that may be handed on in blocks."""
    dispatch: float = 0.0
    """Nanoseconds for every layer."""

    def apply(self, parts: Sequence[float]) -> float:
        """The time in a network of what `TimeTable.parts` says of an operator, nanoseconds."""
        factors = self.scale, self.traffic, self.handing, self.dispatch
        return sum(factor * part for factor, part in zip(factors, parts, strict=True))


def fit_correction(
    space: SearchSpace,
    tables: Mapping[Layer, TimeTable],
    batch_size: int,
    architectures: Sequence[Architecture],
    measured: Sequence[float],
) -> Correction:
    """The correction that explains whole networks best.

    Each gives one equation: its measured time is the corrected sum over its operators. The numbers of the correction
    solve all equations best, each relative to its time, with a faint preference for no correction at all. The full
    network counts more than others: shares of its latency are what budgets ask for.

    Args:
        space: The space of the architectures.
        tables: Times of every layer alone.
        batch_size: Samples in a batch.
        architectures: What was measured whole.
        measured: Times in nanoseconds.
    """
    from scipy.optimize import lsq_linear

    sums = np.array([_parts(space, tables, batch_size, architecture) for architecture in architectures])
    rows = sums / np.array(measured)[:, None]
    typical = np.maximum(np.abs(rows).mean(0), 1e-30)  # brings the unknowns to one scale
    weights = np.array([FULL if one == space.full_architecture() else 1.0 for one in architectures])
    nothing = np.array([1.0, 0.0, 0.0, 0.0]) * typical  # no correction
    matrix = np.vstack([weights[:, None] * rows / typical, PREFERENCE * np.eye(4)])
    wanted = np.concatenate([weights, PREFERENCE * nothing])
    found = lsq_linear(matrix, wanted, bounds=([0, -np.inf, -np.inf, -np.inf], np.inf)).x / typical
    scale, traffic, handing, dispatch = map(float, found)
    return Correction(scale=scale, traffic=traffic, handing=handing, dispatch=dispatch)


def _parts(
    space: SearchSpace, tables: Mapping[Layer, TimeTable], batch_size: int, architecture: Architecture
) -> np.ndarray:
    """What `TimeTable.parts` says of the layers of an architecture, summed [4]."""
    total: np.ndarray = np.sum(
        [
            tables[layer].parts(
                batch_size, space.resolve(layer.inputs, architecture), space.resolve(layer.outputs, architecture)
            )
            for layer in space.layers
            if layer in tables and space.is_kept(layer.name, architecture)
        ],
        axis=0,
    )
    return total


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Random architectures: what the model says, and what was measured of the whole networks."""

    predicted: tuple[int, ...]
    """Nanoseconds."""
    measured: tuple[int, ...]
    """Nanoseconds."""

    @property
    def errors(self) -> tuple[float, ...]:
        """Distances as shares of the measured times."""
        return tuple(abs(one - other) / other for one, other in zip(self.predicted, self.measured, strict=True))

    @property
    def median(self) -> float:
        """The median error."""
        return statistics.median(self.errors)

    @property
    def worst(self) -> float:
        """The largest error."""
        return max(self.errors)


@dataclass(frozen=True)
class LatencyModel(Cost):
    """Latency as a kind of cost: what every layer adds to the time of one batch, in whole nanoseconds."""

    kind = name = "latency"
    is_monotone = False
    """Kernels take longer at some widths than at larger ones."""

    tables: Mapping[Layer, TimeTable]
    """Layers that are not named take no time of their own."""
    batch_size: int
    correction: Correction
    validation: Validation

    def layer_time(self, layer: Layer, inputs: int, outputs: int) -> int:
        """What a layer adds to a network's time at the given numbers of input and output elements, nanoseconds."""
        table = self.tables.get(layer)
        return (
            0 if table is None else max(0, round(self.correction.apply(table.parts(self.batch_size, inputs, outputs))))
        )

    def of_part(self, layer: Layer, part: tuple[int, int], inputs: int, outputs: int) -> int:
        """What a part of a layer's input and a part of its output add, nanoseconds.

        Where several channels are concatenated, the layer's time is shared out by their full widths, each share as if
        the other parts were cut alike: so that the times of the parts, which are chosen apart, add up.
        """
        before = _share(layer.inputs, part[0])
        after = _share(layer.outputs, part[1])
        if before == after == 1:
            return self.layer_time(layer, inputs, outputs)
        return round(before * after * self.layer_time(layer, round(inputs / before), round(outputs / after)))

    def written(self, amount: float) -> str:
        return milliseconds(amount)

    def check_trust(self, bound: float) -> None:
        """Checks that the model is good enough to search with.

        Raises:
            LatencyError: Its median error exceeds the bound.
        """
        if self.validation.median > bound:
            raise LatencyError(
                f"cannot trust the latency model: on {len(self.validation.errors)} random architectures its median "
                f"error is {100 * self.validation.median:.1f} % (worst {100 * self.validation.worst:.1f} %), expected "
                f"at most {100 * bound:.1f} %; stop what else runs on this machine and measure again, with more "
                f"repeats (repeats=...) or finer (grid=...), or accept it with a higher bound (bound=...)"
            )


def _share(channels: Channels, part: int) -> float:
    """How much of all channels a part is, in the unpruned network."""
    parts: Sequence[Channels] = channels.parts
    return parts[part].total / channels.total if len(parts) > 1 and channels.total else 1.0
