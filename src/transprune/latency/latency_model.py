"""A model of latency: what every layer adds to the time of a network, for every pair of its widths.

    latency = Σ over kept layers of max(0, scale · time + traffic · elements + handing · handed on + dispatch)

The first is the operator's own time as measured alone (`transprune.latency.time_grids`). Alone, an operator also pays
for being called from outside, and for bringing its input and output into the blocks of channels that its kernel wants:
in a network that happens once or not at all, and not between two operators that both have blocks. A network also pays
for sums, pools and activations that belong to no operator. All of it grows with the elements that a layer reads and
writes, with those that it hands on in blocks, and with the number of layers, so three numbers, fitted on whole
networks, account for it (`transprune.latency.correction`); they may be negative.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transprune.costs import Cost
from transprune.errors import LatencyError
from transprune.latency.time_grids import Table
from transprune.layer_costs import Channels, Layer


def milliseconds(nanoseconds: float) -> str:
    """A time in milliseconds, to four digits at least.

    Example:
        >>> milliseconds(4_200_000), milliseconds(23_456)
        ('4.200 ms', '0.02346 ms')
    """
    digits = 3 - math.floor(math.log10(nanoseconds / 1e6)) if nanoseconds > 0 else 0
    return f"{nanoseconds / 1e6:,.{max(3, digits)}f} ms"


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
        """The time in a network of what `Table.parts` says of an operator, nanoseconds."""
        factors = self.scale, self.traffic, self.handing, self.dispatch
        return sum(factor * part for factor, part in zip(factors, parts, strict=True))


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

    tables: Mapping[Layer, Table]
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
        """Nanoseconds as milliseconds."""
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
