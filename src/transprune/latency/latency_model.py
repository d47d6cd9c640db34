"""A model of latency: the time that each layer adds to a network, for every pair of its widths.

    latency = Σ over kept layers of max(0, scale · time + traffic · elements + handing · handed on + dispatch)

`time` is that of the operator timed in isolation (`TimeTable`). In isolation, an operator also pays for the call from
outside and for converting its input and output to the blocks of channels that its kernel wants; in a network, the call
happens once, and no conversion is needed between two operators that both use blocks. A network pays in addition for
sums, pools and activations that belong to no operator. These differences grow with the elements that a layer reads and
writes, with those it hands on in blocks, and with the number of layers. Four coefficients, fitted to whole networks,
account for them (`fit_correction`); all but `scale` may be negative.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from transprune.architecture import Architecture
from transprune.costs import Channels, Cost, Layer
from transprune.errors import LatencyError
from transprune.latency.timed_operators import TimedOperator
from transprune.runtime.terminal import milliseconds
from transprune.space import SearchSpace

PREFERENCE = 1e-2
"""Weight of the preference for no correction; a measured network has weight 1."""
FULL = 3.0
"""Weight of the full network."""


@dataclass(frozen=True, kw_only=True)
class TimeTable:
    """The times of an operator in isolation, for a grid of input and output widths."""

    operator: TimedOperator
    inputs: tuple[int, ...]
    """Input widths that were measured, ascending."""
    outputs: tuple[int, ...]
    """Output widths that were measured, ascending."""
    nanoseconds: tuple[tuple[int, ...], ...]
    """Time of one batch [inputs, outputs]."""

    def parts(self, batch: int, inputs: int, outputs: int) -> tuple[float, float, float, float]:
        """The terms that the coefficients of a `Correction` multiply: time, elements, elements handed on, and 1.

        All are 0 if the operator does not exist at these widths.
        """
        if self.operator.needs_change and inputs == outputs:
            return 0.0, 0.0, 0.0, 0.0
        traffic = self.operator.traffic(batch, inputs, outputs)
        return self.time(inputs, outputs), traffic, self.operator.handed_on(batch, inputs, outputs), 1.0

    def time(self, inputs: float, outputs: float) -> float:
        """The time at a pair of widths, in nanoseconds: bilinear between grid points, clamped to the grid."""
        row, down = _place(self.inputs, inputs)
        column, right = _place(self.outputs, outputs)
        total = 0.0
        for below, weight_down in ((0, 1 - down), (1, down)):
            for beside, weight_right in ((0, 1 - right), (1, right)):
                if weight_down and weight_right:
                    total += weight_down * weight_right * self.nanoseconds[row + below][column + beside]
        return total


def _place(grid: Sequence[int], width: float) -> tuple[int, float]:
    """The index of the grid point before a width, and the position from it to the next one, in [0, 1]."""
    if len(grid) == 1 or width <= grid[0]:
        return 0, 0.0
    before = min(bisect_right(grid, width) - 1, len(grid) - 2)
    return before, min(1.0, (width - grid[before]) / (grid[before + 1] - grid[before]))


@dataclass(frozen=True, kw_only=True)
class Correction:
    """The coefficients that turn the time of an operator in isolation into its share of a network's time."""

    scale: float = 1.0
    """Factor of the time in isolation."""
    traffic: float = 0.0
    """Nanoseconds for each element read or written."""
    handing: float = 0.0
    """Nanoseconds for each element handed on in blocks."""
    dispatch: float = 0.0
    """Nanoseconds for each layer."""

    def apply(self, parts: Sequence[float]) -> float:
        """The corrected time of an operator with these `TimeTable.parts`, in nanoseconds."""
        factors = self.scale, self.traffic, self.handing, self.dispatch
        return sum(factor * part for factor, part in zip(factors, parts, strict=True))


def fit_correction(
    space: SearchSpace,
    tables: Mapping[Layer, TimeTable],
    batch_size: int,
    architectures: Sequence[Architecture],
    measured: Sequence[float],
) -> Correction:
    """Fits the correction to whole networks by least squares.

    Each network gives one equation: its measured time equals the corrected sum over its operators. The errors are
    relative to the measured times, with a slight preference for no correction. The full network counts more than the
    others, because budgets are shares of its latency.

    Args:
        space: The space of the architectures.
        tables: The times of each layer in isolation.
        batch_size: Samples per batch.
        architectures: The networks that were measured.
        measured: Their times, in nanoseconds.
    """
    from scipy.optimize import lsq_linear

    sums = np.array([_parts(space, tables, batch_size, architecture) for architecture in architectures])
    rows = sums / np.array(measured)[:, None]
    typical = np.maximum(np.abs(rows).mean(0), 1e-30)  # normalises the unknowns to one scale
    weights = np.array([FULL if one == space.full_architecture() else 1.0 for one in architectures])
    nothing = np.array([1.0, 0.0, 0.0, 0.0]) * typical
    matrix = np.vstack([weights[:, None] * rows / typical, PREFERENCE * np.eye(4)])
    wanted = np.concatenate([weights, PREFERENCE * nothing])
    found = lsq_linear(matrix, wanted, bounds=([0, -np.inf, -np.inf, -np.inf], np.inf)).x / typical
    scale, traffic, handing, dispatch = map(float, found)
    return Correction(scale=scale, traffic=traffic, handing=handing, dispatch=dispatch)


def _parts(
    space: SearchSpace, tables: Mapping[Layer, TimeTable], batch_size: int, architecture: Architecture
) -> np.ndarray:
    """The sum of `TimeTable.parts` over the layers of an architecture [4]."""
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
    """Predicted and measured latencies of random architectures that the model was not fitted to."""

    predicted: tuple[int, ...]
    """Nanoseconds."""
    measured: tuple[int, ...]
    """Nanoseconds."""

    @property
    def errors(self) -> tuple[float, ...]:
        """Absolute errors as shares of the measured times."""
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
    """Latency as a cost: the time that each layer adds to one batch, in whole nanoseconds."""

    kind = name = "latency"
    is_monotone = False
    """Kernels are slower at some widths than at larger ones."""

    tables: Mapping[Layer, TimeTable]
    """Layers without an entry take no time of their own."""
    batch_size: int
    correction: Correction
    validation: Validation

    def layer_time(self, layer: Layer, inputs: int, outputs: int) -> int:
        """The time that a layer adds to a network at these input and output widths, in nanoseconds."""
        table = self.tables.get(layer)
        return (
            0 if table is None else max(0, round(self.correction.apply(table.parts(self.batch_size, inputs, outputs))))
        )

    def of_part(self, layer: Layer, part: tuple[int, int], inputs: int, outputs: int) -> int:
        """The time that one part of a layer's input and one part of its output add, in nanoseconds.

        The widths of concatenated parts are chosen independently, but their times must add up. So each part has a share
        of the layer's time, by its full width, computed as if the other parts were cut in proportion.
        """
        before = _share(layer.inputs, part[0])
        after = _share(layer.outputs, part[1])
        if before == after == 1:
            return self.layer_time(layer, inputs, outputs)
        return round(before * after * self.layer_time(layer, round(inputs / before), round(outputs / after)))

    def written(self, amount: float) -> str:
        return milliseconds(amount)

    def check_trust(self, bound: float) -> None:
        """Checks that the model is accurate enough to search with.

        Raises:
            LatencyError: Its median error exceeds the bound.
        """
        if self.validation.median > bound:
            raise LatencyError(
                f"cannot trust the latency model: on {len(self.validation.errors)} random architectures its median "
                f"error is {100 * self.validation.median:.1f} % (worst {100 * self.validation.worst:.1f} %), expected "
                f"at most {100 * bound:.1f} %; stop what else runs on this machine and measure again, with more "
                "repeats (repeats=...; on the command line --latency.repeats and its like) or finer (grid=...), or "
                "accept it with a higher bound (bound=...)"
            )


def _share(channels: Channels, part: int) -> float:
    """The share of one part in all channels of the unpruned network."""
    parts: Sequence[Channels] = channels.parts
    return parts[part].total / channels.total if len(parts) > 1 and channels.total else 1.0
