"""The most probable architecture within all budgets, by an integer program (`integer_program`) that HiGHS solves.

The solver bounds how far its answer is from the best. If its time runs out, `local_search` supplies an architecture
where the solver found none or a worse one, and the bound says what was proved until then.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from transprune.architecture import Architecture
from transprune.budget import Limit, Limits, limits_of, out_of_reach
from transprune.costs import Cost
from transprune.errors import BudgetError, OptionError
from transprune.options import NEARLY_FULL, SOLVER_SECONDS
from transprune.space import SearchSpace
from transprune.tas.integer_program import GAP, IntegerProgram, LinearSum, Solution
from transprune.tas.local_search import log_probabilities, step_within
from transprune.tas.probabilities import Probabilities

TOLERANCE = 1e-6
"""Relative violation of a constraint that the solver accepts."""
BRIEFLY = 10.0
"""Time limit of the solver, in seconds, for a figure that only appears in a message."""


@dataclass(frozen=True)
class Derivation:
    """A derived architecture, and how good it is."""

    architecture: Architecture
    given_up: float
    """Its log-probability (natural) below that of the most probable candidates everywhere; at least 0."""
    gap: float
    """Upper bound on how much more log-probability the best architecture could have; infinite if the time ran out
    before the solver proved a bound."""

    @property
    def is_proved(self) -> bool:
        """Whether it is proved optimal, to within the solver's relative `GAP`."""
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
    limits: Limits,
    *,
    fill: float = NEARLY_FULL,
    seconds: float | None = SOLVER_SECONDS,
) -> Architecture:
    """Finds the most probable architecture that keeps all limits and uses at least the share `fill` of one of them.

    If no architecture uses that much, `fill` counts relative to the most that any uses.

    Deviation: the paper takes the most probable candidate everywhere, whatever it costs
    (`Probabilities.most_probable`). `fill=0` drops the lower bound.

    Args:
        space: The search space.
        probabilities: The probability of every candidate.
        limits: The upper limit for each kind of cost: limits in the space, or budgets such as `macs=0.5`.
        fill: The share of at least one limit that the architecture must use.
        seconds: As in `derive_with_proof`.

    Raises:
        BudgetError: No architecture keeps all limits.
        OptionError: `fill` is no share, or `seconds` are fewer than none.
    """
    return derive_with_proof(space, probabilities, limits, fill=fill, seconds=seconds).architecture


def derive_with_proof(
    space: SearchSpace,
    probabilities: Probabilities,
    limits: Limits,
    *,
    fill: float = NEARLY_FULL,
    seconds: float | None = SOLVER_SECONDS,
) -> Derivation:
    """As `derive`, with a bound on how far the answer is from the best.

    If the time runs out, the answer still keeps all limits, but may use less than `fill` of each.

    Args:
        space: The search space.
        probabilities: The probability of every candidate.
        limits: The upper limit for each kind of cost: limits in the space, or budgets such as `macs=0.5`.
        fill: The share of at least one limit that the architecture must use.
        seconds: Time limit for all calls of the solver together; None: no limit.

    Raises:
        BudgetError: No architecture keeps all limits, or none was found in time.
        OptionError: `fill` is no share, or `seconds` are fewer than none.
    """
    if not 0 <= fill <= 1 or (seconds is not None and not seconds >= 0):
        raise OptionError(
            f"cannot derive with fill={fill} and seconds={seconds}; expected a share in [0, 1], and seconds of at "
            "least 0, or None for no limit"
        )
    limits = limits_of(limits, space)
    deriving = _Deriving(space, probabilities, limits, fill, seconds)
    found = deriving.solve() if all(limit.most >= 1 for limit in limits) else None
    if found is not None:
        return found
    stepped = deriving.best_of([space.smallest_architecture(), step_within(space, probabilities, limits)])
    if stepped is not None:
        return Derivation(stepped, deriving.given_up(stepped), np.inf)
    least = " and ".join(limit.cost.written(least_cost(space, limit.cost)) for limit in limits)
    raise BudgetError(
        f"cannot derive an architecture of at most {' and '.join(map(str, limits))}: the smallest of this search space "
        f"has {least}"
    )


def least_cost(space: SearchSpace, cost: Cost, *, seconds: float | None = BRIEFLY) -> int:
    """The cost of the cheapest architecture.

    The solver is asked only where a larger architecture may be cheaper than the smallest.

    Args:
        space: The search space.
        cost: The kind of cost.
        seconds: Time limit of the solver; if it runs out, the cost of the cheapest architecture found so far.
    """
    smallest = space.cost(cost, space.smallest_architecture())
    if space.smallest_is_cheapest(cost):
        return smallest
    program = IntegerProgram(space, [cost])
    found = program.solve(_scaled(program.sums[0]), [0.0], [np.inf], seconds=seconds).architecture
    return smallest if found is None else min(smallest, space.cost(cost, found))


def check_attainable(space: SearchSpace, limits: Sequence[Limit], *, seconds: float | None = SOLVER_SECONDS) -> None:
    """Checks that some architecture keeps all limits at once.

    Args:
        space: The search space.
        limits: The upper limit for each kind of cost.
        seconds: Time limit of the solver; limits that are not proved unattainable in time pass the check.

    Raises:
        BudgetError: None does; the message gives the least attainable cost of each kind while the others are kept.
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
    """One derivation: its integer program, its log-probabilities, and the time left."""

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
        """The most probable architecture that fills a limit, as `derive` defines it; None if the solver found none."""
        if self.fill and len(self.limits) == 1:
            (best,) = self._filled()
            if best.architecture is not None:  # the best of all as well, if that fills the limit
                return self._better(best)
        free = self._best(self._objective())
        if free.architecture is None or not self.fill or self._is_filled(free.architecture):
            return self._better(free)
        filled = self._filled()
        if all(each.bound == np.inf for each in filled):  # proved: no architecture uses that much
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
        """The most probable of those within all limits, preferring those that fill one; None if there is none."""
        kept = [each for each in architectures if each is not None and self._is_kept(each)]
        return max(kept, key=lambda each: (self._is_filled(each), -self.given_up(each)), default=None)

    def given_up(self, architecture: Architecture) -> float:
        """How far the log-probability of an architecture lies below that of the most probable candidates."""
        sizes = self.space.sizes_of(architecture)
        lost = [
            row.max() - row[choice.candidates.index(size)]
            for choice, size, row in zip(self.space.choices, sizes, self.logs, strict=True)
        ]
        return float(sum(lost))

    def _filled(self) -> list[Solution]:
        """For each limit, the most probable architecture within all of them that fills this one."""
        places = range(len(self.limits))
        return [
            self._best(self._objective(), [self.asked[place] if at == place else 0.0 for at in places])
            for place in places
        ]

    def _fullest(self, place: int, known: Architecture) -> int:
        """The most that any architecture within all limits uses of one of them; at least what a known one uses."""
        total = [(variable, -factor) for variable, factor in _scaled(self.program.sums[place])]
        found = self._best(total).architecture
        return max(self.space.cost(self.limits[place].cost, each) for each in (known, found) if each is not None)

    def _best(self, objective: LinearSum, least: Sequence[float] | None = None) -> Solution:
        """The best architecture within all limits that costs at least `least` of each kind."""
        least = [0.0] * len(self.limits) if least is None else least
        first = self._try(objective, least, [limit.most + 0.5 for limit in self.limits])
        if first.architecture is None or self._is_kept(first.architecture):
            return first
        # The limits are integers, but the solver works to floating-point tolerances: where half a unit is within its
        # tolerance, solve again with slightly tighter limits. The bound from the first call remains valid.
        again = self._try(objective, least, [limit.most * (1 - 2 * TOLERANCE) for limit in self.limits])
        is_kept = again.architecture is not None and self._is_kept(again.architecture)
        return Solution(again.architecture if is_kept else None, first.bound)

    def _try(self, objective: LinearSum, least: Sequence[float], most: Sequence[float]) -> Solution:
        left = None if self.end is None else max(0.0, self.end - time.monotonic())
        return self.program.solve(objective, least, most, seconds=left)

    def _objective(self) -> LinearSum:
        """The log-probability that each candidate gives up, as `given_up` sums it."""
        variables = [*self.program.groups, *self.program.stages]
        return [
            (variable, float(row.max() - value))
            for each, row in zip(variables, self.logs, strict=True)
            for variable, value in zip(each, row, strict=True)
        ]

    def _better(self, solution: Solution) -> Derivation | None:
        """The solver's architecture, or that of `local_search` if it is better by the order of `best_of`."""
        if solution.architecture is None:
            return None
        found = self._derivation(solution.architecture, solution.bound)
        if found.is_proved:
            return found
        stepped = self.best_of([solution.architecture, step_within(self.space, self.probabilities, self.limits)])
        return self._derivation(stepped or solution.architecture, solution.bound)

    def _derivation(self, architecture: Architecture, bound: float) -> Derivation:
        given_up = self.given_up(architecture)
        # Rounded: what is left of sums in another order is no gap.
        return Derivation(architecture, given_up, max(0.0, round(given_up - bound, 12)))

    def _is_kept(self, architecture: Architecture) -> bool:
        return all(limit.is_kept(self.space, architecture) for limit in self.limits)

    def _is_filled(self, architecture: Architecture) -> bool:
        """Whether an architecture uses as much of at least one limit as is asked."""
        costs = (self.space.cost(limit.cost, architecture) for limit in self.limits)
        return any(cost >= asked for cost, asked in zip(costs, self.asked, strict=True))
