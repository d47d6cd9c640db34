"""Which axes may vary together, decided before anything is named or frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transprune.reading.axes import (
    Axis,
    Behind,
    Concatenated,
    FreeSum,
    Multiplied,
    Same,
    atoms,
    fix,
    is_fixed,
    mark,
    settle,
)
from transprune.reading.coupling import Coupling
from transprune.reading.unification import collapse, unify

MANY = 8
"""As many groups of a convolution leave a real choice of how many to keep."""


def decide(coupling: Coupling) -> None:
    """Refines the axes until every one of them is linear in the widths of the groups."""
    for name in coupling.trace.constants:
        for axis in coupling.states.get(name, ()):
            mark(axis, ordered=True)  # what the forward makes itself cannot be permuted
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
            case Behind(_, exits):
                settled = [settle(each) for each in exits]
                if all(each is settled[0] for each in settled):
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
    products = [axis.form.factors for axis in _all_axes(coupling) if isinstance(axis.form, Multiplied)]
    searched = [[settle(factor) for factor in factors if not is_fixed(factor)] for factors in products]
    alone = {id(atom) for factors in searched if len(factors) == 1 for atom in atoms(factors[0])}
    for factors in products:
        free = [settle(factor) for factor in factors if not is_fixed(factor) and not settle(factor).is_batch]
        if len(free) < 2:
            continue
        changed = True
        inside = [atom for factor in free for atom in {id(atom): atom for atom in searchable(factor)}.values()]
        squared = [atom for atom in inside if sum(atom is other for other in inside) > 1]
        if squared:
            for atom in squared:
                fix(atom, "it is multiplied with itself")
            continue
        chosen = _best(free, preferred, alone)
        for other in free:
            if other is not chosen:
                fix(other, "another part of the same axis is searched instead")
    return changed


def _limit_costs(coupling: Coupling) -> bool:
    """A layer's cost may depend on two widths at most."""
    for use in coupling.uses:
        varying = [axis for axis in (use.outputs, use.inputs, *use.positions) if searchable(axis)]
        if len(varying) > 2:
            for axis in varying[2:]:
                fix(axis, f"the cost of {use.name!r} would depend on three widths at once")
            return True
    return False


def searchable(axis: Axis) -> list[Axis]:
    """The atoms of an axis whose size may be chosen."""
    return [atom for atom in atoms(axis) if atom.reason is None and atom.size > 1 and not atom.is_batch]


def _is_run(axis: Axis) -> bool:
    """Whether the first of its units are the first entries of an axis."""
    axis = settle(axis)
    match axis.form:
        case None | Behind() | FreeSum():
            return True
        case Multiplied((outer, *inner)):
            return _is_run(outer) and all(is_fixed(each) and not _has_samples(each) for each in inner)
    return is_fixed(axis)


def _has_samples(axis: Axis) -> bool:
    return any(atom.is_batch for atom in atoms(axis))


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
    match axis.form:
        case Concatenated(inner) | Multiplied(inner) | Behind(_, inner):
            for each in inner:
                _collect(each, found)
        case FreeSum(_, main, other):
            _collect(main, found)
            _collect(other, found)


def _flat(value: Any) -> Iterator[Axis]:
    if isinstance(value, Axis):
        yield value
    else:
        for each in value or ():
            yield from _flat(each)
