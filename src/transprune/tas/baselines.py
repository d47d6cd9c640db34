"""Architectures that nothing has learned, of the same cost: what a search has to beat."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from transprune.architecture import Architecture
from transprune.budget import Limits, limits_of
from transprune.costs import Cost
from transprune.errors import BudgetError
from transprune.options import NEARLY_FULL
from transprune.runtime.seeds import generator_of
from transprune.space import SearchSpace
from transprune.tas.derivation import derive
from transprune.tas.probabilities import Probabilities, candidate_masks
from transprune.tas.sampling import masked_log_softmax, perturb


def uniform_architecture(space: SearchSpace, limits: Limits) -> Architecture:
    """All blocks, and every width scaled by the same factor: the largest that stays within all limits.

    Widths are rounded to the nearest whole number, halves up, and need not be candidates. Rounded down, widths that
    double from stage to stage would all change at the same factors, and leave much of a budget unused.

    Args:
        space: The search space.
        limits: The most that the architecture may cost of each kind, as limits or budgets (`macs=0.5`).

    Raises:
        BudgetError: Even the smallest factor costs more.
    """
    limits = limits_of(limits, space)
    steps = {Fraction(2 * width - 1, 2 * group.width) for group in space.groups for width in range(1, group.width + 1)}
    shares = [Fraction(0), *sorted(steps)]

    def is_too_large(share: Fraction) -> bool:
        return not all(limit.is_kept(space, _scaled(space, share)) for limit in limits)

    if all(limit.cost.is_monotone for limit in limits):
        fitting = bisect_left(shares, True, key=is_too_large)
    else:  # a wider one may cost less
        fitting = next((count for count in range(len(shares), 0, -1) if not is_too_large(shares[count - 1])), 0)
    if not fitting:
        least = " and ".join(limit.cost.written(_least(space, limit.cost, shares)) for limit in limits)
        raise BudgetError(
            f"cannot scale all widths to at most {' and '.join(map(str, limits))}: with every block and all widths at "
            f"one share this network has at least {least}"
        )
    return _scaled(space, shares[fitting - 1])


def _least(space: SearchSpace, cost: Cost, shares: Sequence[Fraction]) -> int:
    """The cost at the cheapest of these shares, which ascend."""
    return min(space.cost(cost, _scaled(space, share)) for share in (shares[:1] if cost.is_monotone else shares))


def _scaled(space: SearchSpace, share: Fraction) -> Architecture:
    return Architecture(
        widths={group.name: max(1, int(group.width * share + Fraction(1, 2))) for group in space.groups},
        depths={stage.name: stage.depth for stage in space.stages},
        blocks={stage.name: stage.blocks for stage in space.stages if stage.parts},  # branches are told by their names
    )


def random_architecture(space: SearchSpace, limits: Limits, *, seed: int, fill: float = NEARLY_FULL) -> Architecture:
    """Random candidates within all limits that nearly use up one of them, wherever the space permits.

    Every candidate gets a random score, and `derive` takes the architecture within the limits whose scores have the
    largest sum. Where no limit binds and `fill` is 0, all candidates are equally probable.

    Args:
        space: The search space.
        limits: The most that the architecture may cost of each kind, as limits or budgets (`macs=0.5`).
        seed: Decides the scores.
        fill: As in `derive`.

    Raises:
        BudgetError: No architecture costs that little.
    """
    generator = generator_of(seed)
    widths, depths = (_random_scores(mask, generator) for mask in candidate_masks(space))
    return derive(space, Probabilities(widths, depths), limits, fill=fill)


def _random_scores(is_candidate: Tensor, generator: torch.Generator) -> Tensor:
    """Probabilities [choices, candidates] whose logarithms are standard Gumbel noise plus a constant in each row."""
    if is_candidate.numel() == 0:
        return is_candidate.double()
    even = masked_log_softmax(torch.zeros(is_candidate.shape, dtype=torch.float64), is_candidate)
    return perturb(even, 1.0, generator).softmax(1)
