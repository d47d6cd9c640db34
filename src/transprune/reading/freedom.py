"""Decides which axes are searched where not all can be, before anything is named or frozen.

Unification says what *must* be cut together. That leaves more freedom than a search can use. It relies on three things:
the size of an axis is linear in every width; the cost of a layer is a table over two widths, of its input and of its
output; and whatever meets at the end of a stage or in a free sum lines up from the first channel on. Here axes are
fixed or unified until all three hold.

Example:
    Twelve channels are three heads of four. With both searched, their number would be a product of two widths, so one
    is fixed: the one that offers less choice.

    >>> from transprune.reading.unification import factor
    >>> heads, each = factor(Axis(12), (3, 4))
    >>> _best([heads, each], preferred=set(), alone=set()) is each
    True

    Attention runs once for each head, and dropping a head saves a run, so there the heads are preferred.

    >>> _best([heads, each], preferred={id(heads)}, alone=set()) is heads
    True

    The first heads are the first channels, but the first channels of each head lie scattered. Such an axis cannot be
    added to one of another width; nor can a concatenation.

    >>> from transprune.reading.axes import concatenate, fixed, multiply
    >>> whole = fixed(4, "it is an output of the network")
    >>> [_is_run(axis) for axis in (multiply([heads, whole]), multiply([whole, each]), concatenate([heads, whole]))]
    [True, False, False]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transprune.reading.axes import (
    Axis,
    FreeSum,
    Product,
    Same,
    StageEnd,
    atoms,
    factors_of,
    fix,
    has_samples,
    is_fixed,
    mark,
    members,
    searchable,
    settle,
)
from transprune.reading.coupling import Coupling
from transprune.reading.unification import collapse, unify

MANY = 8
"""With at least this many groups, their number is searched; with fewer, the channels in each."""


def decide(coupling: Coupling) -> None:
    """Fixes and unifies axes until what is left can be searched."""
    for name in coupling.trace.constants:
        for axis in coupling.states.get(name, ()):
            mark(axis, ordered=True)  # tensors that the forward creates cannot be permuted
    # Each change affects the forms that hold the axis, so everything is checked again. This ends: a round fixes axes,
    # or removes a stage's end or a free sum, and neither comes back.
    while _mend_ends(coupling) or _choose_factors(coupling) or _limit_costs(coupling):
        pass


def _all_axes(coupling: Coupling) -> list[Axis]:
    found: dict[int, Axis] = {}
    for axes in coupling.states.values():
        for axis in axes:
            _collect(axis, found)
    for value in coupling.values.values():
        for axis in _flat(value):
            _collect(axis, found)
    return list(found.values())


def _mend_ends(coupling: Coupling) -> bool:
    """Makes the sides of a stage's end or a free sum one axis, unless their first channels line up."""
    for axis in _all_axes(coupling):
        match axis.form:
            case StageEnd(_, exits):
                settled = [settle(each) for each in exits]
                if all(each is settled[0] for each in settled):  # unified since, so the depth decides nothing
                    axis.form = Same(settled[0])
                    return True
                if not all(_is_run(each) for each in settled):
                    collapse(axis)
                    return True
            case FreeSum(_, main, other):
                if settle(main) is settle(other):
                    axis.form = Same(main)
                    return True
                if not (_is_run(main) and _is_run(other)):
                    collapse(axis)
                    unify(main, other)
                    return True
    # A sum may have been collapsed to its main side, which was split into parts since: its form is gone, and the
    # projection that its shortcut may need is left.
    for use in coupling.uses:
        if use.operator == "projection" and not (_is_run(use.inputs) and _is_run(use.outputs)):
            searched = [[id(atom) for atom in searchable(axis)] for axis in (use.inputs, use.outputs)]
            if searched[0] != searched[1]:
                unify(use.inputs, use.outputs)
                return True
    return False


def _choose_factors(coupling: Coupling) -> bool:
    """Leaves one free factor in each product and fixes the others."""
    preferred = {id(atom) for axis in coupling.preferred for atom in atoms(axis)}
    changed = False
    # The only free factor of one product is preferred in others: fixing it there would leave the first with no choice.
    products = [axis.form.factors for axis in _all_axes(coupling) if isinstance(axis.form, Product)]
    searched = [[settle(factor) for factor in factors if not is_fixed(factor)] for factors in products]
    alone = {id(atom) for factors in searched if len(factors) == 1 for atom in atoms(factors[0])}
    for factors in products:
        free = [settle(factor) for factor in factors if not is_fixed(factor) and not settle(factor).is_batch]
        if len(free) < 2:
            continue
        changed = True
        inside = [atom for factor in free for atom in {id(atom): atom for atom in searchable(factor)}.values()]
        squared = [atom for atom in inside if sum(atom is other for other in inside) > 1]
        if squared:  # a matrix times its own transpose: there is no other factor to fix
            for atom in squared:
                fix(atom, "it is multiplied with itself")
            continue
        produced = [factor for factor in free if any(atom.layers for atom in searchable(factor))]
        chosen = _best(produced or free, preferred, alone)
        for other in free:
            if other is not chosen:
                fix(other, "another part of the same axis is searched instead")
    return changed


def _limit_costs(coupling: Coupling) -> bool:
    """Fixes axes until each cost depends on two widths at most; of a layer its outputs and inputs come first."""
    for use in coupling.uses:
        why = f"the cost of {use.name!r} would depend on three widths at once"
        varying = [axis for axis in (use.outputs, use.inputs, *use.positions) if searchable(axis)]
        if len(varying) > 2:
            for axis in varying[2:]:
                fix(axis, why)
            return True
        for axis in varying:  # a product that is no axis of any tensor, such as the pairs that a bilinear layer reads
            free = [settle(factor) for factor in factors_of(settle(axis)) if searchable(factor)]
            if len(free) > 1:
                chosen = _best(free, preferred=set(), alone=set())
                for factor in [each for each in free if each is not chosen] or free:  # or a width with itself
                    fix(factor, why)
                return True
    for name in coupling.trace.parameters.values():  # of a stack of kernels, say, for each expert one
        varying = [axis for axis in coupling.states.get(name, ()) if searchable(axis)]
        if len(varying) > 2:
            fix(min(varying, key=lambda axis: axis.size), f"the size of {name!r} would depend on three widths at once")
            return True
    return False


def _is_run(axis: Axis) -> bool:
    """Whether the first units of an axis are its first entries."""
    axis = settle(axis)
    match axis.form:
        case None | StageEnd() | FreeSum():
            return True
        case Product((outer, *inner)):
            return _is_run(outer) and all(is_fixed(each) and not has_samples(each) for each in inner)
    return is_fixed(axis)


def _best(free: Sequence[Axis], preferred: set[int], alone: set[int]) -> Axis:
    """Which of several factors is searched.

    In this order: what an operator is repeated for (heads; where several queries share a key and a value, their keys or
    the queries of each, of which there are more), the only free factor of another product, the outermost if there are
    `MANY` of it, the largest.
    """
    for wanted in (preferred, alone):
        found = [axis for axis in free if any(id(atom) in wanted for atom in atoms(axis))]
        if found:
            return max(found, key=lambda axis: axis.size) if wanted is preferred else found[0]
    return free[0] if free[0].size >= MANY else max(free, key=lambda axis: axis.size)


def _collect(axis: Axis, found: dict[int, Axis]) -> None:
    axis = settle(axis)
    if id(axis) in found:
        return
    found[id(axis)] = axis
    for each in members(axis.form):
        _collect(each, found)


def _flat(value: Any) -> Iterator[Axis]:
    if isinstance(value, Axis):
        yield value
    else:
        for each in value or ():
            yield from _flat(each)
