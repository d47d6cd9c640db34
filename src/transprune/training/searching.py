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
from transprune.layers import CostKind
from transprune.networks.sorting import Importance
from transprune.runtime import Checkpoints, seeded
from transprune.space import SearchSpace
from transprune.training.bilevel import Bilevel, SearchOptions
from transprune.training.divergence import Policy
from transprune.training.feeding import Data, example_of
from transprune.training.looping import EpochCallback
from transprune.training.tasks import Task


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
    """The supernet's weights as the architecture uses them, under the model's names and at its full widths. Where the
    search started from the model's weights, the channels stand in the order of their importance."""


def search(
    model: nn.Module,
    data: Data,
    budget: Budget | str,
    options: SearchOptions | None = None,
    *,
    space: SearchSpace | None = None,
    task: Task | None = None,
    importance: Importance | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_epoch: EpochCallback | None = None,
    checkpoints: Checkpoints | None = None,
    on_divergence: Policy = "stop",
) -> SearchResult:
    """Learns the widths and depths of a smaller network. The model is untouched.

    Args:
        model: The network to make smaller.
        data: Samples to learn from.
        budget: What the smaller network may cost, such as `macs=0.5`.
        options: How to search.
        space: What may be chosen; None: all that `inspect` finds.
        task: Loss, metrics, and how a batch is taken apart; None: `classification()`.
        importance: How much each channel matters, for a search that starts from the model's weights: smaller widths
            keep those that matter most. None: what the options name.
        seed: Decides the order of the samples, their augmentation and the candidates drawn.
        device: Where to search.
        on_epoch: Called after every epoch.
        checkpoints: Where to keep what is needed to go on after an interruption, and to go on from if it is there;
            None: nowhere.
        on_divergence: What to do about a loss or a gradient that is not finite: `stop`, or `skip` the step.

    Raises:
        BudgetError: The budget is malformed or out of the attainable range.
        ModelError: The model cannot be read.
        DataError: The data cannot be read or divided, or a batch not be taken apart.
        OptionError: The task's loss or a metric gives something else than expected.
        DivergenceError: The loss or a gradient is not finite.
        ResourceError: Memory ran out, or a process that loads data died.
        StoppedError: A signal or the time limit of the checkpoints ended it.
    """
    options = options or SearchOptions()
    budget = Budget.parse(budget) if isinstance(budget, str) else budget
    space = space or inspect(copy.deepcopy(model).cpu(), example_of(data))
    target = budget.target(space)
    with seeded(seed, "search"):
        bilevel = Bilevel(
            model,
            data,
            options,
            task=task,
            importance=importance,
            space=space,
            kind=budget.kind,
            target=target,
            seed=seed,
            device=torch.device(device),
            on_divergence=on_divergence,
        )
        bilevel.run(checkpoints, on_epoch)
    probabilities = bilevel.probabilities()
    architecture = derive(space, probabilities, budget.kind, target, fill=options.fill)
    return SearchResult(
        architecture=architecture,
        space=space,
        probabilities=probabilities,
        budget_kind=budget.kind,
        target=target,
        actual=space.cost(budget.kind, architecture),
        history=tuple(bilevel.history),
        weights={name: value.cpu() for name, value in bilevel.supernet.plain_weights(architecture).items()},
    )
