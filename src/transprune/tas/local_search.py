"""An architecture within all limits by changing one size at a time: safe and fast, but not proved to be the best.

The expected cost is linear in the probabilities of any one group or stage. So one backward pass through the expected
cost of a certain architecture says exactly what the architecture would cost with any one of its sizes changed: for a
width of 8 whose candidates have the slopes 100 (of 4) and 180 (of 8), the width 4 saves 80.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from transprune.architecture import Architecture
from transprune.budget import Limit
from transprune.space import SearchSpace
from transprune.tas.expected_cost import ExpectedCost
from transprune.tas.probabilities import Probabilities, certain


def step_within(space: SearchSpace, probabilities: Probabilities, limits: Sequence[Limit]) -> Architecture | None:
    """Steps the most probable architecture down until it keeps all limits, then up as far as they permit.

    Each step down is the one that gives up the least log-probability for what it saves; each step up gains the most.

    Args:
        space: The search space.
        probabilities: Probability of every candidate.
        limits: The most that the architecture may cost of each kind.

    Returns:
        None: no sequence of steps that save leads within the limits.
    """
    if min(limit.most for limit in limits) < 1:  # excesses are shares of the limits
        return None
    stepping = _Stepping(space, probabilities, limits)
    if not stepping.step_down():
        return None
    stepping.step_up()
    return stepping.architecture if all(limit.is_kept(space, stepping.architecture) for limit in limits) else None


class _Stepping:
    """An architecture on its way, and what changing any one of its sizes would do."""

    def __init__(self, space: SearchSpace, probabilities: Probabilities, limits: Sequence[Limit]) -> None:
        self.space = space
        self.choices = space.choices
        self.logs = log_probabilities(space, probabilities)
        self.expected = [ExpectedCost(space, limit.cost) for limit in limits]
        self.most = np.array([limit.most for limit in limits], dtype=float)
        self.leaders = [*space.leaders, *range(len(space.groups), len(self.choices))]
        self.at = [int(self.logs[leader].argmax()) for leader in self.leaders]

    @property
    def architecture(self) -> Architecture:
        """The architecture as it is now."""
        at = zip(self.choices, self.at, strict=True)
        return self.space.architecture_of([choice.candidates[place] for choice, place in at])

    def step_down(self) -> bool:
        """Takes steps until all limits are kept, and says whether they are."""
        for _ in range(sum(map(len, self.logs))):
            costs, after = self._costs()
            excess = _excess(costs / self.most)
            if excess <= 0:
                return True
            best, rate = None, np.inf
            for place, (row, at) in enumerate(zip(self.logs, self.at, strict=True)):
                saved = excess - _excess(after[place] / self.most)
                lost = row[at] - row
                rates = np.where(saved > 1e-9 * excess, lost / np.maximum(saved, 1e-30), np.inf)
                if rates.min() < rate:
                    best, rate = (place, int(rates.argmin())), rates.min()
            if best is None:
                return False
            self._set(*best)
        return False

    def step_up(self) -> None:
        """Steps to more probable sizes, the largest gain first, while the limits are kept."""
        for _ in range(sum(map(len, self.logs))):
            _, after = self._costs()
            best, gain = None, 0.0
            for place, (row, at) in enumerate(zip(self.logs, self.at, strict=True)):
                gains = np.where((after[place] <= self.most).all(1), row - row[at], -np.inf)
                if gains.max() > gain:
                    best, gain = (place, int(gains.argmax())), gains.max()
            if best is None:
                return
            self._set(*best)

    def _set(self, place: int, candidate: int) -> None:
        """Takes another candidate, in groups that are tied to this one as well."""
        self.at = [candidate if leader == place else at for at, leader in zip(self.at, self.leaders, strict=True)]

    def _costs(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """The costs now [limits], and for each choice the costs with each candidate instead [candidates, limits]."""
        here = certain(self.space, self.architecture)
        rows = [each.double().requires_grad_() for each in (here.widths, here.depths)]
        costs, slopes = [], []
        for expected in self.expected:
            cost = expected(Probabilities(*rows))
            given = torch.autograd.grad(cost, rows, allow_unused=True, materialize_grads=True)
            costs.append(cost.item())
            slopes.append([row.numpy() for part in given for row in part])
        after = []
        for place, choice in enumerate(self.choices):
            members = [position for position, leader in enumerate(self.leaders) if leader == place]
            if not members:  # it is no choice of its own
                after.append(np.full((len(choice.candidates), len(costs)), np.inf))
                continue
            together = [sum(each[position] for position in members) for each in slopes]
            slope = np.stack([each[: len(choice.candidates)] for each in together], axis=1)
            after.append(np.round(np.array(costs) + slope - slope[self.at[place]]))
        return np.array(costs), after


def _excess(shares: np.ndarray) -> np.ndarray:
    """By how much costs [..., limits], as shares of the limits, exceed them, summed over the limits."""
    return np.asarray(np.maximum(shares - 1, 0).sum(-1))


def log_probabilities(space: SearchSpace, probabilities: Probabilities) -> list[np.ndarray]:
    """The logarithm of every candidate's probability, groups first, then stages; at least log 1e-30.

    Tied groups are one choice: the first one's row counts for all, and the others have zeros.
    """
    rows = [*probabilities.widths.detach().cpu().double(), *probabilities.depths.detach().cpu().double()]
    logs = [
        np.log(np.maximum(row.numpy()[: len(choice.candidates)], 1e-30))
        for row, choice in zip(rows, space.choices, strict=True)
    ]
    for position, leader in enumerate(space.leaders):
        if leader != position:
            logs[position] = np.zeros_like(logs[position])
    return logs
