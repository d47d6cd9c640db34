"""The axes of tensors while a model is read: which entries of which axes must be cut together.

Every axis of every tensor in a trace is an `Axis`. It starts as an atom, a set of entries that may be cut freely, and
what the operators do to it gives it a form over other axes. This module begins the one vocabulary that leads from an
axis to a cost:

- `Axis`: an atom or a form, refined while the operators are read (`unification`, `coupling`, `freedom`);
- `Layout`: the same forms once all is decided, over groups, which says *which* entries an axis keeps (`layouts`);
- `Channels`: only *how many* these are, a sum over groups, which is all that a cost needs (`transprune.costs`);
- `CostTerm`: what a layer costs at each width of one part of its input and one of its output, and `LinearSum`: a cost
  as a weighted sum of 0-1 variables (`transprune.tas`).

Axes are mutable and layouts are frozen, because an axis is not known until the last operator has been read: `x + y` in
the last line of a forward makes two axes one that the first lines made. Nothing outside the reading sees an `Axis`.

Example:
    A residual block with a grouped convolution (three groups of two channels), concatenated with a branch:

        features = stem(images)                                       # 8 channels
        inside = expand(grouped(reduce(features)))                    # 6, 6 and 8 channels
        joined = torch.cat([features + inside, branch(features)], 1)  # 8 + 4 channels

    Before, the outputs of each convolution are an atom, and nothing is known of what they are joined to.

    >>> sizes = {"stem": 8, "reduce": 6, "grouped": 6, "expand": 8, "branch": 4}
    >>> layers = {layer: Axis(size) for layer, size in sizes.items()}
    >>> for layer, axis in layers.items():
    ...     produce(axis, layer)
    >>> stem, reduce, grouped, expand, branch = layers.values()

    The grouped convolution views its 6 inputs as 3 groups of 2, and its outputs likewise. A group that goes takes its
    inputs and its outputs along, so the groups are one axis. Either the groups or the channels in each could be cut; a
    search cannot choose both, since their product is not linear in either, and here the groups are searched.

    >>> from transprune.reading.unification import factor, unify
    >>> inputs, each_input = factor(reduce, (3, 2))
    >>> outputs, each_output = factor(grouped, (3, 2))
    >>> unify(inputs, outputs)
    >>> for each in (each_input, each_output):
    ...     fix(each, "another part of the same axis is searched instead")

    The sum makes its two sides one axis. The concatenation asks for nothing; it is a form over what it joins.

    >>> unify(stem, expand)
    >>> joined = concatenate([stem, branch])

    After, five atoms have become three groups, each named after its first layer, and every axis is a layout of them.

    >>> from transprune.reading.layouts import Searched, channels_of, freeze
    >>> names = {id(atom): layer for layer, axis in reversed(layers.items()) for atom in searchable(axis)}
    >>> freeze(expand, names)
    Group(name='stem', full=8)
    >>> freeze(grouped, names)
    Product(factors=(Group(name='reduce', full=3), Constant(full=2)))
    >>> freeze(joined, names)
    Concatenation(parts=(Group(name='stem', full=8), Group(name='branch', full=4)))

    What a layer behind them costs depends only on how many they are: two for each group, or the sum of two widths.

    >>> searched = Searched(groups={"stem", "reduce", "branch"})
    >>> channels_of(freeze(grouped, names), searched)
    Channels(full=3, source='reduce', repeat=2, beside=())
    >>> channels_of(freeze(joined, names), searched).sources
    ('stem', 'branch')
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Generic, TypeVar

Part = TypeVar("Part")
"""What a form is over: an `Axis` while a model is read, a `Layout` afterwards."""


@dataclass(frozen=True)
class Concatenation(Generic[Part]):
    """Several, one after the other."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Product(Generic[Part]):
    """Several flattened into one, the last varying fastest."""

    factors: tuple[Part, ...]


@dataclass(frozen=True)
class StageEnd(Generic[Part]):
    """What the last block that a stage keeps hands on."""

    stage: str
    exits: tuple[Part, ...]
    """What each block hands on, in order."""


@dataclass(frozen=True)
class FreeSum(Generic[Part]):
    """The sum of a residual block whose two sides may differ in width: it is as wide as its main side."""

    path: str
    """Of the shortcut, where a projection brings the other side to the main side's width."""
    main: Part
    other: Part


Composite = Concatenation[Part] | Product[Part] | StageEnd[Part] | FreeSum[Part]


def members(form: Composite[Part] | Same | None) -> tuple[Part, ...]:
    """What a form is over; of anything else nothing."""
    match form:
        case Concatenation(inner) | Product(inner) | StageEnd(_, inner):
            return inner
        case FreeSum(_, main, other):
            return main, other
    return ()


@dataclass(frozen=True)
class Same:
    """The axis is another one, with which it was unified. Layouts have no such form: by then both are one value."""

    axis: Axis


@dataclass(eq=False)
class Axis:
    """One axis of a tensor. Without a form it is an atom."""

    size: int
    form: Same | Composite[Axis] | None = None
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
            axis.form = following.form  # halve the path: chains of sums would make every look-up long
        axis = following
    match axis.form:
        case Product(factors):
            factors = tuple(inner for factor in factors for inner in factors_of(settle(factor)) if inner.size != 1)
            if len(factors) == 1:
                axis.form = Same(factors[0])
                return factors[0]
            axis.form = Product(factors) if factors else None
        case Concatenation(parts):
            parts = tuple(inner for part in parts for inner in _parts(settle(part)) if inner.size != 0)
            if len(parts) == 1:
                axis.form = Same(parts[0])
                return parts[0]
            axis.form = Concatenation(parts)
    return axis


def factors_of(axis: Axis) -> tuple[Axis, ...]:
    """The factors of a product that is settled; of another axis itself."""
    return axis.form.factors if isinstance(axis.form, Product) else (axis,)


def _parts(axis: Axis) -> tuple[Axis, ...]:
    return axis.form.parts if isinstance(axis.form, Concatenation) else (axis,)


def atoms(axis: Axis) -> Iterator[Axis]:
    """The atoms behind an axis; of a free sum those of its main side."""
    axis = settle(axis)
    match axis.form:
        case Concatenation(inner) | Product(inner) | StageEnd(_, inner):
            for each in inner:
                yield from atoms(each)
        case FreeSum(_, main, _):
            yield from atoms(main)
        case _:
            yield axis


def is_fixed(axis: Axis) -> bool:
    """Whether nothing behind an axis may be cut."""
    return not searchable(axis)


def searchable(axis: Axis) -> list[Axis]:
    """The atoms of an axis whose size may be chosen."""
    return [atom for atom in atoms(axis) if atom.reason is None and atom.size > 1 and not atom.is_batch]


def has_samples(axis: Axis) -> bool:
    """Whether samples are counted somewhere behind an axis."""
    return any(atom.is_batch for atom in atoms(axis))


def units(axis: Axis, atom: Axis) -> int:
    """Entries of an axis for every entry of one of its atoms: of a group's units the channels that go with each."""
    axis = settle(axis)
    match axis.form:
        case Concatenation(parts):
            return sum(units(part, atom) for part in parts if _is_behind(atom, part))
        case Product(factors):
            return prod(units(factor, atom) if _is_behind(atom, factor) else factor.size for factor in factors)
    return 1


def _is_behind(atom: Axis, axis: Axis) -> bool:
    return any(inner is atom for inner in atoms(axis))


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
    return settle(Axis(sum(part.size for part in parts), Concatenation(tuple(parts)), is_unbound=False))


def multiply(factors: Sequence[Axis]) -> Axis:
    """Several axes flattened into one, the last varying fastest."""
    size = prod(factor.size for factor in factors)
    return settle(Axis(size, Product(tuple(factors)), is_unbound=False))
