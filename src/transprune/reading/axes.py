"""Which entries of which axes are cut together: axes as terms.

Every axis of every tensor in a trace is an `Axis`. It starts as an atom, and what the operators do to it gives it a
form: a concatenation of axes, a product of axes (one axis viewed as several, the first varying slowest), or another
axis that it is the same as. Axes that an operator needs to agree are unified (`transprune.reading.unification`). An
atom that remains is a set of entries that may be cut freely.
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
        factors = tuple(inner for factor in form.factors for inner in factors_of(settle(factor)) if inner.size != 1)
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


def factors_of(axis: Axis) -> tuple[Axis, ...]:
    """The factors of a product that is settled; of another axis itself."""
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


def concatenate(parts: Sequence[Axis]) -> Axis:
    """Several axes, one after the other."""
    return settle(Axis(sum(part.size for part in parts), Concatenated(tuple(parts)), is_unbound=False))


def multiply(factors: Sequence[Axis]) -> Axis:
    """Several axes flattened into one, the last varying fastest."""
    size = prod(factor.size for factor in factors)
    return settle(Axis(size, Multiplied(tuple(factors)), is_unbound=False))
