"""Sorts channels by importance.

A smaller width keeps the first channels of a group; once sorted, these are the best ones. So a search can start from
trained weights: the sorted network computes the same, with its channels in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from transprune.errors import OptionError
from transprune.reading.axes import Concatenation, FreeSum, Product, StageEnd
from transprune.reading.layouts import Group, Layout, Sizes, full_size, groups_of, is_searched, kept_of
from transprune.reading.networks import unwrapped
from transprune.reading.reading import Reading, read
from transprune.reading.trace import Example
from transprune.runtime import choose_device
from transprune.runtime.structures import copied, outline


@dataclass(frozen=True)
class ChannelWeights:
    """A parameter that reads or writes the channels of a group."""

    name: str
    """Path of the parameter."""
    tensor: Tensor
    axis: int
    """The axis of the group's channels."""
    units: Tensor
    """For every entry along the axis, the unit of the group that it belongs to; −1 for none."""

    def by_unit(self, entries: Tensor, width: int) -> Tensor:
        """Numbers for the entries along the axis, added up by unit [width]."""
        inside = self.units >= 0
        sums = torch.zeros(width, dtype=entries.dtype, device=entries.device)
        return sums.index_add(0, self.units[inside].to(entries.device), entries[inside.to(entries.device)])


Importance = Callable[[Sequence[ChannelWeights], int], Tensor]
"""Maps all parameters of a group and its width to the importance of each unit [width]; the highest is kept first."""


def magnitude(weights: Sequence[ChannelWeights], width: int) -> Tensor:
    """The squared weights of each unit, in all layers that read or write it, each layer weighing the same."""
    total = torch.zeros(width, dtype=torch.float64)
    for each in weights:
        if each.tensor.dim() > 1:
            others = [axis for axis in range(each.tensor.dim()) if axis != each.axis]
            squares = each.by_unit(each.tensor.detach().abs().double().square().sum(others), width).cpu()
            total += squares / squares.mean().clamp_min(1e-30)
    return total


@torch.no_grad()
def sort_channels(
    model: nn.Module, example: Example, importance: Importance = magnitude, *, reading: Reading | None = None
) -> nn.Module:
    """A copy of a network with its channels in the order of their importance. It computes the same.

    Groups that a residual sum with free sides adds to each other share one order; groups whose neighbouring channels
    are read together keep theirs.

    Args:
        model: The network; untouched.
        example: An input batch, or a tuple of the forward's positional arguments.
        importance: How much each unit of a group matters.
        reading: An earlier reading of the model, which holds for the copy as well.

    Raises:
        ModelError: The model cannot be read (see `inspect`).
        OptionError: The importance is not one number for every unit, or the weights have no values.
    """
    model = unwrapped(model)
    reading = read(model, example, reading)
    choose_device(None, model)  # refuses weights without values
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return reorder_channels(model, reading, channel_orders(reading, parameters, importance))


@torch.no_grad()
def reorder_channels(model: nn.Module, reading: Reading, orders: Mapping[str, np.ndarray]) -> nn.Module:
    """A copy of a network with the units of each group in another order. It computes the same."""
    network = copied(model)
    done: set[int] = set()
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        if id(tensor) in done or name not in reading.states:
            continue
        done.add(id(tensor))
        for axis, layout in enumerate(reading.states[name]):
            if is_searched(layout):
                order = torch.from_numpy(kept_of(layout, Sizes(), orders.__getitem__)).to(tensor.device)
                tensor.copy_(tensor.index_select(axis, order))
    return network


def channel_orders(
    reading: Reading, parameters: Mapping[str, nn.Parameter], importance: Importance = magnitude
) -> dict[str, np.ndarray]:
    """The units of each group in the order of their importance.

    Raises:
        OptionError: The importance is not one number for every unit.
    """
    groups = {group.name: group for group in reading.groups}
    orders: dict[str, np.ndarray] = {}
    for tied, is_kept in tied_groups(reading):
        width = groups[tied[0]].width
        weights = [each for name in tied for each in _weights_of(reading, parameters, name)]
        if is_kept or not weights:
            orders |= {name: np.arange(groups[name].width) for name in tied}
            continue
        scores = importance(weights, width)
        if not isinstance(scores, torch.Tensor) or scores.shape != (width,) or bool(scores.isnan().any()):
            raise OptionError(
                f"cannot sort the channels of {tied[0]!r}: the importance is {outline(scores)}; expected one number "
                f"for each of the {width} units, none of them NaN"
            )
        order = torch.sort(scores.double().cpu(), descending=True, stable=True).indices.numpy()
        orders |= dict.fromkeys(tied, order)
    return orders


def _weights_of(reading: Reading, parameters: Mapping[str, nn.Parameter], group: str) -> Iterable[ChannelWeights]:
    for name, layouts in reading.states.items():
        if name in parameters:
            for axis, layout in enumerate(layouts):
                if group in groups_of(layout):
                    units = torch.from_numpy(units_of(layout, group))
                    yield ChannelWeights(name, parameters[name], axis, units)


def units_of(layout: Layout, group: str) -> np.ndarray:
    """For every entry of a layout, the unit of a group that it belongs to; −1 for none."""
    match layout:
        case Group(name, full) if name == group:
            return np.arange(full)
        case Concatenation(parts):
            return np.concatenate([units_of(part, group) for part in parts])
        case Product(factors):
            units = np.full(1, -1)
            for factor in factors:
                units = np.maximum(units[:, None], units_of(factor, group)[None, :]).reshape(-1)
            return units
        case StageEnd(_, exits):
            return units_of(exits[-1], group)
        case FreeSum(_, main, _):
            return units_of(main, group)
    return np.full(full_size(layout), -1)


def tied_groups(reading: Reading) -> list[tuple[list[str], bool]]:
    """Groups that must have one order (sides of free sums, ends of a stage), and whether they must keep theirs.

    A group keeps its order where what it is added to, or stands in for, does not come from a group itself.
    """
    leader = {group.name: group.name for group in reading.groups}
    kept: set[str] = set()

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    def tie(sides: Iterable[Layout]) -> None:
        by_side = [list(groups_of(side)) for side in sides]
        names = [find(name) for side in by_side for name in side]
        for other in names[1:]:
            leader[find(other)] = find(names[0])
        if not all(by_side):
            kept.update(names)

    for facts in reading.layers:
        if facts.use.operator == "projection":
            tie([facts.inputs, facts.outputs])
    for exits in reading.ends.values():
        tie(exits)
    together: dict[str, list[str]] = {}
    for name in leader:
        together.setdefault(find(name), []).append(name)
    groups = {group.name: group for group in reading.groups}
    return [
        (
            tied,
            any(
                name in kept or groups[name].is_ordered or groups[name].width != groups[tied[0]].width for name in tied
            ),
        )
        for tied in together.values()
    ]
