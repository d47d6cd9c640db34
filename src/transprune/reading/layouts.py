"""How an axis of a tensor is made up of what is searched: the frozen outcome of `transprune.reading.axes`.

A layout answers two questions for any sizes of the groups and stages: how many entries the axis has, and which entries
of the unpruned network these are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np


@dataclass(frozen=True)
class Sizes:
    """What is in use: the widths of groups, the depths of stages, the number of samples.

    One size each makes a plain network; a supernet has the widest candidate of each group and several depths at once.
    """

    widths: Mapping[str, int] = field(default_factory=dict)
    """Units in use by group; groups that are not named have all."""
    depths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Depths in use by stage; stages that are not named have their full depth."""
    samples: int = 1
    is_supernet: bool = False
    """Whether a residual sum with free sides is as wide as the wider side; in a plain network the main side decides."""


Order = Callable[[str], np.ndarray]
"""Gives the units of a group that are in use, in order."""


class Layout:
    """What one axis is made up of."""

    full: int
    """Entries in the unpruned network."""

    @abstractmethod
    def size(self, sizes: Sizes) -> int:
        """Entries at the given sizes."""

    @abstractmethod
    def kept(self, sizes: Sizes, order: Order) -> np.ndarray:
        """Which entries of the unpruned network these are."""

    @abstractmethod
    def groups(self) -> Iterator[str]:
        """Groups that take part."""

    @property
    def is_prefix(self) -> bool:
        """Whether the first units of every group are the first entries of the axis."""
        return not any(True for _ in self.groups())

    @property
    def is_searched(self) -> bool:
        """Whether any group or stage takes part."""
        return any(True for _ in self.groups())


@dataclass(frozen=True)
class Constant(Layout):
    """Always the same entries."""

    full: int

    def size(self, sizes: Sizes) -> int:
        """All of them."""
        return self.full

    def kept(self, sizes: Sizes, order: Order) -> np.ndarray:
        """All of them."""
        return np.arange(self.full)

    def groups(self) -> Iterator[str]:
        """None."""
        return iter(())


@dataclass(frozen=True)
class Samples(Layout):
    """As many entries as there are samples."""

    full: int

    def size(self, sizes: Sizes) -> int:
        """As many as there are samples."""
        return sizes.samples

    def kept(self, sizes: Sizes, order: Order) -> np.ndarray:
        """One a sample."""
        return np.arange(sizes.samples)

    def groups(self) -> Iterator[str]:
        """None."""
        return iter(())


@dataclass(frozen=True)
class Group(Layout):
    """The units of one width group."""

    name: str
    full: int

    def size(self, sizes: Sizes) -> int:
        """The units in use."""
        return sizes.widths.get(self.name, self.full)

    def kept(self, sizes: Sizes, order: Order) -> np.ndarray:
        """The first units in their order."""
        return order(self.name)[: self.size(sizes)]

    def groups(self) -> Iterator[str]:
        """The group itself."""
        yield self.name

    @property
    def is_prefix(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class Concatenation(Layout):
    """Several layouts, one after the other."""

    parts: tuple[Layout, ...]

    @property
    def full(self) -> int:  # type: ignore[override]
        """All parts together."""
        return sum(part.full for part in self.parts)

    def size(self, sizes: Sizes) -> int:
        """All parts together."""
        return sum(part.size(sizes) for part in self.parts)

    def kept(self, sizes: Sizes, order: Order) -> np.ndarray:
        """Those of each part, behind the parts before it."""
        starts = np.cumsum([0, *(part.full for part in self.parts)])
        kept = [start + part.kept(sizes, order) for start, part in zip(starts, self.parts, strict=False)]
        return np.concatenate([*kept, np.arange(0)])

    def groups(self) -> Iterator[str]:
        """Those of the parts."""
        for part in self.parts:
            yield from part.groups()

    @property
    def is_prefix(self) -> bool:
        """Only where all but the last part are constant."""
        *before, last = self.parts
        return last.is_prefix and not any(map(varies, before))


@dataclass(frozen=True)
class Product(Layout):
    """Several layouts flattened into one, the last varying fastest."""

    factors: tuple[Layout, ...]

    @property
    def full(self) -> int:  # type: ignore[override]
        """The product of the factors."""
        return prod(factor.full for factor in self.factors)

    def size(self, sizes: Sizes) -> int:
        """The product of the factors."""
        return prod(factor.size(sizes) for factor in self.factors)

    def kept(self, sizes: Sizes, order: Order) -> np.ndarray:
        """Every combination of those of the factors."""
        kept = np.arange(1)
        for factor in self.factors:
            kept = (kept[:, None] * factor.full + factor.kept(sizes, order)).reshape(-1)
        return kept

    def groups(self) -> Iterator[str]:
        """Those of the factors."""
        for factor in self.factors:
            yield from factor.groups()

    @property
    def is_prefix(self) -> bool:
        """Only where all but the first factor are constant."""
        first, *rest = self.factors
        return first.is_prefix and not any(map(varies, rest))


@dataclass(frozen=True)
class StageEnd(Layout):
    """What the last kept block of a stage hands on."""

    stage: str
    exits: tuple[Layout, ...]

    @property
    def full(self) -> int:  # type: ignore[override]
        """What the last block hands on."""
        return self.exits[-1].full

    def in_use(self, sizes: Sizes) -> list[Layout]:
        """The exits at the depths in use."""
        return [self.exits[depth - 1] for depth in sizes.depths.get(self.stage, (len(self.exits),))]

    def size(self, sizes: Sizes) -> int:
        """The widest of the exits in use."""
        return max(exit.size(sizes) for exit in self.in_use(sizes))

    def kept(self, sizes: Sizes, order: Order) -> np.ndarray:
        """Those of all exits in use together."""
        return _union([exit.kept(sizes, order) for exit in self.in_use(sizes)])

    def groups(self) -> Iterator[str]:
        """Those of all exits."""
        for exit in self.exits:
            yield from exit.groups()

    @property
    def is_prefix(self) -> bool:
        """Where it holds for every exit."""
        return all(exit.is_prefix for exit in self.exits)

    @property
    def is_searched(self) -> bool:
        """Always: the depth decides."""
        return True


@dataclass(frozen=True)
class FreeSumEnd(Layout):
    """What a residual sum with free sides hands on."""

    path: str
    main: Layout
    other: Layout

    @property
    def full(self) -> int:  # type: ignore[override]
        """Those of the main side."""
        return self.main.full

    def size(self, sizes: Sizes) -> int:
        """Those of the main side; in a supernet those of the wider side."""
        main = self.main.size(sizes)
        return max(main, self.other.size(sizes)) if sizes.is_supernet else main

    def kept(self, sizes: Sizes, order: Order) -> np.ndarray:
        """Those of the main side; in a supernet those of both."""
        main = self.main.kept(sizes, order)
        return _union([main, self.other.kept(sizes, order)]) if sizes.is_supernet else main

    def groups(self) -> Iterator[str]:
        """Those of the main side."""
        yield from self.main.groups()

    @property
    def is_prefix(self) -> bool:
        """Where it holds for both sides."""
        return self.main.is_prefix and self.other.is_prefix

    @property
    def is_searched(self) -> bool:
        """Where it holds for either side."""
        return self.main.is_searched or self.other.is_searched


def varies(layout: Layout) -> bool:
    """Whether groups, stages or samples take part, so that the entries are not always the same."""
    match layout:
        case Samples():
            return True
        case Concatenation(inner) | Product(inner):
            return any(map(varies, inner))
    return layout.is_searched


def _union(sets: list[np.ndarray]) -> np.ndarray:
    return sets[0] if len(sets) == 1 else np.unique(np.concatenate(sets))
