"""How axes are made the same: their forms are refined until the parts match one by one.

Where forms do not fit together, all that is behind them is fixed at its full size. Nothing is ever guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from transprune.reading.axes import (
    Axis,
    Behind,
    Concatenated,
    FreeSum,
    Multiplied,
    Same,
    atoms,
    concatenate,
    factors_of,
    fix,
    fixed,
    is_fixed,
    produce,
    settle,
)


def collapse(axis: Axis) -> Axis:
    """Makes the exits of a stage one axis, and a free sum its main side, for operators that need one thing."""
    axis = settle(axis)
    match axis.form:
        case Behind(_, (first, *others)):
            axis.form = Same(first)
            for other in others:
                unify(first, other)
            return collapse(first)
        case FreeSum(_, main, _):
            axis.form = Same(main)
            return collapse(main)
        case _:
            return axis


def unify(first: Axis, second: Axis, reason: str = "its uses do not fit together") -> None:
    """Makes two axes of one size the same.

    Args:
        first: One axis.
        second: The other.
        reason: Why both are fixed where their forms cannot be brought together.
    """
    first, second = settle(first), settle(second)
    if first is second or first.size == second.size == 1:
        return
    if first.size != second.size:
        fix(first, reason)
        fix(second, reason)
        return
    if second.is_unbound and second.form is None:
        _bind(second, first)
    elif first.is_unbound and first.form is None:
        _bind(first, second)
    else:
        _unify_forms(collapse(first), collapse(second), reason)


def _bind(atom: Axis, axis: Axis) -> None:
    """Lets an atom of which nothing was said be an axis."""
    for layer in atom.layers:
        produce(axis, layer)
    atom.form, atom.is_unbound = Same(axis), False
    axis.is_unbound = False


def _unify_forms(first: Axis, second: Axis, reason: str) -> None:
    if first is second:
        return
    if first.form is not None and second.form is None:
        first, second = second, first
    if first.form is None:
        _join(first, second, reason)
    elif isinstance(first.form, Multiplied) and isinstance(second.form, Multiplied):
        unify_products(first.form.factors, second.form.factors, reason)
    else:
        _unify_parts(first, second, reason)


def _join(atom: Axis, axis: Axis, reason: str) -> None:
    """Lets an atom be an axis, with all that was said of it."""
    behind = list(atoms(axis))
    if any(inner is atom for inner in behind):
        fix(axis, reason)  # an axis cannot be a part of itself
        return
    if atom.is_batch or (axis.form is None and axis.is_batch):
        _join_samples(atom, axis, reason)
        return
    for inner in behind:
        for layer in atom.layers:
            produce(inner, layer)
        inner.is_ordered |= atom.is_ordered
        inner.is_inexact |= atom.is_inexact
        if atom.reason is not None and not inner.is_batch:
            inner.reason = inner.reason or atom.reason
    atom.form, axis.is_unbound = Same(axis), False


def _join_samples(first: Axis, second: Axis, reason: str) -> None:
    """Lets an axis that nobody produces count samples, as another one does."""
    if first.is_batch and second.is_batch:
        first.form = Same(second)
        return
    samples, other = (first, second) if first.is_batch else (second, first)
    if other.form is None and not other.layers:
        other.form = Same(samples)
    else:
        fix(other, reason)


def unify_products(first: Sequence[Axis], second: Sequence[Axis], reason: str) -> None:
    """Makes two products of the same size the same, factor by factor, refining those that are too coarse."""
    left, right = _merged(first), _merged(second)
    while left and right:
        one, other = left[0], right[0]
        if one.size == other.size:
            unify(one, other, reason)
            del left[0], right[0]
        elif one.size % other.size == 0:
            left[:1] = factor(one, (other.size, one.size // other.size), reason)
        elif other.size % one.size == 0:
            right[:1] = factor(other, (one.size, other.size // one.size), reason)
        else:
            break
    for axis in (*left, *right):  # what is left over did not fit
        fix(axis, reason)


def _merged(axes: Sequence[Axis]) -> list[Axis]:
    """The factors of several axes, where fixed neighbours are one: how they are made up does not matter."""
    merged: list[Axis] = []
    for factor in (inner for axis in axes for inner in factors_of(settle(axis)) if inner.size != 1):
        if merged and _is_whole(merged[-1]) and _is_whole(factor):
            merged[-1] = fixed(merged[-1].size * factor.size, next(atoms(factor)).reason or "")
        else:
            merged.append(factor)
    return merged


def _is_whole(axis: Axis) -> bool:
    """Whether an axis always has the same entries."""
    return is_fixed(axis) and not any(atom.is_batch for atom in atoms(axis))


def factor(axis: Axis, sizes: Sequence[int], reason: str = "its uses do not fit together") -> list[Axis]:
    """An axis as a product of axes of the given sizes.

    Args:
        axis: Of as many entries as the sizes multiply to.
        sizes: One for each factor.
        reason: Why the axis is fixed where that is not possible.
    """
    axis = settle(axis)
    if axis.form is None:
        factors = [_piece(axis, size) for size in sizes]
        if axis.is_batch:
            factors[0].is_batch = True
            for each in factors[1:]:
                each.reason = "it is a part of the batch"
        axis.form, axis.is_unbound = Multiplied(tuple(factors)), False
        return factors
    factors = [Axis(size) for size in sizes]
    whole = Axis(axis.size, Multiplied(tuple(factors)), is_unbound=False)
    unify(axis, whole, reason)
    return factors


def _piece(atom: Axis, size: int) -> Axis:
    """A new atom of which all holds that was said of another one, but that it counts samples."""
    return Axis(
        size,
        reason=atom.reason,
        layers=list(atom.layers),
        is_ordered=atom.is_ordered,
        is_inexact=atom.is_inexact,
        is_unbound=False,
    )


def split(axis: Axis, sizes: Sequence[int], reason: str = "its uses do not fit together") -> list[Axis]:
    """An axis as a concatenation of axes of the given sizes.

    Args:
        axis: Of as many entries as the sizes add up to.
        sizes: One for each part.
        reason: Why the axis is fixed where that is not possible.
    """
    parts: list[Axis] = []
    rest = axis
    for size in sizes[:-1]:
        part, rest = _split_at(collapse(rest), size, reason)
        parts.append(part)
    return [*parts, rest]


def _split_at(axis: Axis, position: int, reason: str) -> tuple[Axis, Axis]:
    if position in (0, axis.size):
        nothing = fixed(0, reason)
        return (nothing, axis) if position == 0 else (axis, nothing)
    match axis.form:
        case Concatenated(parts):
            return _split_concatenation(parts, position, reason)
        case Multiplied((outer, *inner)):
            step = prod(factor.size for factor in inner)
            if position % step == 0:
                before, after = _split_at(collapse(outer), position // step, reason)
                left, right = (
                    Axis(part.size * step, Multiplied((part, *inner)), is_unbound=False) for part in (before, after)
                )
                axis.form = Concatenated((left, right))
                return settle(left), settle(right)
            if (is_fixed(outer) or outer.size <= 2) and not outer.is_batch:
                return _split_at(_written_out(axis, outer, inner, reason), position, reason)
            fix(axis, reason)
            return fixed(position, reason), fixed(axis.size - position, reason)
        case _:
            left, right = _piece(axis, position), _piece(axis, axis.size - position)
            if axis.is_batch:
                left.reason = right.reason = "it is a part of the batch"
            axis.form, axis.is_unbound = Concatenated((left, right)), False
            return left, right


def _split_concatenation(parts: Sequence[Axis], position: int, reason: str) -> tuple[Axis, Axis]:
    before: list[Axis] = []
    after = [settle(part) for part in parts]
    while position >= after[0].size:
        position -= after[0].size
        before.append(after.pop(0))
        if not after:
            break
    if position and after:
        left, right = _split_at(collapse(after[0]), position, reason)
        before.append(left)
        after[0] = right
    return concatenate(before), concatenate(after)


def _written_out(axis: Axis, outer: Axis, inner: Sequence[Axis], reason: str) -> Axis:
    """A product whose first factor is fixed as that many copies of the rest, one after the other."""
    fix(outer, reason)
    size = axis.size // outer.size
    rest = Axis(size, Multiplied(tuple(inner)), is_unbound=False)
    axis.form = Concatenated((rest,) * outer.size)
    return settle(axis)


def _unify_parts(first: Axis, second: Axis, reason: str) -> None:
    """Makes a concatenation and another form the same: the other is split where the concatenation is."""
    if not isinstance(first.form, Concatenated):
        first, second = second, first
    assert isinstance(first.form, Concatenated)  # at least one of the two is
    sizes = [part.size for part in first.form.parts]
    for one, other in zip(split(first, sizes, reason), split(second, sizes, reason), strict=True):
        unify(one, other, reason)
