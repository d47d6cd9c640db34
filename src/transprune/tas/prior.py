"""What is known before a search begins, and the probabilities that it begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transprune.architecture import Architecture
from transprune.budget import Limit
from transprune.space import SearchSpace
from transprune.tas.expected_cost import ExpectedCost
from transprune.tas.probabilities import Probabilities, candidate_masks, certain
from transprune.tas.sampling import masked_log_softmax, mean_entropy

ENTROPY = 0.5
"""Of the probabilities that a search begins with: half decided, so that it can still decide otherwise."""
LEAD = 0.1
"""Logarithm of how much more probable the architecture's own candidates are than others that do as well."""
LEAST = 1e-3
"""Probability that each candidate keeps, so that a search can come back to it."""
TURNS = 6
"""How often sharpness and price are set in turn; each moves the other less than it was moved."""
HALVINGS = 40


@dataclass(frozen=True, kw_only=True, eq=False)
class Prior:
    """What a trained network has shown of its own accord."""

    network: nn.Module = field(repr=False)
    """The unpruned network, its channels in the order in which they are missed."""
    architecture: Architecture
    """The best architecture within the budget, as far as it is known without a search."""
    keeping_blocks: Architecture | None
    """The best one that leaves out no more blocks than the budget demands; None where nothing will be tried."""
    probabilities: Probabilities = field(repr=False)
    """Probability of every candidate when the search begins."""
    within: tuple[Limit, ...]
    """The limits that it was derived within, which are what the search aims at: those that were asked for, or a tighter
    one of time (`transprune.latency.stopwatch.Timekeeper`)."""
    samples: Any = field(repr=False)
    """The inputs that it has been seen from."""
    space: SearchSpace = field(repr=False)
    """What may be chosen, with the order in which the blocks of stages go."""


def starting_probabilities(
    space: SearchSpace,
    lost: Sequence[Sequence[float]],
    architecture: Architecture,
    limits: Sequence[Limit],
    *,
    entropy: float = ENTROPY,
) -> Probabilities:
    """Probabilities around an architecture, from what each candidate loses and what it costs.

    They are softmax(−s (loss + λ cost)) in every group and stage, and no less than `LEAST`. Losses alone would favour
    the unpruned network; the price λ, a Lagrange multiplier of the budget, brings the expected cost to it. The
    sharpness s brings the entropy to what is asked. The architecture's own candidates are the most probable ones.

    Args:
        space: The search space.
        lost: What is lost with each candidate in the architecture's place, groups first, then stages.
        architecture: The architecture, within the limits and of candidates alone.
        limits: The most that an architecture may cost of each kind; the tightest sets the price.
        entropy: The mean entropy that is asked for, in (0, 1).
    """
    masks = candidate_masks(space)
    worst = max((max(row) - min(row) for row in lost), default=0.0) or 1.0
    losses = _filled(masks, [(np.array(row) - min(row)) / worst for row in lost])
    costs = [ExpectedCost(space, limit.cost) for limit in limits]
    prices = _prices(space, architecture, costs, limits)
    chosen = certain(space, architecture)

    def probabilities(sharpness: float, price: float) -> Probabilities:
        rows = []
        for mask, loss, cost, own in zip(masks, losses, prices, (chosen.widths, chosen.depths), strict=True):
            figures = loss + price * cost
            best = figures.masked_fill(~mask, torch.inf).amin(1, keepdim=True) if mask.numel() else figures
            figures = torch.where(own > 0, best, figures)
            likely = masked_log_softmax(LEAD * own - sharpness * figures, mask).exp().clamp_min(LEAST) * mask
            rows.append(likely / likely.sum(1, keepdim=True))
        return Probabilities(*rows)

    def excess(sharpness: float, price: float) -> float:
        found = probabilities(sharpness, price)
        return max(float(cost(found)) / limit.most for cost, limit in zip(costs, limits, strict=True)) - 1

    def indecision(price: float, sharpness: float) -> float:
        return mean_entropy(probabilities(sharpness, price), space) - entropy

    sharpness, price = 1.0, 0.0
    for _ in range(TURNS):
        sharpness = _crossing(partial(indecision, price))
        price = _crossing(partial(excess, sharpness)) if excess(sharpness, 0.0) > 0 else 0.0
    return probabilities(sharpness, price)


def _filled(masks: tuple[Tensor, Tensor], rows: Sequence[np.ndarray]) -> list[Tensor]:
    """Figures of every candidate as the masks have them, zero elsewhere; float64."""
    filled = [torch.zeros(mask.shape, dtype=torch.float64) for mask in masks]
    places = [(part, row) for part, tensor in zip(filled, masks, strict=True) for row in range(len(tensor))]
    for (part, row), figures in zip(places, rows, strict=True):
        part[row, : len(figures)] = torch.from_numpy(figures)
    return filled


def _prices(
    space: SearchSpace, architecture: Architecture, costs: Sequence[ExpectedCost], limits: Sequence[Limit]
) -> list[Tensor]:
    """What each candidate in the architecture's place costs more than the cheapest, as a share of the limits."""
    here = certain(space, architecture)
    rows = [each.double().requires_grad_() for each in (here.widths, here.depths)]
    shares = [cost(Probabilities(*rows)) / limit.most for cost, limit in zip(costs, limits, strict=True)]
    slopes = torch.autograd.grad(torch.stack(shares).sum(), rows, allow_unused=True, materialize_grads=True)
    masks = candidate_masks(space)
    return [
        slope - slope.masked_fill(~mask, torch.inf).amin(1, keepdim=True) if mask.numel() else slope
        for slope, mask in zip(slopes, masks, strict=True)
    ]


def _crossing(falling: Callable[[float], float], least: float = 1e-6, most: float = 1e9) -> float:
    """Where a function that falls crosses zero, to a factor near 1; an end of the range where it does not."""
    low, high = np.log(least), np.log(most)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(float(np.exp(middle))) > 0 else (low, middle)
    return float(np.exp(low))
