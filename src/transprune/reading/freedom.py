"""Which axes are searched where not all can be, decided before anything is named or frozen.

Unification says what *must* be cut together. That leaves more freedom than a search can use, which relies on three
things: an axis is linear in the width of each group, a layer's cost is a table over two widths (its input's and its
output's), and what meets at the end of a stage or in a free sum are runs of channels, of which the first of one side
line up with the first of the other. Here freedom is given up until all three hold.

Example:
    Twelve channels are three heads of four. With both searched, the axis would have heads · channels entries, which is
    linear in neither alone, so one is fixed: the one that leaves less of a choice.

    >>> from transprune.reading.unification import factor
    >>> heads, each = factor(Axis(12), (3, 4))
    >>> _best([heads, each], preferred=set(), alone=set()) is each
    True

    Attention is run once for each head, and a head that goes saves a run: there the heads are preferred.

    >>> _best([heads, each], preferred={id(heads)}, alone=set()) is heads
    True

    The first heads are the first channels, whereas the first channels of each head lie scattered. Such an axis cannot
    meet another one of another width, nor can a concatenation.

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
"""From so many groups on, how many of them to keep is a real choice; of fewer, the channels in each are searched."""


def decide(coupling: Coupling) -> None:
    """Fixes and unifies axes until what is left can be searched."""
    for name in coupling.trace.constants:
        for axis in coupling.states.get(name, ()):
            mark(axis, ordered=True)  # what the forward makes itself cannot be permuted
    # Whatever is fixed or unified changes the forms that it is a part of, so all is looked at again. This ends: a round
    # fixes axes, or removes a stage's end or a free sum, and neither ever comes back.
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
    """Stages and free sums whose sides are more than runs of channels cannot differ in width."""
    for axis in _all_axes(coupling):
        match axis.form:
            case StageEnd(_, exits):
                settled = [settle(each) for each in exits]
                if all(each is settled[0] for each in settled):  # unified since: the depth decides nothing
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
    return False


def _choose_factors(coupling: Coupling) -> bool:
    """Of axes that are multiplied with each other, one is searched."""
    preferred = {id(atom) for axis in coupling.preferred for atom in atoms(axis)}
    changed = False
    # What some product already holds as its only free factor is searched in any case; choosing it here too saves the
    # others from being fixed in vain.
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
        if squared:  # as in the product of a matrix with its own transpose: no factor is left to fix instead
            for atom in squared:
                fix(atom, "it is multiplied with itself")
            continue
        chosen = _best(free, preferred, alone)
        for other in free:
            if other is not chosen:
                fix(other, "another part of the same axis is searched instead")
    return changed


def _limit_costs(coupling: Coupling) -> bool:
    """A layer's cost may depend on two widths at most: of its outputs, its inputs, and how often it runs."""
    for use in coupling.uses:
        varying = [axis for axis in (use.outputs, use.inputs, *use.positions) if searchable(axis)]
        if len(varying) > 2:
            for axis in varying[2:]:
                fix(axis, f"the cost of {use.name!r} would depend on three widths at once")
            return True
    return False


def _is_run(axis: Axis) -> bool:
    """Whether the first of its units are the first entries of an axis."""
    axis = settle(axis)
    match axis.form:
        case None | StageEnd() | FreeSum():
            return True
        case Product((outer, *inner)):
            return _is_run(outer) and all(is_fixed(each) and not has_samples(each) for each in inner)
    return is_fixed(axis)


def _best(free: Sequence[Axis], preferred: set[int], alone: set[int]) -> Axis:
    """Which of several axes that are multiplied is searched.

    What an operator is run for many times (heads), then what is searched without the others elsewhere, then the
    outermost if it leaves a real choice, else the largest.
    """
    for wanted in (preferred, alone):
        for axis in free:
            if any(id(atom) in wanted for atom in atoms(axis)):
                return axis
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
