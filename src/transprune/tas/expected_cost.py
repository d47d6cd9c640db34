"""The expected cost of a search space, from terms that the derivation shares, and the penalty on it.

A term is the cost of one layer between one input and one output: a table over their possible widths, and the depths at
which the layer connects them. The same terms make up the expected cost (differentiable) and the constraints of the
derivation, and their numbers come from the rules that `SearchSpace.cost` applies, so the three cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from transprune.costs import MACS, Channels, Cost, Layer
from transprune.space import SearchSpace
from transprune.tas.probabilities import Probabilities


def budget_penalty(expected: Tensor, actual: Tensor, target: float | Tensor, tolerance: float) -> Tensor:
    """The penalty on the expected cost, in three regions of the actual cost (Dong & Yang, 2019, Eq. 7).

    Above (1 + tolerance) · target it is log(expected / target), which pushes the cost down; below (1 − tolerance) ·
    target it is −log(expected / target), which pushes it up; between them it is zero, and so is its gradient.

    Deviation: the paper has log(expected). Relative to the target the gradient is the same, and the value does not
    depend on the unit.

    Args:
        expected: Expected cost under the probabilities, a scalar with gradient.
        actual: Cost of the most probable architecture, a scalar.
        target: The budget.
        tolerance: Half the width of the middle region, as a share of the target.
    """
    actual = actual.double()  # whole numbers of this size are not exact in float32
    direction = (actual > (1 + tolerance) * target).to(expected) - (actual < (1 - tolerance) * target).to(expected)
    return direction * torch.log(expected / target)


def sum_of_penalties(expected: Tensor, actual: Tensor, targets: Sequence[float], tolerance: float) -> Tensor:
    """The sum of the penalties of several budgets, all of them upper bounds. With one it is `budget_penalty`.

    Costs are pushed up only while every budget has room. Otherwise a budget with room would work against one without.

    Args:
        expected: Expected cost of each kind [budgets], with gradient.
        actual: Costs of the most probable architecture [budgets].
        targets: The budgets.
        tolerance: Half the width of the middle region, as a share of each budget.
    """
    actual, limits = actual.double(), torch.tensor(targets, dtype=torch.float64, device=actual.device)
    has_room = (actual < (1 - tolerance) * limits).all()
    return (budget_penalty(expected, actual, limits, tolerance) * (has_room | (actual > limits))).sum()


Depths = Mapping[str, frozenset[int]]
"""A condition on depths: the depths allowed for each stage, by name; stages without an entry may have any."""


@dataclass(frozen=True)
class CostTerm:
    """The cost of one layer between one part of its input and one part of its output."""

    layer: Layer
    inputs: Channels
    """The channels of a group or a fixed number of channels, never those of a stage."""
    outputs: Channels
    """As `inputs`."""
    depths: Depths
    """The depths at which the layer is kept and connects these inputs and outputs."""
    part: tuple[int, int]
    """The index of the part in the layer's input and in its output; only concatenations have several parts."""
    values: np.ndarray
    """The cost at each pair of widths [possible input widths, possible output widths]; float64, whole numbers."""
    is_diagonal: bool
    """Whether input and output belong to the same group, or to tied ones, so that only equal choices can occur."""


def alternatives(space: SearchSpace, channels: Channels) -> Iterator[tuple[Depths, Channels]]:
    """The channels that may arrive in place of `channels`: after a stage, the outputs of whichever block is last."""
    if channels.source not in space.stage_index:
        yield {}, channels
        return
    stage = space.stages[space.stage_index[channels.source]]
    found: dict[tuple[frozenset[tuple[str, frozenset[int]]], Channels], set[int]] = {}
    for depth in stage.candidates:
        for before, end in alternatives(space, stage.outputs[stage.kept(depth)[-1]]):
            # `end` has one part: where blocks end in a concatenation, `reading/freedom.py` has unified all exits.
            whole = replace(end, repeat=end.repeat * channels.repeat)
            found.setdefault((frozenset(before.items()), whole), set()).add(depth)
    for (before_items, end), at in found.items():  # blocks with the same output channels are one alternative
        is_any = len(at) == len(stage.candidates)
        yield {**dict(before_items), **({} if is_any else {stage.name: frozenset(at)})}, end


def cost_terms(space: SearchSpace, cost: Cost) -> list[CostTerm]:
    """The terms of all layers with a cost, layer by layer and part by part."""
    return [
        term
        for layer in space.layers
        for row in range(len(layer.inputs.parts))
        for column in range(len(layer.outputs.parts))
        for term in _part_terms(space, cost, layer, (row, column))
    ]


def _part_terms(space: SearchSpace, cost: Cost, layer: Layer, part: tuple[int, int]) -> Iterator[CostTerm]:
    """The terms of one part of a layer's input with one part of its output."""
    inputs, outputs = layer.inputs.parts[part[0]], layer.outputs.parts[part[1]]
    block = space.block_of(layer.name)
    kept: Depths = {}
    if block is not None:
        kept = {block[0].name: frozenset(depth for depth in block[0].candidates if block[1] in block[0].kept(depth))}
    for inputs_at, before in alternatives(space, inputs):
        for outputs_at, after in alternatives(space, outputs):
            depths = _all_of(kept, inputs_at, outputs_at)
            widths = space.possible_widths(before), space.possible_widths(after)
            values = np.array([[cost.of_part(layer, part, one, other) for other in widths[1]] for one in widths[0]])
            if all(depths.values()) and values.any():
                is_diagonal = space.is_one_choice(before.source, after.source)
                yield CostTerm(layer, before, after, depths, part, values.astype(float), is_diagonal)


def _all_of(*conditions: Depths) -> Depths:
    # Sorted, since the order of a set of strings differs between processes and would reorder the integer program.
    names = sorted({name for depths in conditions for name in depths})
    return {name: frozenset.intersection(*(depths[name] for depths in conditions if name in depths)) for name in names}


class ExpectedCost:
    """The expected cost of a space, as a differentiable function of the probabilities.

    The expectation is exact, with widths and depths drawn independently: a block counts with the probability that it
    is kept, a layer after a stage reads the width of the last block that is kept, and a projection counts with the
    probability that its two widths differ.

    Deviation: the authors' code multiplies mean widths, always reads the last block of a stage, and leaves out
    projections (`paper_expected_macs`).

    Source: Dong & Yang, 2019, arXiv:1905.09717, section 3.2 (E_cost).
    """

    def __init__(self, space: SearchSpace, cost: Cost = MACS, *, device: torch.device | str = "cpu") -> None:
        self.space = space
        self.device = torch.device(device)
        terms = cost_terms(space, cost)
        self._size = max([1, *(extent for term in terms for extent in term.values.shape)])
        pairs = [term for term in terms if not term.is_diagonal]
        diagonals = [term for term in terms if term.is_diagonal]
        self._pairs = self._stack([term.values for term in pairs], (self._size, self._size))
        self._pair_inputs = self._rows([term.inputs for term in pairs])
        self._pair_outputs = self._rows([term.outputs for term in pairs])
        self._pair_depths = self._depth_masks(pairs)
        self._diagonals = self._stack([np.diag(term.values) for term in diagonals], (self._size,))
        self._diagonal_rows = self._rows([term.inputs for term in diagonals])
        self._diagonal_depths = self._depth_masks(diagonals)

    def __call__(self, probabilities: Probabilities) -> Tensor:
        """The expected cost, a float64 scalar."""
        widths, depths = probabilities.widths.double(), probabilities.depths.double()
        widths = F.pad(widths, [0, self._size - widths.shape[1]])
        certain = F.one_hot(torch.zeros(1, dtype=torch.int64, device=self.device), self._size)
        rows = torch.cat([widths, certain.to(widths)])
        pairs = torch.einsum("ti,tij,tj->t", rows[self._pair_inputs], self._pairs, rows[self._pair_outputs])
        diagonals = (rows[self._diagonal_rows] * self._diagonals).sum(1)
        cost: Tensor = pairs @ _probability(self._pair_depths, depths)
        return cost + diagonals @ _probability(self._diagonal_depths, depths)

    def _rows(self, channels: list[Channels]) -> Tensor:
        """The row of each group in the probabilities; fixed channels use the row appended after the last group."""
        fixed = len(self.space.groups)
        rows = [fixed if each.source is None else self.space.group_index[each.source] for each in channels]
        return torch.tensor(rows, dtype=torch.int64, device=self.device)

    def _depth_masks(self, terms: list[CostTerm]) -> Tensor:
        """Which depths each term allows [terms, stages, candidates]."""
        stages = self.space.stages
        most = max([0, *(len(stage.candidates) for stage in stages)])
        masks = np.zeros((len(terms), len(stages), most))
        for row, term in enumerate(terms):
            for column, stage in enumerate(stages):
                allowed = term.depths.get(stage.name, frozenset(stage.candidates))
                masks[row, column, : len(stage.candidates)] = [depth in allowed for depth in stage.candidates]
        return torch.as_tensor(masks, device=self.device)

    def _stack(self, values: list[np.ndarray], extents: tuple[int, ...]) -> Tensor:
        """All values in one tensor [terms, *extents], padded with zeros."""
        room = [[(0, most - size) for most, size in zip(extents, value.shape, strict=True)] for value in values]
        padded = [np.pad(value, ends) for value, ends in zip(values, room, strict=True)]
        stacked = np.stack(padded) if padded else np.zeros((0, *extents))
        return torch.as_tensor(stacked, device=self.device)


def _probability(masks: Tensor, depths: Tensor) -> Tensor:
    """Probability that all stages have an allowed depth [terms]."""
    return (masks * depths).sum(2).prod(1)


def paper_expected_macs(space: SearchSpace, probabilities: Probabilities) -> Tensor:
    """Expected MACs from products of mean widths, as in the authors' code: a float64 scalar, in MACs per sample.

    Where it is not the expectation, `ExpectedCost` differs: here the layer after a stage reads the mean width of the
    stage's last block, kept or not, and the projections added where widths differ are left out, as are biases.

    Source: Dong & Yang, 2019, arXiv:1905.09717, section 3.2 (E_cost), and the authors' code.
    """
    means: dict[str, Tensor] = {}
    for group, row in zip(space.groups, probabilities.widths.double(), strict=True):
        means[group.name] = row[: len(group.candidates)] @ torch.tensor(group.candidates).to(row)

    def mean(channels: Channels) -> Tensor | float:
        if channels.source in space.stage_index:
            channels = space.stages[space.stage_index[channels.source]].outputs[-1]
        return channels.full if channels.source is None else means[channels.source]

    def kept(layer: Layer) -> Tensor | float:
        block = space.block_of(layer.name)
        if block is None:
            return 1.0
        stage, position = block
        is_deeper = torch.tensor([position in stage.kept(depth) for depth in stage.candidates])
        row = probabilities.depths[space.stage_index[stage.name], : len(stage.candidates)].double()
        return row[is_deeper].sum()

    products = [
        layer.kernel * layer.positions * mean(layer.inputs) * mean(layer.outputs) * kept(layer)
        for layer in space.layers
        if layer.operator in ("conv", "linear")
    ]
    return torch.stack([torch.as_tensor(product, dtype=torch.float64) for product in products]).sum()
