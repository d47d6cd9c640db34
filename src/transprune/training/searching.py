"""The search as one call: from a model, data and a budget to an architecture."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from transprune.analysis.derivation import derive
from transprune.analysis.inspection import inspect
from transprune.analysis.probabilities import Probabilities
from transprune.architecture import Architecture
from transprune.budget import Budget
from transprune.data import ImageData
from transprune.layers import CostKind
from transprune.runtime import seeded
from transprune.space import SearchSpace
from transprune.training.bilevel import Bilevel, SearchOptions
from transprune.training.fitting import EpochCallback


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found."""

    architecture: Architecture
    """The most probable architecture within the budget."""
    space: SearchSpace
    probabilities: Probabilities
    """Probability of every candidate at the end."""
    budget_kind: CostKind
    target: int
    """The budget, in MACs a sample or parameters."""
    actual: int
    """What the architecture costs: at most `target`."""
    history: tuple[Mapping[str, Any], ...] = ()
    """Figures of every epoch."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """The supernet's weights as the architecture uses them, under the model's names and at its full widths."""


def search(
    model: nn.Module,
    data: ImageData,
    budget: Budget | str,
    options: SearchOptions | None = None,
    *,
    space: SearchSpace | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_epoch: EpochCallback | None = None,
) -> SearchResult:
    """Learns the widths and depths of a smaller network. The model is untouched.

    Args:
        model: The network to make smaller.
        data: Images to learn from.
        budget: What the smaller network may cost, such as `macs=0.5`.
        options: How to search.
        space: What may be chosen; None: all that `inspect` finds.
        seed: Decides the order of the images, their augmentation and the candidates drawn.
        device: Where to search.
        on_epoch: Called after every epoch.

    Raises:
        BudgetError: The budget is malformed or out of the attainable range.
        ModelError: The model cannot be read.
        DivergenceError: The loss is no longer finite.
    """
    options = options or SearchOptions()
    budget = Budget.parse(budget) if isinstance(budget, str) else budget
    example = torch.zeros(1, *data.image_size)
    space = space or inspect(copy.deepcopy(model).cpu(), example)
    target = budget.target(space)
    history = []
    with seeded(seed, "search"):
        bilevel = Bilevel(
            model, data, options, space=space, kind=budget.kind, target=target, seed=seed, device=torch.device(device)
        )
        for epoch in range(1, options.epochs + 1):
            figures = bilevel.run_epoch(epoch)
            history.append(figures)
            if on_epoch is not None:
                on_epoch(figures)
    probabilities = bilevel.probabilities()
    architecture = derive(space, probabilities, budget.kind, target, fill=options.fill)
    return SearchResult(
        architecture=architecture,
        space=space,
        probabilities=probabilities,
        budget_kind=budget.kind,
        target=target,
        actual=space.cost(budget.kind, architecture),
        history=tuple(history),
        weights={name: value.cpu() for name, value in bilevel.supernet.plain_weights(architecture).items()},
    )
