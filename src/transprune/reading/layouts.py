"""What the axes of tensors are made of, once it is decided what is searched: the frozen outcome of `axes`.

A layout has the form of its axis (`Concatenation`, `Product`, `StageEnd`, `FreeSum`), over named groups. For any sizes
of groups and stages it says how many entries the axis has, and which entries of the unpruned network they are.

Example:
    Eight channels of a stem, concatenated with three groups of two channels. Six channels and two groups are kept.

    >>> layout = Concatenation((Group("stem", 8), Product((Group("grouped", 3), Constant(2)))))
    >>> sizes = Sizes({"stem": 6, "grouped": 2})
    >>> size_of(layout, sizes), full_size(layout)
    (10, 14)
    >>> kept_of(layout, sizes, lambda group: np.arange(8)).tolist()
    [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]
    >>> list(groups_of(layout)), is_prefix(layout)
    (['stem', 'grouped'], False)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

import numpy as np

from transprune.costs import Channels, added, times
from transprune.reading.axes import Axis, Composite, Concatenation, FreeSum, Product, StageEnd, members, settle


@dataclass(frozen=True)
class Constant:
    """A fixed number of entries."""

    full: int


@dataclass(frozen=True)
class Samples:
    """One entry for each sample."""

    full: int
    """Samples in the example."""


@dataclass(frozen=True)
class Group:
    """The units of one width group."""

    name: str
    full: int


Layout: TypeAlias = "Constant | Samples | Group | Composite[Layout]"
"""What one axis is made of."""


@dataclass(frozen=True)
class Sizes:
    """The widths, blocks and number of samples in use.

    A plain network has one size for each choice; a supernet has the widest candidate of each group and may have several
    of a stage.
    """

    widths: Mapping[str, int] = field(default_factory=dict)
    """Units in use by group; groups that are not named use all."""
    blocks: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """Positions of the blocks of each candidate in use, by stage; stages that are not named use all blocks."""
    samples: int = 1
    is_supernet: bool = False
    """Whether a free sum is as wide as the wider of its sides; in a plain network the main side decides."""


Order = Callable[[str], np.ndarray]
"""Gives the units of a group in the order in which they are kept."""


def freeze(axis: Axis, names: Mapping[int, str], known: dict[int, Layout] | None = None) -> Layout:
    """The layout of an axis.

    Args:
        axis: An axis after all decisions.
        names: The group of each atom that is searched, by the atom's id.
        known: Layouts made so far, by the id of their axis; filled here, so that shared parts stay shared.
    """
    known = {} if known is None else known
    axis = settle(axis)
    if id(axis) not in known:
        known[id(axis)] = _frozen(axis, names, known)
    return known[id(axis)]


def _frozen(axis: Axis, names: Mapping[int, str], known: dict[int, Layout]) -> Layout:
    def frozen(axes: Sequence[Axis]) -> tuple[Layout, ...]:
        return tuple(freeze(each, names, known) for each in axes)

    match axis.form:
        case Concatenation(parts):
            return _simplified(Concatenation(frozen(parts)))
        case Product(factors):
            return product(frozen(factors))
        case StageEnd(stage, exits):
            return StageEnd(stage, frozen(exits))
        case FreeSum(path, main, other):
            return FreeSum(path, *frozen((main, other)))
    if axis.is_batch:
        return Samples(axis.size)
    name = names.get(id(axis))
    return Constant(axis.size) if name is None else Group(name, axis.size)


def product(factors: Sequence[Layout]) -> Layout:
    """The product of several layouts, the last varying fastest."""
    return _simplified(Product(tuple(factors)))


def _simplified(layout: Layout) -> Layout:
    """Replaces a layout that never varies by a constant."""
    return layout if varies(layout) else Constant(full_size(layout))


def full_size(layout: Layout) -> int:
    """Entries in the unpruned network, with the samples of the example."""
    match layout:
        case Group(_, full) | Constant(full) | Samples(full):
            return full
        case Concatenation(parts):
            return sum(map(full_size, parts))
        case Product(factors):
            return prod(map(full_size, factors))
        case StageEnd(_, exits):
            return full_size(exits[-1])
        case FreeSum(_, main, _):
            return full_size(main)


def sizes_with(group: str, layout: Layout) -> frozenset[int]:
    """The sizes, in the unpruned network, of what neighbouring factors make up that include a group.

    Example:
        >>> sorted(sizes_with("heads", Product((Constant(2), Group("heads", 3), Constant(8)))))
        [3, 6, 24, 48]
    """
    match layout:
        case Group(name, full):
            return frozenset({full} if name == group else ())
        case Concatenation(parts):
            return frozenset.intersection(*(sizes_with(group, part) for part in parts))
        case Product(factors):
            sizes = [full_size(factor) for factor in factors]
            holding = [place for place, factor in enumerate(factors) if group in groups_of(factor)]
            return frozenset(
                prod(sizes[start:end])
                for start in range(min(holding) + 1)
                for end in range(max(holding) + 1, len(sizes) + 1)
            )
        case StageEnd(_, exits):
            return frozenset.intersection(*(sizes_with(group, part) for part in exits))
        case FreeSum(_, main, _):
            return sizes_with(group, main)
    return frozenset()


def size_of(layout: Layout, sizes: Sizes) -> int:
    """How many entries are in use."""
    match layout:
        case Group(name, full):
            return sizes.widths.get(name, full)
        case Constant(full):
            return full
        case Samples():
            return sizes.samples
        case Concatenation(parts):
            return sum(size_of(part, sizes) for part in parts)
        case Product(factors):
            return prod(size_of(factor, sizes) for factor in factors)
        case StageEnd() | FreeSum():
            return max(size_of(end, sizes) for end in _in_use(layout, sizes))


def kept_of(layout: Layout, sizes: Sizes, order: Order) -> np.ndarray:
    """Which entries of the unpruned network are in use."""
    match layout:
        case Group(name, _):
            return order(name)[: size_of(layout, sizes)]
        case Constant() | Samples():
            return np.arange(size_of(layout, sizes))
        case Concatenation(parts):
            starts = np.cumsum([0, *map(full_size, parts)])
            by_part = [start + kept_of(part, sizes, order) for start, part in zip(starts, parts, strict=False)]
            return np.concatenate([*by_part, np.arange(0)])
        case Product(factors):
            kept = np.arange(1)
            for factor in factors:  # one entry of the factors so far spans all entries of this one
                kept = (kept[:, None] * full_size(factor) + kept_of(factor, sizes, order)).reshape(-1)
            return kept
        case StageEnd() | FreeSum():
            ends = [kept_of(end, sizes, order) for end in _in_use(layout, sizes)]
            return ends[0] if len(ends) == 1 else np.unique(np.concatenate(ends))


def _in_use(layout: StageEnd[Layout] | FreeSum[Layout], sizes: Sizes) -> list[Layout]:
    """The layouts that meet at the end of a stage or in a free sum: one in a plain network, several in a supernet."""
    match layout:
        case StageEnd(stage, exits):
            return [exits[max(kept)] for kept in sizes.blocks.get(stage, ((len(exits) - 1,),))]
        case FreeSum(_, main, other):
            return [main, other] if sizes.is_supernet else [main]


def groups_of(layout: Layout) -> Iterator[str]:
    """The groups that a layout depends on; for a free sum, those of its main side."""
    match layout:
        case Group(name, _):
            yield name
        case FreeSum(_, main, _):
            yield from groups_of(main)
        case Concatenation(inner) | Product(inner) | StageEnd(_, inner):
            for each in inner:
                yield from groups_of(each)


def is_searched(layout: Layout) -> bool:
    """Whether a layout depends on a group or stage."""
    match layout:
        case Group() | StageEnd():
            return True
        case Constant() | Samples():
            return False
    return any(map(is_searched, members(layout)))


def varies(layout: Layout) -> bool:
    """Whether a layout depends on groups, stages or samples, so that its entries may change."""
    match layout:
        case Group() | StageEnd() | Samples():
            return True
        case Constant():
            return False
    return any(map(varies, members(layout)))


def is_prefix(layout: Layout) -> bool:
    """Whether the first units of every group are the first entries, so that a slice cuts the axis.

    Only the last part of a concatenation and the first factor of a product may vary; anywhere else, a cut leaves gaps.
    """
    match layout:
        case Concatenation((*others, growing)) | Product((growing, *others)):
            return is_prefix(growing) and not any(map(varies, others))
        case StageEnd() | FreeSum():
            return all(map(is_prefix, members(layout)))
    return True


@dataclass(frozen=True)
class Searched:
    """The groups and stages of a search space by name; all others keep their full size."""

    groups: Collection[str] = ()
    stages: Collection[str] = ()


def channels_of(layout: Layout, searched: Searched) -> Channels:
    """How many entries a layout has, as a sum over what is searched: all that a cost depends on.

    Where the entries lie is dropped: the concatenation of a group, 3 constant channels and the group again is 2 · group
    + 3. A free sum counts as its main side, and a stage's end is named if its exits differ.
    """
    match layout:
        case Group(name, full):
            return Channels(full, name if name in searched.groups else None)
        case Constant() | Samples():
            return Channels(size_of(layout, Sizes()))  # costs are per sample
        case Concatenation(parts):
            return added(channels_of(part, searched) for part in parts)
        case Product(factors):
            counts = [channels_of(factor, searched) for factor in factors]
            varying = [channels for channels in counts if channels.sources]
            assert len(varying) <= 1, "two searched widths are multiplied"  # `freedom` fixes all but one
            constant = prod(channels.total for channels in counts if not channels.sources)
            return times(varying[0] if varying else Channels(1), constant)
        case FreeSum(_, main, _):
            return channels_of(main, searched)
        case StageEnd(stage, exits):
            ends = [channels_of(end, searched) for end in exits]
            is_chosen = stage in searched.stages and any(end != ends[0] for end in ends)
            return Channels(ends[-1].total, stage) if is_chosen else ends[-1]
