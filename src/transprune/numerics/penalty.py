"""The part of the architecture loss that steers the expected cost towards the budget."""

from __future__ import annotations

import torch
from torch import Tensor


def budget_penalty(expected: Tensor, actual: Tensor, target: float, tolerance: float) -> Tensor:
    """The penalty on the expected cost, in three regions of the actual cost (Dong & Yang, 2019, Eq. 7).

    Above (1 + tolerance) · target it is log(expected / target), which pushes the cost down; below (1 − tolerance) ·
    target it is −log(expected / target), which pushes it up; between them it is zero, and so is its gradient.

    Deviation: the expected cost is taken relative to the target. It changes the penalty by a constant and its gradient
    not at all, and makes the figure independent of the unit.

    Args:
        expected: Expected cost under the probabilities, a scalar with gradient.
        actual: Cost of the most probable architecture, a scalar.
        target: The budget.
        tolerance: Half the width of the middle region, as a share of the target.
    """
    actual = actual.double()  # whole numbers of this size are not exact in float32
    direction = (actual > (1 + tolerance) * target).to(expected) - (actual < (1 - tolerance) * target).to(expected)
    return direction * torch.log(expected / target)
