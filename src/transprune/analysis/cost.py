"""The cost of a search space as tables: one number for every pair of widths that a layer may get.

The same tables give the expected cost under probabilities (differentiable) and the constraint of the derivation, and
their entries are the integers that `SearchSpace.cost` sums: the three cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from transprune.analysis.probabilities import Probabilities
from transprune.layers import Channels, CostKind, Layer
from transprune.space import SearchSpace


@dataclass(frozen=True)
class CostTable:
    """What one layer costs at every pair of its possible widths."""

    layer: Layer
    values: np.ndarray
    """[possible input widths, possible output widths]; float64, whole numbers."""

    @property
    def is_diagonal(self) -> bool:
        """Whether input and output have one source, so that only equal choices can happen."""
        return self.layer.inputs.source is not None and self.layer.inputs.source == self.layer.outputs.source


def possible_widths(space: SearchSpace, channels: Channels) -> tuple[int, ...]:
    """All widths that the candidates can give a tensor, ascending."""
    if channels.source is None:
        widths: Iterable[int] = (channels.full,)
    elif channels.source in space.stage_index:
        stage = space.stages[space.stage_index[channels.source]]
        widths = {width for depth in stage.candidates for width in possible_widths(space, stage.outputs[depth - 1])}
    else:
        widths = space.groups[space.group_index[channels.source]].candidates
    return tuple(sorted(width * channels.repeat for width in widths))


def cost_tables(space: SearchSpace, kind: CostKind) -> list[CostTable]:
    """The tables of all layers that cost anything."""
    tables = []
    for layer in space.layers:
        inputs, outputs = possible_widths(space, layer.inputs), possible_widths(space, layer.outputs)
        values = np.array([[layer.cost(kind, before, after) for after in outputs] for before in inputs], dtype=float)
        if values.any():
            tables.append(CostTable(layer, values))
    return tables


class ExpectedCost:
    """The expected cost of a space, as a differentiable function of the probabilities.

    Widths and depths are drawn independently, and the expectation is exact: blocks count with the probability that
    they are kept, a layer behind a stage sees the width of the last kept block, and projections count with the
    probability that their two widths differ.

    Deviation: the reference multiplies mean widths, ignores where a cut stage ends, and leaves out projections.

    Source: Dong & Yang, 2019, arXiv:1905.09717, section 3.2 (E_cost).
    """

    def __init__(self, space: SearchSpace, kind: CostKind = "macs", *, device: torch.device | str = "cpu") -> None:
        self.space = space
        self.device = torch.device(device)
        tables = cost_tables(space, kind)
        pairs = [table for table in tables if not table.is_diagonal]
        diagonals = [table for table in tables if table.is_diagonal]
        size = max([1, *(extent for table in tables for extent in table.values.shape)])
        self._candidates = size
        self._pairs = self._stack([table.values for table in pairs], (size, size))
        self._diagonals = self._stack([np.diag(table.values) for table in diagonals], (size,))
        self._pair_rows = [self._rows(tables_side) for tables_side in _sides(pairs)]
        self._diagonal_rows = self._rows([table.layer.inputs for table in diagonals])
        self._pair_kept = self._kept(pairs)
        self._diagonal_kept = self._kept(diagonals)

    def __call__(self, probabilities: Probabilities) -> Tensor:
        """The expected cost, a float64 scalar, in MACs a sample or parameters."""
        rows = self._distributions(probabilities)
        depths = torch.cat([probabilities.depths.double().flatten(), rows.new_ones(1)])
        inputs, outputs = (rows[indices] for indices in self._pair_rows)
        pairs = torch.einsum("li,lij,lj->l", inputs, self._pairs, outputs)
        diagonals = (rows[self._diagonal_rows] * self._diagonals).sum(1)
        cost: Tensor = pairs @ (self._pair_kept @ depths) + diagonals @ (self._diagonal_kept @ depths)
        return cost

    def _distributions(self, probabilities: Probabilities) -> Tensor:
        """Distribution over the possible widths of every source [groups + 1 + stages, candidates]."""
        widths = probabilities.widths.double()
        missing = self._candidates - widths.shape[1]
        groups = torch.nn.functional.pad(widths, [0, max(missing, 0)])[:, : self._candidates]
        fixed = torch.nn.functional.one_hot(torch.zeros(1, dtype=torch.int64, device=self.device), self._candidates)
        rows = torch.cat([groups, fixed.to(groups)])
        stages = [
            torch.einsum("d,di,dij->j", depths[: len(stage.candidates)].double(), rows[ends], places)
            for stage, depths, (ends, places) in zip(
                self.space.stages, probabilities.depths, self._stage_ends, strict=True
            )
        ]
        return torch.cat([rows, torch.stack(stages)]) if stages else rows

    @cached_property
    def _stage_ends(self) -> list[tuple[Tensor, Tensor]]:
        """For each stage: the source row at every candidate depth, and where its widths stand among the stage's."""
        ends = []
        for stage in self.space.stages:
            outputs = [stage.outputs[depth - 1] for depth in stage.candidates]
            union = sorted({width for channels in outputs for width in possible_widths(self.space, channels)})
            places = np.zeros((len(outputs), self._candidates, self._candidates))
            for end, channels in enumerate(outputs):
                for position, width in enumerate(possible_widths(self.space, channels)):
                    places[end, position, union.index(width)] = 1
            ends.append((self._rows(outputs), torch.as_tensor(places, device=self.device)))
        return ends

    def _rows(self, sources: list[Channels]) -> Tensor:
        """Row of each source among the distributions: groups, then the fixed widths' row, then stages."""
        groups = len(self.space.groups)
        return torch.tensor(
            [
                groups
                if channels.source is None
                else self.space.group_index[channels.source]
                if channels.source in self.space.group_index
                else groups + 1 + self.space.stage_index[channels.source]
                for channels in sources
            ],
            dtype=torch.int64,
            device=self.device,
        )

    def _kept(self, tables: list[CostTable]) -> Tensor:
        """Maps depth probabilities (and a last constant) to the probability that each layer is kept."""
        candidates = max([0, *(len(stage.candidates) for stage in self.space.stages)])
        kept = np.zeros((len(tables), len(self.space.stages) * candidates + 1))
        for row, table in enumerate(tables):
            block = self.space.block_of(table.layer.name)
            if block is None:
                kept[row, -1] = 1
                continue
            start = self.space.stage_index[block[0].name] * candidates
            for position, depth in enumerate(block[0].candidates):
                kept[row, start + position] = depth > block[1]
        return torch.as_tensor(kept, device=self.device)

    def _stack(self, values: list[np.ndarray], extents: tuple[int, ...]) -> Tensor:
        """All values in one tensor [tables, *extents], filled up with zeros."""
        room = [[(0, most - size) for most, size in zip(extents, value.shape, strict=True)] for value in values]
        padded = [np.pad(value, ends) for value, ends in zip(values, room, strict=True)]
        stacked = np.stack(padded) if padded else np.zeros((0, *extents))
        return torch.as_tensor(stacked, device=self.device)


def _sides(tables: list[CostTable]) -> tuple[list[Channels], list[Channels]]:
    return [table.layer.inputs for table in tables], [table.layer.outputs for table in tables]
