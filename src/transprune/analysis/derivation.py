"""The most probable architecture within a budget, exactly: an integer program solved by HiGHS.

Each candidate is a variable that is 0 or 1, one per group and stage. For every layer, the pair of its input and output
widths is chosen by variables that must agree with the candidates and vanish with the layer's block; their costs sum
to at most the budget. The solver proves its answer to within `GAP` of the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

from transprune.analysis.cost import CostTable, cost_tables, possible_widths
from transprune.analysis.probabilities import Probabilities
from transprune.architecture import Architecture
from transprune.errors import BudgetError
from transprune.layers import Channels, CostKind
from transprune.space import DepthStage, SearchSpace

GAP = 1e-4
"""Largest distance from the best log-probability, as a share of the distance from the unconstrained best."""
NEARLY_FULL = 0.99
"""Share of the budget that a derived architecture uses wherever the space permits."""


def derive(
    space: SearchSpace,
    probabilities: Probabilities,
    kind: CostKind,
    target: int,
    *,
    fill: float = NEARLY_FULL,
) -> Architecture:
    """The most probable of all architectures that cost at most `target` and, if any does, at least `fill · target`.

    Deviation: the reference takes the most probable candidate everywhere, whatever it costs. `fill=0` drops the lower
    bound; `Probabilities.most_probable` is the reference's rule.

    Args:
        space: The search space.
        probabilities: Probability of every candidate.
        kind: What `target` counts.
        target: The most that the architecture may cost.
        fill: Share of the target that the architecture should at least cost.

    Raises:
        BudgetError: No architecture costs that little.
    """
    for least in (fill * target, 0.0) if fill else (0.0,):
        program = _Program(space, probabilities, kind)
        program.bound_cost(least, target)
        architecture = program.solve()
        # The solver works with floating-point tolerances; the promise is about integers.
        if architecture is not None and space.cost(kind, architecture) <= target:
            return architecture
    smallest = space.cost(kind, space.smallest_architecture())
    raise BudgetError(
        f"cannot derive an architecture of at most {target:,} {kind}: "
        f"the smallest of this search space has {smallest:,}"
    )


Terms = list[tuple[int, float]]


@dataclass
class _Program:
    """Variables in [0, 1] and linear constraints; the first variables stand for candidates and are whole numbers."""

    space: SearchSpace
    probabilities: Probabilities
    kind: CostKind
    variables: int = 0
    rows: list[tuple[Terms, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.groups = [self._one_of(len(group.candidates)) for group in self.space.groups]
        self.stages = [self._one_of(len(stage.candidates)) for stage in self.space.stages]
        self.choices = self.variables
        self.ends = {stage.name: self._stage_end(stage) for stage in self.space.stages}
        self.cost: Terms = []
        for table in cost_tables(self.space, self.kind):
            self._add_layer(table)

    def bound_cost(self, least: float, most: float) -> None:
        scaled = [(variable, cost / most) for variable, cost in self.cost]
        self.rows.append((scaled, least / most, 1 - 1e-7))

    def solve(self) -> Architecture | None:
        """The most probable architecture; None if there is none."""
        entries = [(row, *term) for row, (terms, _, _) in enumerate(self.rows) for term in terms]
        row, column, value = zip(*entries, strict=True)
        matrix = coo_matrix((value, (row, column)), shape=(len(self.rows), self.variables)).tocsr()
        lower, upper = [low for _, low, _ in self.rows], [high for _, _, high in self.rows]
        found = milp(
            self._improbability(),
            constraints=LinearConstraint(matrix, lower, upper),
            integrality=np.arange(self.variables) < self.choices,
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": GAP},
        )
        if found.x is None:
            return None
        space = self.space
        return Architecture(
            widths={
                group.name: group.candidates[_chosen(found.x, variables)]
                for group, variables in zip(space.groups, self.groups, strict=True)
            },
            depths={
                stage.name: stage.candidates[_chosen(found.x, variables)]
                for stage, variables in zip(space.stages, self.stages, strict=True)
            },
        )

    def _improbability(self) -> np.ndarray:
        """Log-probability that each choice gives up against the most probable one [variables]."""
        given_up = np.zeros(self.variables)
        for rows, choices in ((self.probabilities.widths, self.groups), (self.probabilities.depths, self.stages)):
            for row, variables in zip(rows.detach().cpu().double().numpy(), choices, strict=True):
                logs = np.log(np.maximum(row[: len(variables)], 1e-30))
                given_up[list(variables)] = logs.max() - logs
        return given_up

    def _one_of(self, candidates: int) -> range:
        variables = self._new(candidates)
        self.rows.append(([(variable, 1.0) for variable in variables], 1, 1))
        return variables

    def _new(self, count: int) -> range:
        self.variables += count
        return range(self.variables - count, self.variables)

    def _stage_end(self, stage: DepthStage) -> range:
        """Variables for the width behind a stage: that of the last kept block."""
        position = self.space.stage_index[stage.name]
        outputs = {depth: stage.outputs[depth - 1] for depth in stage.candidates}
        union = sorted({width for channels in outputs.values() for width in possible_widths(self.space, channels)})
        end = self._one_of(len(union))
        for is_depth, channels in zip(self.stages[position], outputs.values(), strict=True):
            for width, is_width in zip(possible_widths(self.space, channels), self._choice(channels), strict=True):
                # This depth and this width together leave the end no other width.
                terms = [(end[union.index(width)], 1.0), (is_depth, -1.0), *((v, -1.0) for v in is_width)]
                self.rows.append((terms, -1.0 if is_width else 0.0, np.inf))
        return end

    def _choice(self, channels: Channels) -> Sequence[tuple[int, ...]]:
        """The variable that stands for each possible width; none where the width is fixed."""
        if channels.source is None:
            return [()]
        if channels.source in self.space.stage_index:
            return [(variable,) for variable in self.ends[channels.source]]
        return [(variable,) for variable in self.groups[self.space.group_index[channels.source]]]

    def _add_layer(self, table: CostTable) -> None:
        """Variables for the pair of widths of a layer, all zero when its block is dropped."""
        inputs, outputs = self._choice(table.layer.inputs), self._choice(table.layer.outputs)
        places = np.argwhere(np.eye(len(inputs)) if table.is_diagonal else np.ones(table.values.shape))
        pairs = self._new(len(places))
        self.cost += [(pair, table.values[tuple(place)]) for pair, place in zip(pairs, places, strict=True)]
        block = self.space.block_of(table.layer.name)
        kept: Terms = []
        if block is not None:
            stage, position = block
            variables = self.stages[self.space.stage_index[stage.name]]
            kept = [(v, -1.0) for v, depth in zip(variables, stage.candidates, strict=True) if depth > position]
        total = 0.0 if kept else 1.0
        self.rows.append(([(pair, 1.0) for pair in pairs] + kept, total, total))
        for axis, choices in enumerate((inputs, outputs)):
            for index, chosen in enumerate(choices):
                if chosen:
                    members = [(pair, 1.0) for pair, place in zip(pairs, places, strict=True) if place[axis] == index]
                    self.rows.append(([*members, (chosen[0], -1.0)], -np.inf, 0.0))


def _chosen(solution: np.ndarray, variables: range) -> int:
    return int(np.argmax(solution[list(variables)]))
