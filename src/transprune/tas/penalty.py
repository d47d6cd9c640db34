"""The part of the architecture's loss that steers the expected cost towards the budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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


def budgets_penalty(expected: Tensor, actual: Tensor, targets: Sequence[float], tolerance: float) -> Tensor:
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
