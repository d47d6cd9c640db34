"""Makes axes the same, by refining their forms until the parts match one by one.

This is unification as in a type checker, with sizes: an atom takes any form, and two forms are unified part by part.
Unlike there, it cannot fail: if two forms have no common refinement, their atoms are fixed. Nothing is guessed.

Example:
    Twelve channels that one operator views as 2 × 6 and another as 4 × 3 have a view that refines both: 2 × 2 × 3.

    >>> def sizes(axis):
    ...     return [atom.size for atom in atoms(axis)]
    >>> channels = Axis(12)
    >>> views = factor(channels, (2, 6)), factor(channels, (4, 3))
    >>> sizes(channels), is_fixed(channels)
    ([2, 2, 3], False)

    Six channels as 2 × 3 and as 3 × 2 have none: channels 0, 1, 2 are a row of the first view, but no whole number of
    rows of the second. Cutting a row of one view would leave holes in the other.

    >>> channels = Axis(6)
    >>> views = factor(channels, (2, 3)), factor(channels, (3, 2), "it is viewed as 2 × 3 and 3 × 2")
    >>> is_fixed(channels), next(atoms(channels)).reason
    (True, 'it is viewed as 2 × 3 and 3 × 2')

    Concatenations are split wherever a part of either ends: 5 + 2 and 3 + 4 are both 3 + 2 + 2.

    >>> first, second = concatenate([Axis(5), Axis(2)]), concatenate([Axis(3), Axis(4)])
    >>> unify(first, second)
    >>> sizes(first), [one is other for one, other in zip(atoms(first), atoms(second), strict=True)]
    ([3, 2, 2], [True, True, True])
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from transprune.reading.axes import (
    Axis,
    Concatenation,
    FreeSum,
    Product,
    Same,
    StageEnd,
    atoms,
    concatenate,
    factors_of,
    fix,
    fixed,
    has_samples,
    is_fixed,
    produce,
    settle,
)


def collapse(axis: Axis) -> Axis:
    """Turns the end of a stage or a free sum into a plain axis, for operators that need one."""
    # The blocks of a stage give up different widths: their outputs are still searched, but as one. A free sum loses
    # nothing, since it is as wide as its main side.
    axis = settle(axis)
    match axis.form:
        case StageEnd(_, (first, *others)):
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
        reason: Why both are fixed if their forms have no common refinement.
    """
    first, second = settle(first), settle(second)
    if first is second or first.size == second.size == 1:
        return
    if first.size != second.size:
        fix(first, reason)
        fix(second, reason)
        return
    # An axis that nothing is known about takes the other's form as it is, even a stage's end or a free sum. Otherwise
    # these are collapsed, because only plain forms can be matched part by part.
    if second.is_unbound and second.form is None:
        _bind(second, first)
    elif first.is_unbound and first.form is None:
        _bind(first, second)
    else:
        _unify_forms(collapse(first), collapse(second), reason)


def _bind(atom: Axis, axis: Axis) -> None:
    """Makes an unbound atom stand for an axis."""
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
    elif isinstance(first.form, Product) and isinstance(second.form, Product):
        unify_products(first.form.factors, second.form.factors, reason)
    else:
        _unify_parts(first, second, reason)


def _join(atom: Axis, axis: Axis, reason: str) -> None:
    """Makes an atom stand for an axis, which inherits all that is known about the atom."""
    behind = list(atoms(axis))
    if any(inner is atom for inner in behind):
        fix(axis, reason)  # the occurs check: an axis that is a part of itself has no finite form
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
    """Unifies samples with another axis: one that no layer produces counts samples too, any other is fixed."""
    # The number of channels that a layer produces depends on its weights, that of samples on the input. If they are
    # equal, that is an accident of the example, and cutting the channels would break the forward.
    if first.is_batch and second.is_batch:
        first.form = Same(second)
        return
    samples, other = (first, second) if first.is_batch else (second, first)
    if other.form is None and not other.layers:
        other.form = Same(samples)
    else:
        fix(other, reason)


def unify_products(first: Sequence[Axis], second: Sequence[Axis], reason: str) -> None:
    """Unifies two products of the same size factor by factor, splitting factors that are too coarse."""
    left, right = _merged(first), _merged(second)
    # From the outermost factor inwards, as entries lie in memory. For 12 × 5 and 3 × 20, 12 is split into 3 × 4, the
    # threes are unified, and 4 × 5 and 20 are left.
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
    for axis in (*left, *right):  # what is left does not fit; the outer factors matched and stay free
        fix(axis, reason)


def _merged(axes: Sequence[Axis]) -> list[Axis]:
    """The factors of several axes, with fixed neighbours merged into one."""
    # View 4 rows × 6 columns × 5 channels as 3 × 8 × 5: 4 × 6 and 3 × 8 have no common refinement, but all 24 entries
    # are kept in any view. Merged, they match, and the channels stay free.
    merged: list[Axis] = []
    for factor in (inner for axis in axes for inner in factors_of(settle(axis)) if inner.size != 1):
        if merged and _is_whole(merged[-1]) and _is_whole(factor):
            merged[-1] = fixed(merged[-1].size * factor.size, next(atoms(factor)).reason or "")
        else:
            merged.append(factor)
    return merged


def _is_whole(axis: Axis) -> bool:
    """Whether an axis always has the same entries."""
    return is_fixed(axis) and not has_samples(axis)


def factor(axis: Axis, sizes: Sequence[int], reason: str = "its uses do not fit together") -> list[Axis]:
    """Views an axis as a product of axes of the given sizes.

    Args:
        axis: An axis whose size is the product of the sizes.
        sizes: One for each factor.
        reason: Why the axis is fixed if it has no such view.
    """
    axis = settle(axis)
    if axis.form is None:
        factors = [_piece(axis, size) for size in sizes]
        if axis.is_batch:
            factors[0].is_batch = True
            for each in factors[1:]:
                each.reason = "it is a part of the batch"
        axis.form, axis.is_unbound = Product(tuple(factors)), False
        return factors
    # The axis has a form already: it is unified with a product of new atoms, which then stand for its factors.
    factors = [Axis(size) for size in sizes]
    whole = Axis(axis.size, Product(tuple(factors)), is_unbound=False)
    unify(axis, whole, reason)
    return factors


def _piece(atom: Axis, size: int) -> Axis:
    """A new atom that inherits all that is known about another, except that it counts samples."""
    return Axis(
        size,
        reason=atom.reason,
        layers=list(atom.layers),
        is_ordered=atom.is_ordered,
        is_inexact=atom.is_inexact,
        is_unbound=False,
    )


def split(axis: Axis, sizes: Sequence[int], reason: str = "its uses do not fit together") -> list[Axis]:
    """Views an axis as a concatenation of axes of the given sizes.

    Args:
        axis: An axis whose size is the sum of the sizes.
        sizes: One for each part.
        reason: Why the axis is fixed if it has no such view.
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
        case Concatenation(parts):
            return _split_concatenation(parts, position, reason)
        case Product((outer, *inner)):
            # 4 × 3 split at 6, between two outer entries, is 2 × 3 and 2 × 3. A split at 5 cuts through an outer entry,
            # which has a form only if the outer entries are written out one by one.
            step = prod(factor.size for factor in inner)
            if position % step == 0:
                before, after = _split_at(collapse(outer), position // step, reason)
                left, right = (
                    Axis(part.size * step, Product((part, *inner)), is_unbound=False) for part in (before, after)
                )
                axis.form = Concatenation((left, right))
                return settle(left), settle(right)
            if (is_fixed(outer) or outer.size <= 2) and not outer.is_batch:
                return _split_at(_written_out(axis, outer, inner, reason), position, reason)
            fix(axis, reason)
            return fixed(position, reason), fixed(axis.size - position, reason)
        case _:
            left, right = _piece(axis, position), _piece(axis, axis.size - position)
            if axis.is_batch:
                left.reason = right.reason = "it is a part of the batch"
            axis.form, axis.is_unbound = Concatenation((left, right)), False
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
    """Turns a product into copies of its inner factors, one for each entry of the outer factor, which is fixed."""
    # The copies are one axis, so a cut in one is a cut in all, as in the two halves of a gate. The caller fixes a free
    # outer factor for this only if its size is 2, where little choice is lost.
    fix(outer, reason)
    size = axis.size // outer.size
    rest = Axis(size, Product(tuple(inner)), is_unbound=False)
    axis.form = Concatenation((rest,) * outer.size)
    return settle(axis)


def _unify_parts(first: Axis, second: Axis, reason: str) -> None:
    """Unifies two forms, of which at least one is a concatenation, by splitting the other at the same places."""
    if not isinstance(first.form, Concatenation):
        first, second = second, first
    assert isinstance(first.form, Concatenation)  # at least one of the two is
    sizes = [part.size for part in first.form.parts]
    for one, other in zip(split(first, sizes, reason), split(second, sizes, reason), strict=True):
        unify(one, other, reason)
