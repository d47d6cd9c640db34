"""The algebra of axes: what may be cut together, held against index patterns that are really reshaped and joined.

The oracle: a tensor of numbers is cut to the entries that the layouts keep. Whatever was done to the whole tensor, done
to the cut one it gives the cut result.
"""

from __future__ import annotations

import doctest
from dataclasses import dataclass, field
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import nn

from transprune import costs
from transprune.reading import axes, freedom, layouts, unification
from transprune.reading.axes import (
    Axis,
    Concatenation,
    FreeSum,
    Product,
    StageEnd,
    atoms,
    concatenate,
    fix,
    fixed,
    has_samples,
    is_fixed,
    mark,
    multiply,
    produce,
    searchable,
    settle,
)
from transprune.reading.layouts import (
    Constant,
    Group,
    Samples,
    Sizes,
    freeze,
    full_size,
    is_prefix,
    kept_of,
    size_of,
)
from transprune.reading.reading import read
from transprune.reading.unification import collapse, factor, split, unify, unify_products
from transprune.tas import integer_program

FULL = 64
"""No tensor has more entries."""


@dataclass(repr=False)
class Tensor:
    """Numbers, the axes along which they stand, and how they follow from other tensors."""

    numbers: np.ndarray
    axes: list[Axis]

    def __repr__(self) -> str:
        return f"<{' × '.join(map(str, self.numbers.shape))}>"


@dataclass(repr=False)
class Program:
    """Tensors, and what must hold of them when they are cut: `check` of the cut tensors and the layouts."""

    tensors: list[Tensor] = field(default_factory=list)
    steps: list[tuple] = field(default_factory=list)

    def __repr__(self) -> str:
        return "\n".join(map(str, self.steps))

    def new(self, sizes: tuple[int, ...], *, samples: bool = False) -> Tensor:
        axes = [Axis(size) for size in sizes]
        if samples:
            axes[0] = Axis(sizes[0], is_batch=True, is_unbound=False)
        return self.add(Tensor(np.arange(prod(sizes)).reshape(sizes), axes))

    def add(self, tensor: Tensor) -> Tensor:
        self.tensors.append(tensor)
        return tensor

    def reshape(self, source: Tensor, sizes: tuple[int, ...]) -> Tensor:
        axes = [Axis(size) for size in sizes]
        unify_products(source.axes, axes, "reshaped")
        result = self.add(Tensor(source.numbers.reshape(sizes), axes))
        self.steps.append(("reshape", source, result))
        return result

    def permute(self, source: Tensor, order: tuple[int, ...]) -> Tensor:
        return self.add(Tensor(source.numbers.transpose(order), [source.axes[place] for place in order]))

    def cat(self, tensors: list[Tensor], place: int) -> Tensor:
        first, *others = tensors
        axes = list(first.axes)
        for other in others:
            for position, axis in enumerate(other.axes):
                if position != place:
                    unify(axes[position], axis)
        axes[place] = concatenate([tensor.axes[place] for tensor in tensors])
        result = self.add(Tensor(np.concatenate([tensor.numbers for tensor in tensors], place), axes))
        self.steps.append(("cat", tensors, place, result))
        return result

    def split(self, source: Tensor, place: int, sizes: list[int]) -> list[Tensor]:
        parts = split(source.axes[place], sizes, "split")
        numbers = np.split(source.numbers, np.cumsum(sizes)[:-1], place)
        results = [
            self.add(Tensor(part_numbers, [*source.axes[:place], part, *source.axes[place + 1 :]]))
            for part, part_numbers in zip(parts, numbers, strict=True)
        ]
        self.steps.append(("split", source, place, results))
        return results

    def equal(self, first: Tensor, second: Tensor) -> None:
        for one, other in zip(first.axes, second.axes, strict=True):
            unify(one, other, "added")
        self.steps.append(("equal", first, second))


@dataclass
class Cutting:
    """Widths for all atoms of a program that are free, with an order of their units each."""

    names: dict[int, str]
    sizes: Sizes
    orders: dict[str, np.ndarray]

    def kept(self, axis: Axis) -> np.ndarray:
        layout = freeze(axis, self.names)
        kept = kept_of(layout, self.sizes, self.orders.__getitem__)
        assert full_size(layout) == axis.size
        assert size_of(layout, self.sizes) == len(kept) == len(set(kept.tolist()))
        if is_prefix(layout) and all(np.array_equal(order, np.sort(order)) for order in self.orders.values()):
            assert kept.tolist() == list(range(len(kept)))
        return kept

    def cut(self, tensor: Tensor) -> np.ndarray:
        return tensor.numbers[np.ix_(*map(self.kept, tensor.axes))]


def cutting_of(program: Program, rng: np.random.Generator, *, shuffled: bool) -> Cutting:
    free: dict[int, Axis] = {}
    for tensor in program.tensors:
        for axis in tensor.axes:
            free |= {id(atom): atom for atom in searchable(axis)}
    names = {key: f"group {number}" for number, key in enumerate(free)}
    widths = {names[key]: int(rng.integers(1, atom.size + 1)) for key, atom in free.items()}
    orders = {
        names[key]: rng.permutation(atom.size) if shuffled else np.arange(atom.size) for key, atom in free.items()
    }
    return Cutting(names, Sizes(widths, samples=int(rng.integers(1, 3))), orders)


def check(program: Program, cutting: Cutting) -> None:
    """Done to the cut tensors, every step gives the cut results."""
    for kind, *rest in program.steps:
        if kind == "reshape":
            source, result = rest
            assert np.array_equal(cutting.cut(source).reshape(cutting.cut(result).shape), cutting.cut(result))
        elif kind == "cat":
            tensors, place, result = rest
            joined = np.concatenate([cutting.cut(tensor) for tensor in tensors], place)
            assert np.array_equal(joined, cutting.cut(result))
        elif kind == "split":
            source, place, results = rest
            sizes = [len(cutting.kept(result.axes[place])) for result in results]
            parts = np.split(cutting.cut(source), np.cumsum(sizes)[:-1], place)
            for part, result in zip(parts, results, strict=True):
                assert np.array_equal(part, cutting.cut(result))
        else:
            first, second = rest
            for one, other in zip(first.axes, second.axes, strict=True):
                assert np.array_equal(cutting.kept(one), cutting.kept(other))


def factorisations(total: int, most: int) -> list[tuple[int, ...]]:
    """All ways to write a number as a product of at most so many factors above 1."""
    if total == 1:
        return [(1,)]
    found = [(total,)]
    if most > 1:
        for first in range(2, total):
            if total % first == 0:
                found += [(first, *rest) for rest in factorisations(total // first, most - 1)]
    return found


KINDS = ("reshape", "permute", "split", "cat", "itself", "equal", "alike", "fix", "shuffle")


@st.composite
def programs(draw) -> Program:
    """Tensors and what is done to them, in any order."""
    program = Program()
    sizes = st.sampled_from([2, 3, 4, 6])
    for shape in draw(st.lists(st.lists(sizes, min_size=1, max_size=3), min_size=1, max_size=2)):
        program.new(tuple(shape) if prod(shape) <= FULL else tuple(shape[:2]))
    if draw(st.booleans()):
        program.new((2, draw(sizes), draw(sizes)), samples=True)
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=10)):
        tensor = draw(st.sampled_from(program.tensors))
        take_step(draw, program, kind, tensor, draw(st.integers(0, tensor.numbers.ndim - 1)))
    return program


def new_shape(draw, tensor: Tensor) -> tuple[int, ...]:
    """A shape of the same size, which is one for any number of samples."""
    by_sample = [has_samples(axis) for axis in tensor.axes]
    if not any(by_sample):
        return draw(st.sampled_from(factorisations(tensor.numbers.size, 4)))
    if by_sample != [True, *[False] * (len(by_sample) - 1)]:
        return tensor.numbers.shape
    first, *rest = tensor.numbers.shape
    sizes = draw(st.sampled_from(factorisations(prod(rest), 3)))
    return (first * sizes[0], *sizes[1:]) if draw(st.booleans()) else (first, *sizes)


def take_step(draw, program: Program, kind: str, tensor: Tensor, place: int) -> None:
    """One step of a kind on a tensor, where its shape allows it."""
    shape = tensor.numbers.shape
    if kind in ("split", "cat", "itself") and has_samples(tensor.axes[place]):
        return
    match kind:
        case "reshape":
            program.reshape(tensor, new_shape(draw, tensor))
        case "permute":
            program.permute(tensor, tuple(draw(st.permutations(range(len(shape))))))
        case "split" if shape[place] > 1:
            at = draw(st.integers(1, shape[place] - 1))
            program.split(tensor, place, [at, shape[place] - at])
        case "cat" if tensor.numbers.size <= FULL // 2:
            other = program.new((*shape[:place], draw(st.integers(1, 4)), *shape[place + 1 :]))
            program.cat([tensor, other], place)
        case "itself" if tensor.numbers.size <= FULL // 2:
            program.cat([tensor, tensor], place)
        case "equal":
            places = list(map(has_samples, tensor.axes))
            alike = [other for other in program.tensors if other.numbers.shape == shape]
            alike = [other for other in alike if list(map(has_samples, other.axes)) == places]
            program.equal(tensor, draw(st.sampled_from(alike)))
        case "alike":
            program.equal(tensor, program.new(shape))
        case "fix":
            fix(tensor.axes[place], "asked for")
        case "shuffle" if len(shape) == 3 and shape[1] % 2 == 0:
            pairs = program.reshape(tensor, (shape[0], 2, shape[1] // 2, shape[2]))
            program.reshape(program.permute(pairs, (0, 2, 1, 3)), shape)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(program=programs(), seed=st.integers(0, 2**16), shuffled=st.booleans())
def test_what_is_done_to_the_cut_tensors_gives_the_cut_results(program, seed, shuffled):
    rng = np.random.default_rng(seed)
    for _ in range(3):
        cutting = cutting_of(program, rng, shuffled=shuffled)
        event(f"{min(3, len(cutting.names))} free axes or more")
        check(program, cutting)


def test_the_oracle_sees_axes_that_were_not_made_the_same():
    program = Program()
    first, second = program.new((4, 2)), program.new((4, 2))
    program.steps.append(("equal", first, second))
    cutting = cutting_of(program, np.random.default_rng(0), shuffled=False)
    with pytest.raises(AssertionError):
        check(program, cutting)


def sizes_of(axis: Axis) -> list[int]:
    return [atom.size for atom in atoms(axis)]


def produced(size: int, layer: str = "layer") -> Axis:
    axis = Axis(size)
    produce(axis, layer)
    return axis


def test_an_axis_viewed_as_two_is_their_product():
    axis = produced(6)
    outer, inner = factor(axis, (2, 3))
    assert settle(axis).form == Product((outer, inner))
    assert not is_fixed(outer)
    assert not is_fixed(inner)
    assert outer.layers == inner.layers == ["layer"]


def test_views_that_refine_each_other_are_brought_together():
    axis = produced(12)
    factor(axis, (2, 6))
    factor(axis, (4, 3))
    assert sizes_of(axis) == [2, 2, 3]
    assert not is_fixed(axis)


def test_views_that_do_not_fit_are_fixed_with_the_reason():
    axis = produced(6)
    factor(axis, (2, 3))
    factor(axis, (3, 2), "viewed as 3 × 2")
    assert is_fixed(axis)
    assert {atom.reason for atom in atoms(axis)} == {"viewed as 3 × 2"}


def test_factors_of_one_entry_do_not_matter():
    axis = produced(6)
    whole, one = factor(axis, (6, 1))
    assert settle(whole) is settle(axis)
    assert one.size == 1
    assert settle(multiply([fixed(1, ""), axis, fixed(1, "")])) is settle(axis)


def test_concatenations_are_split_where_either_is():
    first = concatenate([produced(5, "a"), produced(2, "b")])
    second = concatenate([produced(3, "c"), produced(4, "d")])
    unify(first, second)
    assert sizes_of(first) == sizes_of(second) == [3, 2, 2]
    assert [sorted(atom.layers) for atom in atoms(first)] == [["a", "c"], ["a", "d"], ["b", "d"]]


def test_parts_of_a_split_know_what_was_said_of_the_whole():
    axis = produced(6)
    mark(axis, ordered=True, inexact=True)
    parts = split(axis, [2, 4])
    assert [part.size for part in parts] == [2, 4]
    assert all(part.is_ordered and part.is_inexact and part.layers == ["layer"] for part in parts)
    fix(axis, "an output")
    assert [part.reason for part in parts] == ["an output", "an output"]


def test_a_product_is_split_along_its_first_factor_or_not_at_all():
    outer, inner = produced(4, "outer"), produced(3, "inner")
    parts = split(multiply([outer, inner]), [6, 6])
    assert [sizes_of(part) for part in parts] == [[2, 3], [2, 3]]
    assert not is_fixed(outer)
    product = multiply([produced(4), produced(3)])
    split(product, [5, 7], "cut off")
    assert is_fixed(product)


def test_copies_of_an_axis_are_split_at_their_ends_and_inside():
    inner = produced(3)
    first, second = split(multiply([fixed(2, "copies"), inner]), [3, 3])
    assert settle(first) is settle(second) is settle(inner)
    assert not is_fixed(inner)
    inner = produced(5)
    first, second = split(multiply([fixed(2, "copies"), inner]), [3, 7])
    assert (sizes_of(first), sizes_of(second), sizes_of(inner)) == ([3], [2, 3, 2], [3, 2])
    assert settle(first) is next(atoms(inner))
    assert not is_fixed(inner)


def test_how_an_axis_is_read_holds_for_whatever_it_is_the_same_as():
    ordered, inexact, both = produced(4), produced(4), concatenate([produced(2), produced(2)])
    mark(ordered, ordered=True)
    mark(inexact, inexact=True)
    unify(ordered, both)
    unify(inexact, both)
    assert all(atom.is_ordered and atom.is_inexact for atom in atoms(both))


def test_an_axis_is_a_prefix_only_where_nothing_before_its_last_entries_varies():
    group, samples, constant = Group("a", 4), Samples(2), Constant(3)
    assert is_prefix(Concatenation((constant, group)))
    assert not is_prefix(Concatenation((group, constant)))
    assert not is_prefix(Concatenation((samples, constant)))
    assert not is_prefix(Concatenation((Product((samples, constant)), constant)))
    assert is_prefix(Product((group, constant)))
    assert not is_prefix(Product((constant, group)))
    assert not is_prefix(Product((group, samples)))


def test_an_axis_that_nothing_was_said_of_becomes_whatever_it_meets():
    whole, parts = Axis(6), [produced(2, "a"), produced(4, "b")]
    unify(whole, concatenate(parts))
    assert sizes_of(whole) == [2, 4]
    assert not is_fixed(whole)


def test_axes_of_two_sizes_are_never_the_same():
    first, second = produced(4), produced(6)
    unify(first, second, "added")
    assert (first.reason, second.reason) == ("added", "added")


def test_an_axis_of_one_entry_says_nothing_of_another_one():
    first, second = fixed(1, "a"), produced(1)
    unify(first, second)
    assert second.reason is None


def test_what_is_fixed_anywhere_is_fixed_everywhere():
    first, second, third = produced(4), produced(4), produced(4)
    unify(first, second)
    unify(second, third)
    fix(first, "an output")
    assert settle(third).reason == "an output"


def test_the_first_reason_is_kept():
    axis = produced(4)
    fix(axis, "first")
    fix(axis, "second")
    assert axis.reason == "first"


def test_fixed_neighbours_are_one_whatever_they_are_made_of():
    rows, columns, channels = fixed(4, "rows"), fixed(6, "columns"), produced(5)
    after = [Axis(3), Axis(8), Axis(5)]
    unify_products([rows, columns, channels], after, "reshaped")
    assert settle(after[2]) is settle(channels)
    assert not is_fixed(channels)
    assert all(is_fixed(axis) for axis in after[:2])


def test_samples_are_never_cut_and_never_fixed():
    samples = Axis(2, is_batch=True, is_unbound=False)
    fix(samples, "an output")
    assert samples.reason is None
    assert is_fixed(samples)
    channels = produced(2)
    unify(samples, channels, "added")
    assert channels.reason == "added"
    rows = factor(multiply([samples, produced(3)]), (2, 3))
    assert rows[0].is_batch or settle(rows[0]).is_batch


def test_the_exits_of_a_stage_are_one_where_one_thing_is_needed():
    first, second = produced(4, "a"), produced(4, "b")
    behind = Axis(4, StageEnd("stage", (first, second)), is_unbound=False)
    assert [atom.layers for atom in atoms(behind)] == [["a"], ["b"]]
    collapse(behind)
    assert settle(first) is settle(second) is settle(behind)
    assert sorted(settle(behind).layers) == ["a", "b"]


def test_a_free_sum_is_as_wide_as_its_main_side():
    main, other = produced(4, "main"), produced(4, "other")
    total = Axis(4, FreeSum("sum", main, other), is_unbound=False)
    assert list(atoms(total)) == [main]
    fix(total, "an output")
    assert (main.reason, other.reason) == ("an output", None)
    assert settle(collapse(total)) is main


@pytest.mark.parametrize("module", [axes, unification, freedom, layouts, costs, integer_program])
def test_the_worked_examples_come_out_as_they_say(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


class WorkedExample(nn.Module):
    """The block at the top of `axes`."""

    def __init__(self):
        super().__init__()
        self.stem, self.reduce = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)
        self.grouped, self.expand = nn.Conv2d(6, 6, 1, groups=3), nn.Conv2d(6, 8, 1)
        self.branch, self.head = nn.Conv2d(8, 4, 1), nn.Conv2d(12, 10, 1)

    def forward(self, images):
        features = self.stem(images).relu()
        inside = self.expand(self.grouped(self.reduce(features)))
        return self.head(torch.cat([features + inside, self.branch(features)], 1))


def test_a_reading_finds_what_the_worked_example_makes_by_hand():
    states = read(WorkedExample(), torch.zeros(2, 3, 4, 4)).states
    stem, units, branch = Group("stem", 8), Product((Group("reduce", 3), Constant(2))), Group("branch", 4)
    assert states["expand.weight"][:2] == (stem, units)
    assert states["grouped.weight"][:2] == (units, Constant(2))
    assert states["reduce.weight"][:2] == (units, stem)
    assert states["head.weight"][1] == Concatenation((stem, branch))
