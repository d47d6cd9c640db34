"""The axes of tensors while a model is read: which entries of which axes must be cut together.

Every axis of every tensor in a trace is an `Axis`. It starts as an atom, whose entries may be cut freely; operators
then give it a form over other axes. The vocabulary that leads from an axis to a cost begins here:

- `Axis`: an atom or a form, refined while the operators are read (`unification`, `coupling`, `freedom`);
- `Layout`: the same forms over named groups, which say *which* entries an axis keeps (`layouts`);
- `Channels`: only *how many* it keeps, as a sum over groups, which is all that a cost needs (`transprune.costs`);
- `CostTerm`: what a layer costs at each width of one part of its input and one of its output, and `LinearSum`: a cost
  as a weighted sum of 0-1 variables (`transprune.tas`).

Axes are mutable because none is known until the last operator has been read: `x + y` in the last line of a forward may
unify two axes from its first lines. Layouts are frozen, and nothing outside the reading sees an `Axis`.

Example:
    A residual block with a grouped convolution (three groups of two channels), concatenated with a branch:

        features = stem(images)                                       # 8 channels
        inside = expand(grouped(reduce(features)))                    # 6, 6 and 8 channels
        joined = torch.cat([features + inside, branch(features)], 1)  # 8 + 4 channels

    At first, the outputs of each convolution are an atom of their own.

    >>> sizes = {"stem": 8, "reduce": 6, "grouped": 6, "expand": 8, "branch": 4}
    >>> layers = {layer: Axis(size) for layer, size in sizes.items()}
    >>> for layer, axis in layers.items():
    ...     produce(axis, layer)
    >>> stem, reduce, grouped, expand, branch = layers.values()

    The grouped convolution views its 6 inputs as 3 groups of 2, and its outputs likewise. Dropping a group drops both
    its inputs and its outputs, so the groups are one axis. A search may choose the number of groups or of channels in
    each, but not both, since costs are linear in every width. Here it chooses the groups.

    >>> from transprune.reading.unification import factor, unify
    >>> inputs, each_input = factor(reduce, (3, 2))
    >>> outputs, each_output = factor(grouped, (3, 2))
    >>> unify(inputs, outputs)
    >>> for each in (each_input, each_output):
    ...     fix(each, "another part of the same axis is searched instead")

    The sum makes its two sides one axis. The concatenation constrains nothing; it is a form over its parts.

    >>> unify(stem, expand)
    >>> joined = concatenate([stem, branch])

    In the end, five atoms are three groups, each named after its first layer, and every axis is a layout of them.

    >>> from transprune.reading.layouts import Searched, channels_of, freeze
    >>> names = {id(atom): layer for layer, axis in reversed(layers.items()) for atom in searchable(axis)}
    >>> freeze(expand, names)
    Group(name='stem', full=8)
    >>> freeze(grouped, names)
    Product(factors=(Group(name='reduce', full=3), Constant(full=2)))
    >>> freeze(joined, names)
    Concatenation(parts=(Group(name='stem', full=8), Group(name='branch', full=4)))

    The cost of the next layer depends only on the number of channels: two for each group, or the sum of two widths.

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
"""`Axis` while a model is read, `Layout` afterwards."""


@dataclass(frozen=True)
class Concatenation(Generic[Part]):
    """Parts, one after the other."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Product(Generic[Part]):
    """Factors flattened into one axis, the last varying fastest."""

    factors: tuple[Part, ...]


@dataclass(frozen=True)
class StageEnd(Generic[Part]):
    """The output of a stage, which is that of the last block it keeps."""

    stage: str
    exits: tuple[Part, ...]
    """The output of each block, in order."""


@dataclass(frozen=True)
class FreeSum(Generic[Part]):
    """A residual sum whose two sides may differ in width; it is as wide as its main side."""

    path: str
    """Path of the shortcut, whose projection brings the other side to the width of the main side."""
    main: Part
    other: Part


Composite = Concatenation[Part] | Product[Part] | StageEnd[Part] | FreeSum[Part]


def members(form: Composite[Part] | Same | None) -> tuple[Part, ...]:
    """What a form is made of; nothing for anything else."""
    match form:
        case Concatenation(inner) | Product(inner) | StageEnd(_, inner):
            return inner
        case FreeSum(_, main, other):
            return main, other
    return ()


@dataclass(frozen=True)
class Same:
    """The axis was unified with another. Layouts have no such form: there, both are one value."""

    axis: Axis


@dataclass(eq=False)
class Axis:
    """One axis of a tensor; an atom if it has no form."""

    size: int
    form: Same | Composite[Axis] | None = None
    reason: str | None = None
    """Why an atom is fixed at its full size; None if it may be cut."""
    is_batch: bool = False
    """Whether the axis counts samples, so that its size depends on the input."""
    layers: list[str] = field(default_factory=list)
    """Layers that produce the entries of an atom."""
    is_ordered: bool = False
    """Whether an operator reads neighbouring entries together, so that they must not be permuted."""
    is_inexact: bool = False
    """Whether dropping entries differs from zeroing them, because a statistic is taken over all of them."""
    is_unbound: bool = True
    """Whether nothing is known about the axis yet."""


def fixed(size: int, reason: str) -> Axis:
    """A new axis that keeps its size."""
    return Axis(size, reason=reason, is_unbound=False)


def settle(axis: Axis) -> Axis:
    """The axis that an axis stands for, with nested forms flattened, factors of size 1 and empty parts left out."""
    while isinstance(axis.form, Same):
        following = axis.form.axis
        if isinstance(following.form, Same):
            axis.form = following.form  # path halving: long chains of sums would make every look-up slow
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
    """The factors of a settled product; any other axis is its own only factor."""
    return axis.form.factors if isinstance(axis.form, Product) else (axis,)


def _parts(axis: Axis) -> tuple[Axis, ...]:
    return axis.form.parts if isinstance(axis.form, Concatenation) else (axis,)


def atoms(axis: Axis) -> Iterator[Axis]:
    """The atoms that make up an axis; for a free sum, those of its main side."""
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
    """Whether no atom of an axis may be cut."""
    return not searchable(axis)


def searchable(axis: Axis) -> list[Axis]:
    """The atoms of an axis whose size may be chosen."""
    return [atom for atom in atoms(axis) if atom.reason is None and atom.size > 1 and not atom.is_batch]


def has_samples(axis: Axis) -> bool:
    """Whether any atom of an axis counts samples."""
    return any(atom.is_batch for atom in atoms(axis))


def units(axis: Axis, atom: Axis) -> int:
    """How many entries of an axis go with one entry of an atom, such as the channels of one group."""
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
    """Fixes the atoms of an axis at their full size, except those that count samples."""
    for atom in atoms(axis):
        atom.is_unbound = False
        if not atom.is_batch:
            atom.reason = atom.reason or reason


def mark(axis: Axis, *, ordered: bool = False, inexact: bool = False) -> None:
    """Marks the atoms of an axis as ordered or inexact."""
    for atom in atoms(axis):
        atom.is_ordered |= ordered
        atom.is_inexact |= inexact


def produce(axis: Axis, layer: str) -> None:
    """Records that a layer produces the atoms of an axis."""
    for atom in atoms(axis):
        atom.is_unbound = False
        if layer not in atom.layers:
            atom.layers.append(layer)


def is_atom(axis: Axis) -> bool:
    """Whether an axis is an atom once it is settled."""
    return settle(axis).form is None


def concatenate(parts: Sequence[Axis]) -> Axis:
    """The concatenation of several axes."""
    return settle(Axis(sum(part.size for part in parts), Concatenation(tuple(parts)), is_unbound=False))


def multiply(factors: Sequence[Axis]) -> Axis:
    """The product of several axes, the last varying fastest."""
    size = prod(factor.size for factor in factors)
    return settle(Axis(size, Product(tuple(factors)), is_unbound=False))
