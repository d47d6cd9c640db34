"""The search as one call: from a model, data and a budget to an architecture, with what it starts from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from transprune.architecture import Architecture
from transprune.budget import Budget, Limit, parse_budgets
from transprune.costs import COSTS, Cost
from transprune.latency.measurement import costs_for
from transprune.latency.stopwatch import UNTIMED, Timekeeper, how_timed, timekeeper
from transprune.options import DEFAULT_PRESET, LatencyOptions, SearchOptions, from_preset
from transprune.reading.inspection import inspect
from transprune.reading.networks import switched, unwrapped
from transprune.reading.trace import Example
from transprune.runtime import choose_device, processes, seeded
from transprune.runtime.structures import copied, on_device
from transprune.scores.rounds import compress_by_scores
from transprune.searching.contenders import KEEPING_BLOCKS, SEARCHED, Contender, best_of, contenders
from transprune.shrinking.shrink import shrink
from transprune.shrinking.sort import Importance
from transprune.space import SearchSpace
from transprune.tas.bilevel import Bilevel
from transprune.tas.derivation import Derivation, check_attainable, derive_with_proof
from transprune.tas.prior import Prior, starting_probabilities
from transprune.tas.probabilities import DECIDED, UNDECIDED, Probabilities
from transprune.tas.sampling import mean_entropy
from transprune.training.batches import AnyData, Data, as_data, example_of, first_samples, search_feeds
from transprune.training.loop import Setup
from transprune.training.tasks import Task, classification

SAMPLES = 512
"""Samples that are scored on, at most."""


def prior_from_scores(
    model: nn.Module,
    data: Data,
    options: SearchOptions,
    *,
    space: SearchSpace,
    limits: Sequence[Limit],
    task: Task | None = None,
    setup: Setup | None = None,
    keeper: Timekeeper = UNTIMED,
) -> Prior | None:
    """Scores a trained network on some of the architecture's samples, without their labels. The model is untouched.

    The same seed gives the same prior, so that a search that goes on after an interruption can ask again. See `search`
    for the arguments; `keeper` holds what is found against the clock.

    Returns:
        None: the options ask for none, or for new weights, of which scores say nothing.
    """
    if options.prior == "none" or options.start == "scratch":
        return None
    setup, task = (setup or Setup()).placed(model), task or classification()
    start = copied(unwrapped(model)).cpu()

    def scored() -> dict[str, Any]:
        with processes.alone(), seeded(setup.seed, "prior"):
            samples = _not_augmented(start, data, options, task, seed=setup.seed)
            network = copied(start).to(choose_device(setup.device))
            found = compress_by_scores(network, space, limits, samples, task=task, timekeeper=keeper)
            at_the_budget, keeping_blocks = found.scores[-1], None
            if options.trial_epochs:
                keeping_blocks, _ = keeper.settled(
                    KEEPING_BLOCKS,
                    found.space,
                    limits,
                    lambda within: at_the_budget.keeping_blocks().derive(found.space, within),
                )
        lost = [each.lost for each in (*at_the_budget.groups, *at_the_budget.stages)]
        return {
            "architecture": found.architecture,
            "keeping_blocks": keeping_blocks and keeping_blocks.architecture,
            "probabilities": starting_probabilities(found.space, lost, found.architecture, found.within),
            "within": found.within,
            "samples": samples,
            "space": found.space,
            "state": on_device(found.sorted_model.state_dict(), "cpu"),
        }

    # Sums differ from process to process, and all must begin with the same figures.
    known = processes.from_first(scored)
    start.load_state_dict(known.pop("state"))
    return Prior(network=start, **known)


def _not_augmented(network: nn.Module, data: Data, options: SearchOptions, task: Task, *, seed: int) -> Example:
    """The inputs of at most `SAMPLES` samples that the architecture learns from, on the CPU."""
    cpu = torch.device("cpu")
    feeds = search_feeds(
        data, task, batch_size=options.batch_size, weights_share=options.weights_share, seed=seed, device=cpu
    )
    with closing(iter(feeds.validation)) as batches:  # type: ignore[type-var]
        inputs = (batch.inputs for batch in batches)
        return first_samples(network, inputs, SAMPLES, task.sample_axis, while_alike=True)[0]


log = logging.getLogger("transprune.run")


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found."""

    architecture: Architecture
    """The architecture that was kept: the most probable one within all budgets, or one of `contenders` that does
    better."""
    space: SearchSpace
    probabilities: Probabilities
    """Probability of every candidate at the end."""
    limits: tuple[Limit, ...]
    """The most that the architecture may cost, budget by budget."""
    spent: tuple[int, ...]
    """What it costs, each at most the limit."""
    derivation: Derivation
    """The most probable architecture within the limits, and how good it is among all."""
    entropy: float
    """How undecided the search was at its end: 1 where all candidates are equally probable, 0 where one of each group
    and stage is certain."""
    contenders: tuple[Contender, ...] = ()
    """What was compared at the end of a search that starts from scores: what it derived, and what is free."""
    history: tuple[Mapping[str, Any], ...] = ()
    """Figures of every epoch."""
    model: nn.Module
    """The network that was searched, its channels in the order in which they are cut."""
    example: tuple[Tensor, ...]
    """Inputs of the right shape."""
    seed: int
    """That of the search."""
    device: torch.device
    """Where it ran."""
    has_trained_weights: bool
    """Whether the search started from the model's weights."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """The supernet's weights as the architecture uses them, under the model's names and at its full widths. Where the
    search started from the model's weights, the channels stand in the order of their importance."""

    @cached_property
    def student(self) -> nn.Module:
        """The smaller network, for `distill` to start from.

        After a search that began with scores it is what the search has kept (`Contender.student`), and can be used as
        it is. After another one that started from the model's weights, it has those of the supernet, and its norms have
        seen no data; else new weights, as in the paper.
        """
        origin, reading = copied(self.model).cpu(), self.space.reading
        is_new = self.kept is None and not self.has_trained_weights
        if self.kept is None and not is_new:
            origin.load_state_dict(self.weights, strict=False)
        with seeded(self.seed, "student"):
            student = shrink(
                origin, self.architecture, self.example, weights="scratch" if is_new else "inherit", reading=reading
            )
        if self.kept is not None:
            student.load_state_dict(self.kept.student)
        elif not is_new:
            for module in student.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.reset_running_stats()
        return switched(student.to(self.device), training=False)

    def __repr__(self) -> str:
        each = zip(self.limits, self.spent, strict=True)
        spent = " and ".join(f"{limit.cost.written(cost)} of at most {limit}" for limit, cost in each)
        kept = f"; kept {self.kept.name}" if self.kept else ""
        return f"SearchResult({spent}; entropy {self.entropy:.2f}{kept})"

    def _repr_html_(self) -> str:
        return self.space.picture(self.architecture, repr(self))

    @property
    def kept(self) -> Contender | None:
        """The best of `contenders`, whose architecture was kept; None: there were none."""
        return best_of(self.contenders)

    @property
    def indecision(self) -> str:
        """Says so, and what to change, where the search has not decided; else empty."""
        if self.entropy <= DECIDED:
            return ""
        return (
            f"the entropy of its probabilities is {self.entropy:.2f} of 1, above {DECIDED}, so for all it knows others "
            "are as good as what it chose; give it more epochs (search.epochs), or let the architecture learn faster "
            "(search.architecture_learning_rate; None: by the number of steps)"
        )

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
    data: AnyData,
    budget: Budget | str | Sequence[Budget | str],
    options: SearchOptions | str = DEFAULT_PRESET,
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
        data: Samples to learn from, as `train` takes them.
        budget: What the smaller network may cost, such as `macs=0.5`; or several budgets, all of which are kept.
        options: How to search: figures, or the name of a preset, such as `quick` or `paper-cifar`.
        space: What may be chosen; None: all that `inspect` finds.
        costs: How each kind of cost is counted; MACs and parameters need nothing but the space.
        latency: How latency is measured where a budget speaks of it and `costs` does not; None: the defaults.
        task: Loss, metrics, and how a batch is taken apart; None: `classification()`.
        importance: How much each channel matters, for a search that starts from the model's weights: smaller widths
            keep those that matter most. None: what the options name. A prior has an order of its own.
        setup: Seed, device, progress, callbacks and checkpoints; None: the defaults.

    Raises:
        BudgetError: The budget is malformed or out of the attainable range.
        SpaceError: The space is another network's.
        ModelError: The model cannot be read.
        LatencyError: The latency cannot be measured, or its model not be trusted.
        ExportError: A budget speaks of a file, and the network cannot be exported.
        DataError: The data cannot be read or divided, or a batch not be taken apart.
        OptionError: The task's loss or a metric gives something else than expected.
        DivergenceError: The loss or a gradient is not finite.
        ResourceError: Memory ran out, or a process that loads data died.
        StoppedError: A signal or the time limit of the checkpoints ended it.
    """
    options, setup = from_preset(options, lambda preset: preset.search), (setup or Setup()).named("search", model)
    budgets, task = parse_budgets(budget), task or classification()
    data = as_data(data, task, batch_size=options.batch_size, is_tested=False)
    space = space or inspect(copied(unwrapped(model)).cpu(), example_of(data), removable=options.removable)
    device = choose_device(setup.device)
    keeper = timekeeper(model, space, example_of(data), how_timed(costs, latency), device=device)
    costs = costs_for(budgets, model, space, example_of(data), costs=costs, latency=latency, device=device)
    limits = tuple(each.limit(space, costs) for each in budgets)
    check_attainable(space, limits)
    prior = prior_from_scores(model, data, options, space=space, limits=limits, task=task, setup=setup, keeper=keeper)
    with seeded(setup.seed, setup.phase):
        bilevel = Bilevel(
            model,
            data,
            options,
            task=task,
            importance=importance,
            prior=prior,
            space=space,
            limits=limits,
            setup=setup,
        )
        bilevel.run()
    found = result_of(bilevel, limits, keeper)
    if found.indecision and processes.is_first():
        log.warning("%s: %s", UNDECIDED, found.indecision)
    return found


def result_of(bilevel: Bilevel, limits: Sequence[Limit], keeper: Timekeeper = UNTIMED) -> SearchResult:
    """What a search has found once all its epochs are over.

    Args:
        bilevel: The search.
        limits: What was asked for; the search may have aimed at less, by the clock.
        keeper: Holds what is derived against the clock.
    """
    space, options, probabilities = bilevel.space, bilevel.options, bilevel.probabilities()

    def derive(within: Sequence[Limit]) -> Derivation:
        # Where its time runs out, what the solver has found depends on the process.
        return processes.from_first(
            lambda: derive_with_proof(
                space, probabilities, within, fill=options.fill, seconds=options.derivation_seconds
            )
        )

    derivation, _ = keeper.settled(SEARCHED, space, limits, derive, within=bilevel.limits)
    compared = contenders(bilevel, derivation.architecture, limits, keeper)
    best = best_of(compared)
    architecture = derivation.architecture if best is None else best.architecture
    return SearchResult(
        architecture=architecture,
        space=space,
        probabilities=probabilities,
        entropy=mean_entropy(probabilities, space),
        limits=tuple(limits),
        derivation=derivation,
        spent=tuple(space.cost(limit.cost, architecture) for limit in limits),
        contenders=compared,
        history=tuple(bilevel.history),
        model=bilevel.model if bilevel.prior is None else bilevel.prior.network,
        example=bilevel.example,
        seed=bilevel.setup.seed,
        device=bilevel.device,
        has_trained_weights=options.start == "model",
        weights=bilevel.plain_weights(architecture),
    )
