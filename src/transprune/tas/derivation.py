"""The most probable architecture within all budgets, by an integer program (`integer_program`) that HiGHS solves.

The solver proves how good its answer is. Where its time runs out, the answer comes with what it could prove, and an
architecture made by single steps (`local_search`) takes the place of a worse one or of none.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from transprune.architecture import Architecture
from transprune.budget import Limit, out_of_reach
from transprune.costs import Cost
from transprune.errors import BudgetError
from transprune.options import NEARLY_FULL, SOLVER_SECONDS
from transprune.space import SearchSpace
from transprune.tas.integer_program import GAP, IntegerProgram, LinearSum, Solution
from transprune.tas.local_search import log_probabilities, repair
from transprune.tas.probabilities import Probabilities

TOLERANCE = 1e-6
"""How far, as a share, the solver may miss a constraint and still call it kept."""
BRIEFLY = 10.0
"""Seconds that the solver may take for a figure that is only spoken of."""


@dataclass(frozen=True)
class Derivation:
    """A derived architecture, and how good it is."""

    architecture: Architecture
    given_up: float
    """Log-probability (natural) that it gives up against the most probable candidates everywhere; at least 0."""
    gap: float
    """Log-probability by which an architecture that may be derived could at most be more probable; infinite: the time
    ran out before anything was proved."""

    @property
    def is_proved(self) -> bool:
        """Whether it is proved to be the most probable one, to within the solver's `GAP` of what it gives up."""
        return self.gap <= GAP * self.given_up + 1e-6

    def __str__(self) -> str:
        if self.is_proved:
            return "proved optimal"
        if np.isinf(self.gap):
            return "not proved: the time ran out first"
        return f"log-probability within {self.gap:.3g} of the best, where the time ran out"


def derive(
    space: SearchSpace,
    probabilities: Probabilities,
    limits: Sequence[Limit],
    *,
    fill: float = NEARLY_FULL,
    seconds: float | None = SOLVER_SECONDS,
) -> Architecture:
    """The most probable of all architectures within all limits that use one of them to `fill` or more.

    Where none does, `fill` is the share of the most that one uses.

    Deviation: the paper takes the most probable candidate everywhere, whatever it costs. `fill=0` drops the lower
    bound; `Probabilities.most_probable` is the paper's rule.

    Args:
        space: The search space.
        probabilities: Probability of every candidate.
        limits: The most that the architecture may cost of each kind.
        fill: Share of one of the limits that the architecture should at least use, where any does.
        seconds: As `derive_with_proof`.

    Raises:
        BudgetError: No architecture costs that little.
    """
    return derive_with_proof(space, probabilities, limits, fill=fill, seconds=seconds).architecture


def derive_with_proof(
    space: SearchSpace,
    probabilities: Probabilities,
    limits: Sequence[Limit],
    *,
    fill: float = NEARLY_FULL,
    seconds: float | None = SOLVER_SECONDS,
) -> Derivation:
    """As `derive`, with what is known about the answer.

    Where the time runs out, the answer keeps all limits nevertheless, but may use less than `fill` of them.

    Args:
        space: The search space.
        probabilities: Probability of every candidate.
        limits: The most that the architecture may cost of each kind.
        fill: Share of one of the limits that the architecture should at least use, where any does.
        seconds: Time that the solver may take altogether; None: what it needs.

    Raises:
        BudgetError: No architecture costs that little, or none was found in the time.
    """
    deriving = _Deriving(space, probabilities, limits, fill, seconds)
    found = deriving.solve() if all(limit.most >= 1 for limit in limits) else None
    if found is not None:
        return found
    stepped = deriving.best_of([space.smallest_architecture(), repair(space, probabilities, limits)])
    if stepped is not None:
        return Derivation(stepped, deriving.given_up(stepped), np.inf)
    least = " and ".join(limit.cost.written(least_cost(space, limit.cost)) for limit in limits)
    raise BudgetError(
        f"cannot derive an architecture of at most {' and '.join(map(str, limits))}: the smallest of this search space "
        f"has {least}"
    )


def least_cost(space: SearchSpace, cost: Cost, *, seconds: float | None = BRIEFLY) -> int:
    """What the cheapest architecture costs.

    Args:
        space: The search space.
        cost: The kind of cost; where that may be another than the smallest, the solver looks for it.
        seconds: Time that the solver may take; after that it is the cheapest that it found.
    """
    smallest = space.cost(cost, space.smallest_architecture())
    if space.smallest_is_cheapest(cost):
        return smallest
    program = IntegerProgram(space, [cost])
    found = program.solve(_scaled(program.sums[0]), [0.0], [np.inf], seconds=seconds).architecture
    return smallest if found is None else min(smallest, space.cost(cost, found))


def check_attainable(space: SearchSpace, limits: Sequence[Limit], *, seconds: float | None = SOLVER_SECONDS) -> None:
    """Checks that some architecture keeps all limits together.

    Args:
        space: The search space.
        limits: What may be spent of each kind of cost.
        seconds: Time that the solver may take; what is not proved in it is let through.

    Raises:
        BudgetError: None does; the message states, for each, the least that the others leave attainable.
    """
    if all(limit.is_kept(space, space.smallest_architecture()) for limit in limits):
        return
    program = IntegerProgram(space, [limit.cost for limit in limits])
    most = [limit.most + 0.5 for limit in limits]
    if program.solve([], [0.0] * len(limits), most, seconds=seconds).bound < np.inf:
        return
    if len(limits) == 1:
        (limit,) = limits
        full = space.cost(limit.cost, space.full_architecture())
        raise out_of_reach(f"of {limit}:", limit.cost, least_cost(space, limit.cost), full)
    ranges = []
    for place, limit in enumerate(limits):
        total = program.sums[place]
        loose = [np.inf if at == place else value for at, value in enumerate(most)]
        found = program.solve(_scaled(total), [0.0] * len(limits), loose, seconds=seconds).architecture
        least = "not attainable" if found is None else f"at least {limit.cost.written(space.cost(limit.cost, found))}"
        ranges.append(f"{limit.cost.name} {least}")
    raise BudgetError(
        f"cannot keep the budgets {' and '.join(map(str, limits))} together: no architecture of this search space "
        f"does. Where the others are kept: {', '.join(ranges)}; allow more of one"
    )


def _scaled(total: LinearSum) -> LinearSum:
    most = max(factor for _, factor in total)
    return [(variable, factor / most) for variable, factor in total]


class _Deriving:
    """One derivation: the program, the objective, and the time that is left."""

    def __init__(
        self,
        space: SearchSpace,
        probabilities: Probabilities,
        limits: Sequence[Limit],
        fill: float,
        seconds: float | None,
    ) -> None:
        self.space, self.probabilities, self.limits, self.fill = space, probabilities, limits, fill
        self.asked = [fill * limit.most for limit in limits]
        self.end = None if seconds is None else time.monotonic() + seconds
        self.logs = log_probabilities(space, probabilities)
        self.program = IntegerProgram(space, [limit.cost for limit in limits])

    def solve(self) -> Derivation | None:
        """The best of all that use what is allowed, or nearly what can be used of it; None where none is found."""
        free = self._best(self._objective())
        if free.architecture is None or not self.fill or self._is_filled(free.architecture):
            return self._better(free)
        filled = self._filled()
        if all(each.bound == np.inf for each in filled):  # none uses that much
            places = range(len(self.limits))
            self.asked = [self.fill * self._fullest(place, free.architecture) for place in places]
            if self._is_filled(free.architecture):
                return self._better(free)
            filled = self._filled()
        found = [each.architecture for each in filled if each.architecture is not None]
        if not found:  # the time ran out
            return self._better(Solution(free.architecture, -np.inf))
        bound = max(free.bound, min(each.bound for each in filled))
        return self._better(Solution(min(found, key=self.given_up), bound))

    def best_of(self, architectures: Iterable[Architecture | None]) -> Architecture | None:
        """The most probable of those within all limits that use what is asked, else of those that do not."""
        kept = [each for each in architectures if each is not None and self._is_kept(each)]
        return max(kept, key=lambda each: (self._is_filled(each), -self.given_up(each)), default=None)

    def given_up(self, architecture: Architecture) -> float:
        """Log-probability that an architecture gives up against the most probable one."""
        sizes = self.space.sizes_of(architecture)
        lost = [
            row.max() - row[choice.candidates.index(size)]
            for choice, size, row in zip(self.space.choices, sizes, self.logs, strict=True)
        ]
        return float(sum(lost))

    def _filled(self) -> list[Solution]:
        """For each limit the most probable architecture within all of them that uses as much of it as is asked."""
        places = range(len(self.limits))
        return [
            self._best(self._objective(), [self.asked[place] if at == place else 0.0 for at in places])
            for place in places
        ]

    def _fullest(self, place: int, known: Architecture) -> int:
        """The most that an architecture within all limits uses of one of them, and no less than a known one."""
        total = [(variable, -factor) for variable, factor in _scaled(self.program.sums[place])]
        found = self._best(total).architecture
        return max(self.space.cost(self.limits[place].cost, each) for each in (known, found) if each is not None)

    def _best(self, objective: LinearSum, least: Sequence[float] | None = None) -> Solution:
        """The best architecture within all limits that uses at least so much of each."""
        least = [0.0] * len(self.limits) if least is None else least
        first = self._try(objective, least, [limit.most + 0.5 for limit in self.limits])
        if first.architecture is None or self._is_kept(first.architecture):
            return first
        # The solver works with floating-point tolerances, and the promise is about integers: where half a unit is too
        # small for it to see, the limits are drawn in. What is proved without that holds all the same.
        again = self._try(objective, least, [limit.most * (1 - 2 * TOLERANCE) for limit in self.limits])
        is_kept = again.architecture is not None and self._is_kept(again.architecture)
        return Solution(again.architecture if is_kept else None, first.bound)

    def _try(self, objective: LinearSum, least: Sequence[float], most: Sequence[float]) -> Solution:
        left = None if self.end is None else max(0.0, self.end - time.monotonic())
        return self.program.solve(objective, least, most, seconds=left)

    def _objective(self) -> LinearSum:
        """Log-probability that each candidate gives up."""
        variables = [*self.program.groups, *self.program.stages]
        return [
            (variable, float(row.max() - value))
            for each, row in zip(variables, self.logs, strict=True)
            for variable, value in zip(each, row, strict=True)
        ]

    def _better(self, solution: Solution) -> Derivation | None:
        """What the solver found, or what single steps find where that is more probable and uses as much."""
        if solution.architecture is None:
            return None
        found = self._derivation(solution.architecture, solution.bound)
        if found.is_proved:
            return found
        stepped = self.best_of([solution.architecture, repair(self.space, self.probabilities, self.limits)])
        return self._derivation(stepped or solution.architecture, solution.bound)

    def _derivation(self, architecture: Architecture, bound: float) -> Derivation:
        given_up = self.given_up(architecture)
        return Derivation(architecture, given_up, max(0.0, given_up - bound))

    def _is_kept(self, architecture: Architecture) -> bool:
        return all(limit.is_kept(self.space, architecture) for limit in self.limits)

    def _is_filled(self, architecture: Architecture) -> bool:
        """Whether it uses as much of one of the limits as is asked."""
        costs = (self.space.cost(limit.cost, architecture) for limit in self.limits)
        return any(cost >= asked for cost, asked in zip(costs, self.asked, strict=True))
