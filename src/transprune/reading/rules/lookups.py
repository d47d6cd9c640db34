"""Rules of operators that look up entries, by their positions or at the points of a grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from transprune.reading.axes import Axis, has_samples
from transprune.reading.coupling import Axes, Call, OperatorRule, origin_of
from transprune.reading.rules.pointwise import broadcast, fixed_axes
from transprune.reading.rules.shapes import fixed_result
from transprune.reading.unification import split


def index(call: Call) -> Any:
    """Looks up entries along some axes by position; the other axes stay."""
    axes = call.axes("self") or []
    numbers = list(call["indices"])
    places = [place for place, number in enumerate(numbers) if number is not None]
    by_number = [call.axes_of(numbers[place]) or [] for place in places]
    for place in places:
        last = _from_the_end(call, axes[place], numbers[place])
        if last is not None:  # it is found at any width of what stands before it
            before = axes[place].size - last
            for axis in split(axes[place], [before, 1, last - 1])[1:]:
                call.fix(axis, "reads it by number")
        elif not call.coupling.may_count_samples(axes[place]):  # else the numbers are those of the samples
            call.fix(axes[place], "reads it by number")
    if not places:
        return fixed_result(call)
    rest = [axis for place, axis in enumerate(axes) if place not in places]
    are_neighbours = places == list(range(places[0], places[-1] + 1))
    start = places[0] if are_neighbours else 0
    looked_up = broadcast(call, by_number, call.shape[start : start + len(call.shape) - len(rest)])
    return [*rest[:start], *looked_up, *rest[start:]]


def _from_the_end(call: Call, axis: Axis, number: Any) -> int | None:
    """How far from the end the one entry lies that is looked up, where the forward writes it so: `x[:, [-1]]`."""
    trace, source = call.coupling.trace, origin_of(number)
    constant = trace.constants.get(trace.state(source) or "") if isinstance(source, fx.Node) else None
    if constant is None or constant.dtype == torch.bool or constant.numel() != 1 or has_samples(axis):
        return None
    return -int(constant) if constant < 0 else None


def index_select(call: Call) -> Axes:
    """Looks up entries along one axis by position."""
    axes = list(call.axes("self") or [])
    place = int(call["dim"]) % len(axes)
    call.fix(axes[place], "reads it by number")
    axes[place] = call.fixed(call.shape[place])
    return axes


def gather(call: Call) -> Axes:
    """Looks up entries along one axis, at other positions for each entry of the other axes."""
    axes, numbers = call.axes("self") or [], call.axes("index") or []
    place = int(call["dim"]) % max(1, len(axes))
    for position, (axis, number) in enumerate(zip(axes, numbers, strict=True)):
        if position == place:
            call.fix(axis, "reads it by number")
        elif axis.size == number.size:
            call.unify(axis, number)
        else:
            call.fix(axis)
            call.fix(number)
    return numbers


def embedding(call: Call) -> Axes:
    """Looks up rows of a table."""
    rows, width = call.axes("weight") or []
    call.fix(rows, "reads it by number")
    return [*(call.axes("indices") or []), width]


def scattered(call: Call) -> Axes:
    """Writes or adds entries along one axis by position; the other axes stay."""
    axes, source = list(call.axes("self") or []), call.axes("source") or call.axes("src") or []
    place, index = int(call["dim"]) % max(1, len(axes)), call.axes("index") or []
    call.fix(axes[place], "writes it by number")
    for position, axis in enumerate(axes):
        for other in (source, index if len(index) == len(axes) > 1 else []):
            if position < len(other) and position != place:
                call.unify(axis, other[position])
            elif position < len(other):
                call.fix(other[position], "writes it by number")
    return axes


def embedding_bag(call: Call) -> Any:
    """Looks up rows of a table and adds them up, bag by bag."""
    rows, width = call.axes("weight") or []
    call.fix(rows, "reads it by number")
    [first, *others] = fixed_axes(call, call.node.meta["val"])
    bags = call.axes("offsets") or first
    if bags[0].size != first[0].size:  # the last offset is an end
        call.fix(bags[0])
        bags = first
    return [[bags[0], width], *others]


def grid_sample(call: Call) -> Axes:
    """Samples a feature map at the points of a grid."""
    features, grid = call.axes("input") or [], call.axes("grid") or []
    call.unify(features[0], grid[0])
    for axis in (*features[2:], *grid[1:]):
        call.fix(axis)
    return [features[0], features[1], *(call.fixed(size) for size in call.shape[2:])]


def affine_grid(call: Call) -> Axes:
    """Makes the points of a grid from a matrix for each sample."""
    samples, *matrix = call.axes("theta") or []
    for axis in matrix:
        call.fix(axis)
    rest = [call.fixed(int(size)) for size in call["size"][1:]]
    call.rewrite(size=[samples, *rest])
    return [samples, *rest[1:], call.fixed(len(rest) - 1)]


RULES: dict[str, OperatorRule] = {
    "index": OperatorRule(axes=index),
    "index_select": OperatorRule(axes=index_select),
    "gather": OperatorRule(axes=gather),
    **dict.fromkeys(
        ("index_add", "index_copy", "scatter", "scatter_add", "scatter_reduce", "index_reduce"),
        OperatorRule(axes=scattered),
    ),
    "embedding_bag": OperatorRule(axes=embedding_bag),
    "embedding": OperatorRule(axes=embedding),
    "affine_grid_generator": OperatorRule(axes=affine_grid),
    "grid_sampler": OperatorRule(axes=grid_sample),
}
