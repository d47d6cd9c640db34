"""The architectures of a space as an integer program: 0-1 variables, linear constraints, and costs as linear sums.

Each candidate is a variable that is 0 or 1, and of each group and stage one is chosen. What a layer costs depends on
two of these choices at once and on whether it is kept, and products of variables are not linear. Further variables,
which the constraints tie to the candidates, stand for them:

- presence: a group has a candidate, and certain depths hold;
- products: how much of a layer's input there is while its output has a certain width, where the table of its cost is
  an outer product of the two sides, as for MACs and parameters. One variable for each output width stands for all
  inputs of a concatenation together;
- pairs: the input and the output of a layer have certain widths, and certain depths hold; for any other table.

Products and pairs say the same, but pairs need 64 variables where two groups have eight candidates each, and products
eight. Only candidates need to be whole: once these are, the constraints leave the other variables a single value, and
the solver need not branch on them. Variables that mean the same are made once, whichever layer and cost asks for them.

Example:
    Layer `a` makes 2 or 4 channels of 3, and layer `b` makes 1 or 3 channels of these: 3·a + a·b MACs.

    >>> from transprune.costs import MACS
    >>> from transprune.costs import Channels, Layer
    >>> from transprune.space import WidthGroup
    >>> widths = {"a": (2, 4), "b": (1, 3)}
    >>> groups = [WidthGroup(name=n, width=c[-1], candidates=c, layers=(n,)) for n, c in widths.items()]
    >>> image, a, b = Channels(3), Channels(4, "a"), Channels(3, "b")
    >>> ends = {"a": (image, a), "b": (a, b)}
    >>> layers = [Layer(name=n, operator="conv", inputs=i, outputs=o) for n, (i, o) in ends.items()]
    >>> program = IntegerProgram(SearchSpace(groups=tuple(groups), stages=(), layers=tuple(layers)), [MACS])

    Variables 0 and 1 are the candidates of `a`, 2 and 3 those of `b`, and 4 is always 1. `a` costs 3·2 or 3·4. Of `b`,
    whose table is [[2·1, 2·3], [4·1, 4·3]], the first row is spent whatever `a` is, so it goes with the candidates of
    `b`; variables 5 and 6 stand for the 4 − 2 channels that `a` may have more while `b` has 1 or 3, which cost 2·1 or
    2·3.

    >>> program.sums[0]
    [(0, 6.0), (1, 12.0), (5, 2.0), (6, 6.0), (2, 2.0), (3, 6.0)]

    That 5 and 6 are products is said by three constraints: their sum is 1 if `a` has 4 channels (variable 1) and else
    0, and neither is more than the candidate of `b` that it goes with.

    >>> for total, least, most in program.rows[-3:]:
    ...     print(total, least, most)
    [(5, 1.0), (6, 1.0), (1, -1.0)] 0 0
    [(5, 1.0), (2, -1.0)] -inf 0
    [(6, 1.0), (3, -1.0)] -inf 0

    Within 20 MACs not both can be large, which would take 24. Where a small `a` weighs more than a small `b`, `b` gives
    way.

    >>> program.solve([(0, 2.0), (2, 1.0)], least=[0], most=[20]).architecture.widths
    {'a': 4, 'b': 1}
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

from transprune.architecture import Architecture
from transprune.costs import Cost
from transprune.space import SearchSpace
from transprune.tas.expected_cost import CostTerm, Depths, cost_terms

GAP = 1e-4
"""Largest distance from the best value, as a share of it, at which the solver stops."""
LinearSum = list[tuple[int, float]]
"""Variables, each with what it counts."""


@dataclass(frozen=True)
class Solution:
    """What the solver found in its time."""

    architecture: Architecture | None
    """None: it found none, or there is none."""
    bound: float
    """The objective of every architecture is at least this; infinite: there is none that keeps the constraints."""


class IntegerProgram:
    """The architectures of a space; variables lie in [0, 1], and the first ones stand for candidates.

    Args:
        space: The search space.
        costs: What is limited.
    """

    def __init__(self, space: SearchSpace, costs: Sequence[Cost]) -> None:
        self.space = space
        self.variables = 0
        self.rows: list[tuple[LinearSum, float, float]] = []
        """Each constraint: a sum, its least and its greatest value."""
        self.groups = self._widths()
        self.stages = [self._one_of(len(stage.candidates)) for stage in space.stages]
        self.choices = self.variables
        self.constant = self._new(1)[0]
        self.rows.append(([(self.constant, 1.0)], 1, 1))
        self._made: dict[Hashable, list[int]] = {}
        self.sums = [self._sum_of(cost) for cost in costs]
        """What each cost is."""

    def solve(
        self, objective: LinearSum, least: Sequence[float], most: Sequence[float], *, seconds: float | None = None
    ) -> Solution:
        """The architecture of the smallest objective whose costs lie from `least` to `most`.

        Args:
            objective: What should be small.
            least: For each cost, the least that is allowed.
            most: For each cost, the most that is allowed; above 0, or infinite.
            seconds: Time after which the solver stops with what it has; None: it takes what it needs.
        """
        rows = list(self.rows)
        for total, low, high in zip(self.sums, least, most, strict=True):
            if high == np.inf:
                continue
            # As shares of the limit: the solver's tolerances are absolute, and MACs run into the millions.
            rows.append(([(variable, cost / high) for variable, cost in total], low / high, 1.0))
        entries = [(row, *term) for row, (terms, _, _) in enumerate(rows) for term in terms]
        row, column, value = zip(*entries, strict=True)
        matrix = coo_matrix((value, (row, column)), shape=(len(rows), self.variables)).tocsr()
        wanted = np.zeros(self.variables)
        for variable, factor in objective:
            wanted[variable] += factor
        found = milp(
            wanted,
            constraints=LinearConstraint(matrix, [low for _, low, _ in rows], [high for _, _, high in rows]),
            integrality=np.arange(self.variables) < self.choices,
            bounds=Bounds(0, 1),
            # Without presolving: with it the solver begins anew several times, which takes small ones twice as long.
            options={"mip_rel_gap": GAP, "presolve": False, **({} if seconds is None else {"time_limit": seconds})},
        )
        if found.status == _INFEASIBLE:
            return Solution(None, np.inf)
        bound = -np.inf if found.mip_dual_bound is None else float(found.mip_dual_bound)
        return Solution(None if found.x is None else self._architecture(found.x), bound)

    def _architecture(self, solution: np.ndarray) -> Architecture:
        choices = zip(self.space.choices, [*self.groups, *self.stages], strict=True)
        return self.space.architecture_of(
            [choice.candidates[int(np.argmax(solution[list(variables)]))] for choice, variables in choices]
        )

    def _widths(self) -> list[range]:
        """The variables of each group; those of its leader where it is tied."""
        found: list[range] = []
        for position, (group, leader) in enumerate(zip(self.space.groups, self.space.leaders, strict=True)):
            found.append(self._one_of(len(group.candidates)) if leader == position else found[leader])
        return found

    def _one_of(self, candidates: int) -> range:
        """New variables of which one is chosen."""
        variables = self._new(candidates)
        self.rows.append(([(variable, 1.0) for variable in variables], 1, 1))
        return variables

    def _new(self, count: int) -> range:
        self.variables += count
        return range(self.variables - count, self.variables)

    def _sum_of(self, cost: Cost) -> LinearSum:
        """A cost as a sum of variables."""
        sums: LinearSum = []
        together: dict[Hashable, list[CostTerm]] = {}
        alternatives: dict[tuple[int, tuple[int, int], str], dict[Hashable, Depths]] = {}
        for term in cost_terms(self.space, cost):
            for source in filter(None, dict.fromkeys((term.inputs.source, term.outputs.source))):
                alternatives.setdefault((id(term.layer), term.part, source), {})[_key(term.depths)] = term.depths
            key = (id(term.layer), term.part[1], term.outputs, _key(term.depths))
            together.setdefault(key, []).append(term)
        for terms in together.values():
            product = _as_outer_product(terms)
            if product is None:
                for term in terms:
                    sums += self._pair_sum(term)
            else:
                sums += self._product_sum(terms, product)
        for (_, _, source), depths in alternatives.items():
            self._exclude(source, list(depths.values()))
        return sums

    def _exclude(self, source: str, alternatives: Sequence[Depths]) -> None:
        """At most one alternative of a layer's part holds, so a group has a candidate in at most one of them.

        That follows for whole numbers. Saying it keeps the solver from spreading a candidate over several depths while
        it still works with fractions, which makes its bounds tighter and its search shorter.
        """
        key = ("exclude", source, frozenset(map(_key, alternatives)))
        if len(alternatives) > 1 and key not in self._made:
            self._made[key] = []
            present = [self._presence(source, depths) for depths in alternatives]
            for candidate, members in zip(self._presence(source, {}), zip(*present, strict=True), strict=True):
                self.rows.append(([*((each, 1.0) for each in members), (candidate, -1.0)], -np.inf, 0))

    def _pair_sum(self, term: CostTerm) -> LinearSum:
        """A term's cost over pairs of widths, or over the widths of the side that varies."""
        inputs, outputs = term.inputs.source, term.outputs.source
        if inputs is None or outputs is None or term.is_diagonal:
            values = np.diag(term.values) if term.is_diagonal else term.values.ravel()
            return _with(self._presence(inputs or outputs, term.depths), values)
        if (term.values == term.values[0]).all():  # a norm of a concatenation costs what its outputs are, part by part
            return _with(self._presence(outputs, term.depths), term.values[0])
        return _with(self._pairs(inputs, outputs, term.depths), term.values.ravel())

    def _product_sum(self, terms: Sequence[CostTerm], product: _OuterProduct) -> LinearSum:
        """The cost of all inputs together: `fixed` where the output has a width, and `factors` times the input."""
        source, depths = terms[0].outputs.source, terms[0].depths
        outputs = self._presence(source, depths)
        most = sum(amounts.max() for amounts in product.amounts)
        inputs: LinearSum = []
        for term, amounts in zip(terms, product.amounts, strict=True):
            inputs += _with(self._presence(term.inputs.source, depths), amounts / most)
        # Rounded, so that the tables of MACs and parameters, which differ by a factor, share their variables.
        key = ("product", source, _key(depths), tuple((v, round(a, 12)) for v, a in inputs))
        if key not in self._made:
            shares = self._made[key] = list(self._new(len(outputs)))
            self.rows.append(([(share, 1.0) for share in shares] + [(v, -a) for v, a in inputs], 0, 0))
            self.rows += [([(s, 1.0), (o, -1.0)], -np.inf, 0) for s, o in zip(shares, outputs, strict=True)]
        return _with(self._made[key], most * product.factors) + _with(outputs, product.fixed)

    def _presence(self, source: str | None, depths: Depths) -> list[int]:
        """Variables that are one where a group has a candidate and the depths hold; of no group: where these hold."""
        if source is None:
            return [self._holds(depths)]
        candidates = self.groups[self.space.group_index[source]]
        if not depths:
            return list(candidates)
        key = ("presence", source, _key(depths))
        if key not in self._made:
            present = self._made[key] = list(self._new(len(candidates)))
            self.rows.append(([(each, 1.0) for each in present] + [(self._holds(depths), -1.0)], 0, 0))
            self.rows += [([(one, 1.0), (c, -1.0)], -np.inf, 0) for one, c in zip(present, candidates, strict=True)]
        return self._made[key]

    def _pairs(self, inputs: str, outputs: str, depths: Depths) -> list[int]:
        """Variables that are one where two groups have a pair of candidates and the depths hold, row by row."""
        key = ("pairs", inputs, outputs, _key(depths))
        if key not in self._made:
            rows, columns = self._presence(inputs, depths), self._presence(outputs, depths)
            pairs = self._made[key] = list(self._new(len(rows) * len(columns)))
            table = np.array(pairs).reshape(len(rows), len(columns))
            for members, present in [*zip(table, rows, strict=True), *zip(table.T, columns, strict=True)]:
                self.rows.append(([*((int(each), 1.0) for each in members), (present, -1.0)], 0, 0))
        return self._made[key]

    def _holds(self, depths: Depths) -> int:
        """A variable that is one where all stages have one of their depths."""
        if not depths:
            return self.constant
        key = ("holds", _key(depths))
        if key not in self._made:
            (held,) = self._made[key] = list(self._new(1))
            conditions = [self._allowed(*item) for item in depths.items()]
            if len(conditions) == 1:  # the depths of a stage exclude each other, so their sum is 0 or 1 already
                self.rows.append(([(held, -1.0), *conditions[0]], 0, 0))
            else:
                # "And" of n conditions: at most each of them, and at least their sum less n − 1.
                every = [(held, -1.0), *(term for condition in conditions for term in condition)]
                self.rows.append((every, -np.inf, len(conditions) - 1.0))
                self.rows += [([(held, -1.0), *condition], 0, np.inf) for condition in conditions]
        return self._made[key][0]

    def _allowed(self, stage: str, depths: frozenset[int]) -> LinearSum:
        """One where the stage has one of the depths, else zero."""
        position = self.space.stage_index[stage]
        candidates = zip(self.stages[position], self.space.stages[position].candidates, strict=True)
        return [(variable, 1.0) for variable, depth in candidates if depth in depths]


_INFEASIBLE = 2
"""scipy's status of a program without a solution."""


@dataclass(frozen=True)
class _OuterProduct:
    """The tables of several inputs of one output as `fixed + amount of the input · factor of the output`."""

    amounts: list[np.ndarray]
    """For each term, what each width of its input adds to the smallest one's [inputs]."""
    factors: np.ndarray
    """[outputs]"""
    fixed: np.ndarray
    """[outputs]"""


def _as_outer_product(terms: Sequence[CostTerm]) -> _OuterProduct | None:
    """The terms as one product; None where their tables are none, or only one side varies."""
    if any(None in (term.inputs.source, term.outputs.source) or term.is_diagonal for term in terms):
        return None
    # Measured against the smallest input, so that a bias, or a cost that starts above zero, is no obstacle. The factors
    # come from the table with the largest numbers, where rounding matters least.
    above = [term.values - term.values[0] for term in terms]
    factors = max(above, key=lambda table: float(table.max()))[-1]
    if (factors <= 0).any():
        return None
    amounts = [table[:, -1] / factors[-1] for table in above]
    is_product = all(
        (amount >= 0).all() and np.allclose(np.outer(amount, factors), table, rtol=1e-9, atol=1e-6)
        for amount, table in zip(amounts, above, strict=True)
    )
    fixed = np.sum([term.values[0] for term in terms], axis=0)
    return _OuterProduct(amounts, factors, fixed) if is_product else None


def _key(depths: Depths) -> frozenset[tuple[str, frozenset[int]]]:
    return frozenset(depths.items())


def _with(variables: Sequence[int], factors: np.ndarray) -> LinearSum:
    return [(v, float(factor)) for v, factor in zip(variables, factors, strict=True) if factor]
