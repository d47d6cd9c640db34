"""Which entries of which axes are cut together: axes as terms, and their unification.

Every axis of every tensor in a trace is an `Axis`. It starts as an atom, and what the operators do to it gives it a
form: a concatenation of axes, a product of axes (one axis viewed as several, the first varying slowest), or another
axis that it is the same as. Two axes that an operator needs to agree are unified: their forms are refined until their
parts match one by one. An atom that remains is a set of entries that may be cut freely; where forms do not fit
together, all that is behind them is fixed at its full size. Nothing is ever guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod


@dataclass(frozen=True)
class Same:
    """The axis is another one."""

    axis: Axis


@dataclass(frozen=True)
class Concatenated:
    """The axis is several, one after the other."""

    parts: tuple[Axis, ...]


@dataclass(frozen=True)
class Multiplied:
    """The axis is several flattened into one, the last varying fastest."""

    factors: tuple[Axis, ...]


@dataclass(frozen=True)
class Behind:
    """The axis is that of the last block that a stage keeps."""

    stage: str
    exits: tuple[Axis, ...]


@dataclass(frozen=True)
class FreeSum:
    """The axis is that of the main side of a residual sum, whose other side may have another width."""

    path: str
    main: Axis
    other: Axis


Form = Same | Concatenated | Multiplied | Behind | FreeSum | None


@dataclass(eq=False)
class Axis:
    """One axis of a tensor. Without a form it is an atom."""

    size: int
    form: Form = None
    reason: str | None = None
    """Why an atom is fixed at its full size; None: it may be cut."""
    is_batch: bool = False
    """Whether the axis counts samples, so that its size is whatever comes in."""
    layers: list[str] = field(default_factory=list)
    """Layers that produce the entries of an atom."""
    is_ordered: bool = False
    """Whether an operator reads neighbouring entries together, so that they must not be permuted."""
    is_inexact: bool = False
    """Whether leaving entries out differs from zeroing them: a statistic is taken over all of them."""
    is_unbound: bool = True
    """Whether nothing has been said of the axis yet."""


def fixed(size: int, reason: str) -> Axis:
    """An axis that keeps its size."""
    return Axis(size, reason=reason, is_unbound=False)


def settle(axis: Axis) -> Axis:
    """The axis that an axis stands for, with nested forms flattened and factors of one entry left out."""
    while isinstance(axis.form, Same):
        following = axis.form.axis
        if isinstance(following.form, Same):
            axis.form = following.form
        axis = following
    form = axis.form
    if isinstance(form, Multiplied):
        factors = tuple(inner for factor in form.factors for inner in _factors(settle(factor)) if inner.size != 1)
        if len(factors) == 1:
            axis.form = Same(factors[0])
            return factors[0]
        axis.form = Multiplied(factors) if factors else None
    elif isinstance(form, Concatenated):
        parts = tuple(inner for part in form.parts for inner in _parts(settle(part)) if inner.size != 0)
        if len(parts) == 1:
            axis.form = Same(parts[0])
            return parts[0]
        axis.form = Concatenated(parts)
    return axis


def _factors(axis: Axis) -> tuple[Axis, ...]:
    return axis.form.factors if isinstance(axis.form, Multiplied) else (axis,)


def _parts(axis: Axis) -> tuple[Axis, ...]:
    return axis.form.parts if isinstance(axis.form, Concatenated) else (axis,)


def atoms(axis: Axis) -> Iterator[Axis]:
    """The atoms behind an axis; of a free sum those of its main side."""
    axis = settle(axis)
    match axis.form:
        case Concatenated(inner) | Multiplied(inner) | Behind(_, inner):
            for each in inner:
                yield from atoms(each)
        case FreeSum(_, main, _):
            yield from atoms(main)
        case _:
            yield axis


def is_fixed(axis: Axis) -> bool:
    """Whether nothing behind an axis may be cut."""
    return all(atom.reason is not None or atom.is_batch or atom.size == 1 for atom in atoms(axis))


def fix(axis: Axis, reason: str) -> None:
    """Keeps everything behind an axis at its full size; samples stay as many as come in."""
    for atom in atoms(axis):
        atom.is_unbound = False
        if not atom.is_batch:
            atom.reason = atom.reason or reason


def mark(axis: Axis, *, ordered: bool = False, inexact: bool = False) -> None:
    """Says of everything behind an axis how it is read."""
    for atom in atoms(axis):
        atom.is_ordered |= ordered
        atom.is_inexact |= inexact


def produce(axis: Axis, layer: str) -> None:
    """Says of everything behind an axis that a layer produces it."""
    for atom in atoms(axis):
        atom.is_unbound = False
        if layer not in atom.layers:
            atom.layers.append(layer)


def is_atom(axis: Axis) -> bool:
    """Whether an axis has no form of its own."""
    return settle(axis).form is None


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
    for factor in (inner for axis in axes for inner in _factors(settle(axis)) if inner.size != 1):
        if merged and is_whole(merged[-1]) and is_whole(factor):
            merged[-1] = fixed(merged[-1].size * factor.size, next(atoms(factor)).reason or "")
        else:
            merged.append(factor)
    return merged


def is_whole(axis: Axis) -> bool:
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
    factors = [Axis(size) for size in sizes]
    if axis.form is None:
        for each in factors:
            each.reason, each.layers, each.is_unbound = axis.reason, list(axis.layers), False
            each.is_ordered, each.is_inexact = axis.is_ordered, axis.is_inexact
        if axis.is_batch:
            factors[0].is_batch = True
            for each in factors[1:]:
                each.reason = "it is a part of the batch"
        axis.form, axis.is_unbound = Multiplied(tuple(factors)), False
        return factors
    whole = Axis(axis.size, Multiplied(tuple(factors)), is_unbound=False)
    unify(axis, whole, reason)
    return factors


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
            left, right = Axis(position), Axis(axis.size - position)
            for part in (left, right):
                part.reason, part.layers, part.is_unbound = axis.reason, list(axis.layers), False
                part.is_ordered, part.is_inexact = axis.is_ordered, axis.is_inexact
                if axis.is_batch:
                    part.reason = "it is a part of the batch"
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
    return _concatenation(before), _concatenation(after)


def _concatenation(parts: Sequence[Axis]) -> Axis:
    return settle(Axis(sum(part.size for part in parts), Concatenated(tuple(parts)), is_unbound=False))


def _written_out(axis: Axis, outer: Axis, inner: Sequence[Axis], reason: str) -> Axis:
    """A product whose first factor is fixed as that many copies of the rest, one after the other."""
    fix(outer, reason)
    size = axis.size // outer.size
    rest = Axis(size, Multiplied(tuple(inner)), is_unbound=False)
    axis.form = Concatenated((rest,) * outer.size)
    return settle(axis)


def concatenate(parts: Sequence[Axis]) -> Axis:
    """Several axes, one after the other."""
    return _concatenation([settle(part) for part in parts])


def multiply(factors: Sequence[Axis]) -> Axis:
    """Several axes flattened into one, the last varying fastest."""
    size = prod(factor.size for factor in factors)
    return settle(Axis(size, Multiplied(tuple(factors)), is_unbound=False))


def _unify_parts(first: Axis, second: Axis, reason: str) -> None:
    """Makes a concatenation and another form the same: the other is split where the concatenation is."""
    if not isinstance(first.form, Concatenated):
        first, second = second, first
    assert isinstance(first.form, Concatenated)  # at least one of the two is
    sizes = [part.size for part in first.form.parts]
    for one, other in zip(split(first, sizes, reason), split(second, sizes, reason), strict=True):
        unify(one, other, reason)
