"""The search as one call: from a model, data and a budget to an architecture."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from transprune.architecture import Architecture
from transprune.budget import Budget, Limit, parse_budgets
from transprune.costs import COSTS, Cost
from transprune.latency.measurement import trusted_latency
from transprune.options import LatencyOptions, SearchOptions
from transprune.reading.inspection import inspect
from transprune.reading.networks import unwrapped
from transprune.runtime import processes, seeded
from transprune.shrinking.sort import Importance
from transprune.space import SearchSpace
from transprune.tas.bilevel import Bilevel
from transprune.tas.derivation import Derivation, check_attainable, derive_with_proof
from transprune.tas.probabilities import Probabilities
from transprune.training.batches import Data, example_of
from transprune.training.loop import Setup
from transprune.training.tasks import Task


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found."""

    architecture: Architecture
    """The most probable architecture within all budgets."""
    space: SearchSpace
    probabilities: Probabilities
    """Probability of every candidate at the end."""
    limits: tuple[Limit, ...]
    """The most that the architecture may cost, budget by budget."""
    spent: tuple[int, ...]
    """What it costs, each at most the limit."""
    derivation: Derivation
    """How good the architecture is among all within the limits."""
    history: tuple[Mapping[str, Any], ...] = ()
    """Figures of every epoch."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """The supernet's weights as the architecture uses them, under the model's names and at its full widths. Where the
    search started from the model's weights, the channels stand in the order of their importance."""

    @property
    def target(self) -> int:
        """The most that the architecture may cost, of the first budget."""
        return self.limits[0].most

    @property
    def actual(self) -> int:
        """What the architecture costs, as the first budget counts it: at most `target`."""
        return self.spent[0]


def search(
    model: nn.Module,
    data: Data,
    budget: Budget | str | Sequence[Budget | str],
    options: SearchOptions | None = None,
    *,
    space: SearchSpace | None = None,
    costs: Mapping[str, Cost] = COSTS,
    latency: LatencyOptions | None = None,
    task: Task | None = None,
    importance: Importance | None = None,
    setup: Setup | None = None,
) -> SearchResult:
    """Learns the widths and depths of a smaller network. The model is untouched.

    Args:
        model: The network to make smaller.
        data: Samples to learn from.
        budget: What the smaller network may cost, such as `macs=0.5`; or several budgets, all of which are kept.
        options: How to search.
        space: What may be chosen; None: all that `inspect` finds.
        costs: How each kind of cost is counted; MACs and parameters need nothing but the space.
        latency: How latency is measured where a budget speaks of it and `costs` does not; None: the defaults.
        task: Loss, metrics, and how a batch is taken apart; None: `classification()`.
        importance: How much each channel matters, for a search that starts from the model's weights: smaller widths
            keep those that matter most. None: what the options name.
        setup: Seed, device, callbacks and checkpoints; None: the defaults.

    Raises:
        BudgetError: The budget is malformed or out of the attainable range.
        ModelError: The model cannot be read.
        LatencyError: The latency cannot be measured, or its model not be trusted.
        DataError: The data cannot be read or divided, or a batch not be taken apart.
        OptionError: The task's loss or a metric gives something else than expected.
        DivergenceError: The loss or a gradient is not finite.
        ResourceError: Memory ran out, or a process that loads data died.
        StoppedError: A signal or the time limit of the checkpoints ended it.
    """
    options, setup = options or SearchOptions(), (setup or Setup()).named("search")
    budgets = parse_budgets(budget)
    space = space or inspect(copy.deepcopy(unwrapped(model)).cpu(), example_of(data))
    if any(each.kind == "latency" for each in budgets) and "latency" not in costs:
        example, device = example_of(data), setup.device
        measured = processes.from_first(lambda: trusted_latency(model, space, example, latency, device=device).model)
        costs = {**costs, "latency": measured}
    limits = tuple(each.limit(space, costs) for each in budgets)
    check_attainable(space, limits)
    with seeded(setup.seed, setup.phase):
        bilevel = Bilevel(
            model, data, options, task=task, importance=importance, space=space, limits=limits, setup=setup
        )
        bilevel.run()
    return result_of(bilevel)


def result_of(bilevel: Bilevel) -> SearchResult:
    """What a search has found once all its epochs are over."""
    space, limits, options, probabilities = bilevel.space, bilevel.limits, bilevel.options, bilevel.probabilities()
    # Where its time runs out, what the solver has found depends on the process.
    derivation = processes.from_first(
        lambda: derive_with_proof(space, probabilities, limits, fill=options.fill, seconds=options.derivation_seconds)
    )
    architecture = derivation.architecture
    return SearchResult(
        architecture=architecture,
        space=space,
        probabilities=probabilities,
        limits=limits,
        derivation=derivation,
        spent=tuple(space.cost(limit.cost, architecture) for limit in limits),
        history=tuple(bilevel.history),
        weights=bilevel.plain_weights(architecture),
    )
