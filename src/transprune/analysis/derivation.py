"""The most probable architecture within a budget, exactly: an integer program solved by HiGHS.

Each candidate is a variable that is 0 or 1, one per group and stage. For every term of the cost (`analysis.cost`), the
pair of its input and output widths is chosen by variables that must agree with the candidates and vanish where the
depths are not the term's; their costs sum to at most the budget. The solver proves its answer to within `GAP`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

from transprune.analysis.cost import CostTerm, cost_terms
from transprune.analysis.probabilities import Probabilities
from transprune.architecture import Architecture
from transprune.budget import Limit
from transprune.costs import Cost
from transprune.errors import BudgetError
from transprune.space import DepthStage, SearchSpace, WidthGroup

GAP = 1e-4
"""Largest distance from the best log-probability, as a share of the distance from the unconstrained best."""
TOLERANCE = 1e-6
"""How far, as a share, the solver may miss a constraint and still call it kept."""
NEARLY_FULL = 0.99
"""Share of the budget that a derived architecture uses wherever the space permits."""


def derive(
    space: SearchSpace,
    probabilities: Probabilities,
    limits: Sequence[Limit],
    *,
    fill: float = NEARLY_FULL,
) -> Architecture:
    """The most probable of all architectures within all limits that, if any does, use one of them to `fill` or more.

    Deviation: the reference takes the most probable candidate everywhere, whatever it costs. `fill=0` drops the lower
    bound; `Probabilities.most_probable` is the reference's rule.

    Args:
        space: The search space.
        probabilities: Probability of every candidate.
        limits: The most that the architecture may cost of each kind.
        fill: Share of one of the limits that the architecture should at least use.

    Raises:
        BudgetError: No architecture costs that little.
    """
    if all(limit.most >= 1 for limit in limits):
        program = _Program(space, probabilities, [limit.cost for limit in limits])
        # What uses a limit is sought among all, then, where the best of all does not, at each limit.
        free = _solve(program, limits, None, 0.0)
        if free is not None and (not fill or _is_filled(space, free, limits, fill)):
            return free
        filled = [_solve(program, limits, place, fill) for place in range(len(limits))]
        found = [architecture for architecture in filled if architecture is not None]
        if found:
            return min(found, key=program.given_up)
        if free is not None:
            return free
    smallest = space.smallest_architecture()
    if all(limit.is_kept(space, smallest) for limit in limits):
        return smallest
    raise BudgetError(
        f"cannot derive an architecture of at most {' and '.join(map(str, limits))}: the smallest of this search space "
        f"has {' and '.join(limit.cost.written(space.cost(limit.cost, smallest)) for limit in limits)}"
    )


def _is_filled(space: SearchSpace, architecture: Architecture, limits: Sequence[Limit], fill: float) -> bool:
    return any(space.cost(limit.cost, architecture) >= fill * limit.most for limit in limits)


def _solve(program: _Program, limits: Sequence[Limit], place: int | None, fill: float) -> Architecture | None:
    """The most probable architecture within all limits, which uses the limit at a place (None: none) to `fill`."""
    # The solver works with floating-point tolerances, and the promise is about integers: where half a unit is too small
    # for it to see, the bound is drawn in.
    least = [fill * limit.most if at == place else 0.0 for at, limit in enumerate(limits)]
    for draw in (lambda most: most + 0.5, lambda most: most * (1 - 2 * TOLERANCE)):
        architecture = program.solve(least, [draw(limit.most) for limit in limits])
        if architecture is not None and all(limit.is_kept(program.space, architecture) for limit in limits):
            return architecture
    return None


Sum = list[tuple[int, float]]
"""Variables with their factors."""


@dataclass
class _Program:
    """Variables in [0, 1] and linear constraints; the first variables stand for candidates and are whole numbers."""

    space: SearchSpace
    probabilities: Probabilities
    costs: Sequence[Cost]
    variables: int = 0
    rows: list[tuple[Sum, float, float]] = field(default_factory=list)
    """Each constraint: a sum, its least and its greatest value."""
    sums: list[Sum] = field(default_factory=list)
    """What each cost is."""

    def __post_init__(self) -> None:
        self.groups = [self._one_of(len(group.candidates)) for group in self.space.groups]
        self.stages = [self._one_of(len(stage.candidates)) for stage in self.space.stages]
        self.choices = self.variables
        for cost in self.costs:
            self.sums.append([])
            for _, terms in groupby(cost_terms(self.space, cost), key=lambda term: (id(term.layer), term.part)):
                self._add_part(list(terms))

    def given_up(self, architecture: Architecture) -> float:
        """Log-probability that an architecture gives up against the most probable one."""
        lost, total = self._improbability(), 0.0
        parts: list[tuple[Sequence[WidthGroup | DepthStage], list[range], Mapping[str, int]]] = [
            (self.space.groups, self.groups, architecture.widths),
            (self.space.stages, self.stages, architecture.depths),
        ]
        for choices, variables, sizes in parts:
            for choice, row in zip(choices, variables, strict=True):
                total += lost[row[choice.candidates.index(sizes[choice.name])]]
        return total

    def solve(self, least: Sequence[float], most: Sequence[float]) -> Architecture | None:
        """The most probable architecture whose costs lie from `least` to `most`; None if the solver finds none."""
        rows = list(self.rows)
        for total, low, high in zip(self.sums, least, most, strict=True):
            rows.append(([(variable, cost / high) for variable, cost in total], low / high, 1.0))
        entries = [(row, *term) for row, (terms, _, _) in enumerate(rows) for term in terms]
        row, column, value = zip(*entries, strict=True)
        matrix = coo_matrix((value, (row, column)), shape=(len(rows), self.variables)).tocsr()
        found = milp(
            self._improbability(),
            constraints=LinearConstraint(matrix, [low for _, low, _ in rows], [high for _, _, high in rows]),
            integrality=np.arange(self.variables) < self.choices,
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": GAP},
        )
        return None if found.x is None else self._architecture(found.x)

    def _architecture(self, solution: np.ndarray) -> Architecture:
        def chosen(variables: range) -> int:
            return int(np.argmax(solution[list(variables)]))

        return Architecture(
            widths={
                group.name: group.candidates[chosen(variables)]
                for group, variables in zip(self.space.groups, self.groups, strict=True)
            },
            depths={
                stage.name: stage.candidates[chosen(variables)]
                for stage, variables in zip(self.space.stages, self.stages, strict=True)
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
        """New variables of which one is chosen."""
        variables = self._new(candidates)
        self.rows.append(([(variable, 1.0) for variable in variables], 1, 1))
        return variables

    def _new(self, count: int) -> range:
        self.variables += count
        return range(self.variables - count, self.variables)

    def _add_part(self, terms: list[CostTerm]) -> None:
        """Variables for the pair of widths of each term; they sum to one where its depths hold, else to zero."""
        uses: dict[tuple[int, str, int], Sum] = {}
        for term in terms:
            places = np.argwhere(np.eye(len(term.values)) if term.is_diagonal else np.ones(term.values.shape))
            pairs = self._new(len(places))
            self.sums[-1] += [(pair, term.values[tuple(place)]) for pair, place in zip(pairs, places, strict=True)]
            self._sum_where([(pair, 1.0) for pair in pairs], [self._allowed(*item) for item in term.depths.items()])
            for axis, channels in enumerate((term.inputs, term.outputs)):
                for pair, place in zip(pairs, places, strict=True):
                    if channels.source is not None:
                        uses.setdefault((axis, channels.source, place[axis]), []).append((pair, 1.0))
        # At most one term of a part holds, so all that use a candidate share one constraint.
        for (_, source, index), members in uses.items():
            chosen = self.groups[self.space.group_index[source]][index]
            self.rows.append(([*members, (chosen, -1.0)], -np.inf, 0.0))

    def _allowed(self, stage: str, depths: frozenset[int]) -> Sum:
        """Minus one where the stage has one of the depths, else zero."""
        position = self.space.stage_index[stage]
        candidates = zip(self.stages[position], self.space.stages[position].candidates, strict=True)
        return [(variable, -1.0) for variable, depth in candidates if depth in depths]

    def _sum_where(self, total: Sum, conditions: list[Sum]) -> None:
        """Makes a sum one where all conditions are minus one, else zero."""
        least = 1.0 - len(conditions)
        together = total + [term for condition in conditions for term in condition]
        self.rows.append((together, least, least if len(conditions) <= 1 else np.inf))
        if len(conditions) > 1:
            self.rows += [(total + condition, -np.inf, 0.0) for condition in conditions]
