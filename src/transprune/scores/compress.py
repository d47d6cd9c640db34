"""A smaller network without training as one call: from a trained network, samples and a budget, or what may be lost."""

from __future__ import annotations

import inspect as python
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from transprune.budget import UNITS, Budget, parse_budgets
from transprune.costs import COSTS, Cost
from transprune.data import ImageData, LoaderData, make_loader
from transprune.errors import BudgetError, DataError
from transprune.latency.measurement import costs_for
from transprune.latency.stopwatch import how_timed, timekeeper
from transprune.options import LEAST_SAMPLES, CompressOptions, LatencyOptions
from transprune.reading.inspection import inspect
from transprune.reading.networks import unwrapped
from transprune.reading.reading import read
from transprune.reading.trace import Example
from transprune.runtime import announce, choose_device
from transprune.runtime.seeds import generator_of
from transprune.runtime.structures import (
    SampleAxes,
    as_inputs,
    copied,
    has_samples,
    joined,
    on_device,
    samples_in,
    sliced,
)
from transprune.scores.rounds import Compression, compress_by_scores
from transprune.scores.score import Measure, Scores, ablation
from transprune.space import SearchSpace
from transprune.tas.derivation import check_attainable, least_cost
from transprune.training.batches import AnyData, as_data, first_samples, is_pair
from transprune.training.evaluation import Evaluation, evaluate
from transprune.training.tasks import Task, classification

Samples = ImageData | LoaderData | Tensor | Iterable[Any]
"""Where the samples come from."""


def compress(
    model: nn.Module,
    data: Samples,
    budget: Budget | str | Sequence[Budget | str],
    *,
    samples: int = CompressOptions.samples,
    space: SearchSpace | None = None,
    costs: Mapping[str, Cost] = COSTS,
    latency: LatencyOptions | None = None,
    task: Task | None = None,
    measure: Measure = ablation,
    scores: Compression | Sequence[Scores] = (),
    by_loss: bool = False,
    repair: bool = True,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Compression:
    """Makes a trained network smaller without training. The model is untouched.

    What each channel and block is worth is seen from a few hundred samples (`score`); the integer
    program finds the architecture that loses least within the budget; and what is left is fitted to what the whole
    network gives (`repair`). Another budget takes seconds:

        half = transprune.compress(model, images, "macs=0.5")
        third = transprune.compress(model, images, "macs=0.3", scores=half)

    Args:
        model: The network, trained; it runs where its weights are.
        data: Samples, whose labels are not looked at but for `by_loss`: an `ImageData` (images of its training split,
            drawn at random) or a `LoaderData` or a pair of loaders, as `search` takes them (the first of the training
            batches); a tensor [samples, ...]; or any iterable of batches of inputs, each a tensor or a tuple of the
            forward's positional arguments, behind which targets may stand.
        budget: What the smaller network may cost, such as `macs=0.5`; or several budgets, all of which are kept.
        samples: How many samples are looked at; fewer where there are fewer.
        space: What may be chosen; None: all that `inspect` finds.
        costs: How each kind of cost is counted; MACs and parameters need nothing but the space.
        latency: How latency is measured where a budget speaks of it and `costs` does not; None: the defaults.
        task: Says how outputs are compared, and how a batch of a `LoaderData` is taken apart; None: `classification()`.
        measure: What gives the figures: `ablation`, `reconstruction`, `taylor`, or a function of your own.
        scores: An earlier result for the same network, or its scores alone; nothing is scored anew then, and where
            `space` is None the network is not read anew either.
        by_loss: Whether the task's loss on half of the samples decides between the architectures that were found,
            rather than how far the outputs move; the data must say what is right for each sample.
        repair: Whether what is left is fitted; else it has the weights that it had.
        seed: Decides which samples are drawn.
        device: Where a copy of the model is to run instead.

    Raises:
        BudgetError: The budget is malformed or out of the attainable range.
        ModelError: The model cannot be read.
        SpaceError: The space or the scores are another network's.
        LatencyError: The latency cannot be measured, or its model not be trusted.
        ExportError: A budget speaks of a file, and the network cannot be exported.
        DataError: There are too few samples, they are no inputs of the network, or lack labels that are asked for.
        OptionError: Too few samples are asked for, or the measure does not give a figure for every candidate.
    """
    CompressOptions(samples=samples)  # checks the number
    budgets = parse_budgets(budget)
    place, model = choose_device(device, model), unwrapped(model)
    model = model if device is None else copied(model).to(place)
    task, seen = task or classification(), None
    if isinstance(scores, Compression):
        space, seen, scores = space or scores.space, scores.halves, scores.scores
    inputs, axes, right = gather_labelled(model, data, samples, task=task, seed=seed, has_labels=by_loss)
    example = on_device(sliced(inputs, slice(0, 1), samples_in(inputs, axis=axes), axes), "cpu")
    space = space or inspect(copied(model).cpu(), example, removable="branches")
    task.check_axis(read(model, example, space.reading).trace.axes)
    keeper = timekeeper(model, space, example, how_timed(costs, latency))
    costs = costs_for(budgets, model, space, example, costs=costs, latency=latency)
    limits = tuple(each.limit(space, costs) for each in budgets)
    check_attainable(space, limits)
    return compress_by_scores(
        model,
        space,
        limits,
        inputs,
        task=task,
        targets=right,
        measure=measure,
        scores=scores,
        seen=seen,
        repair=repair,
        timekeeper=keeper,
    )


STEPS = 100
"""Shares of a cost that `smallest` tells apart; closer ones differ by less than another seed does."""


@dataclass(frozen=True, kw_only=True)
class TriedBudget:
    """A budget, and what a network within it has lost."""

    budget: Budget
    spent: int
    """What the network costs."""
    figure: float
    """Its figure on the test part."""
    lost: float
    """By how much that is worse than the unpruned network's; below 0: better."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Smallest:
    """The smallest network that was found to lose no more than is allowed."""

    budget: Budget
    """The least budget that keeps what is asked for."""
    student: nn.Module
    """The network within it, trained where a training was given."""
    compression: Compression
    """What it was before that."""
    metric: str
    """What was judged by: the name of the task's main metric, or loss."""
    before: float
    """That of the unpruned network on the test part."""
    tried: tuple[TriedBudget, ...]
    """All budgets that were tried, in order."""

    def __repr__(self) -> str:
        lost = next(each.lost for each in self.tried if each.budget == self.budget)
        return f"Smallest({self.budget}: {lost:.3g} of {self.before:.4g} {self.metric} lost; {len(self.tried)} tried)"


def smallest(
    model: nn.Module,
    data: AnyData,
    lose: float,
    kind: str = "macs",
    *,
    train: Callable[[nn.Module], nn.Module] | None = None,
    samples: int = CompressOptions.samples,
    space: SearchSpace | None = None,
    costs: Mapping[str, Cost] = COSTS,
    latency: LatencyOptions | None = None,
    task: Task | None = None,
    by_loss: bool = False,
    repair: bool = True,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Smallest:
    """Finds how small a trained network may become before it loses more than is allowed. The model is untouched.

    Networks are made by `compress`, all from the same scores, trained if asked for, and judged on the test part of the
    data. What they may cost is found by bisection, to a hundredth of the unpruned network's:

        found = transprune.smallest(model, data, 0.5, "macs")  # at most half a point of top-1
        found.budget, found.student

    Args:
        model: The network, trained; it runs where its weights are.
        data: An `ImageData`, a `LoaderData` or a pair of loaders, with a training part and a test part.
        lose: By how much the task's main metric may get worse, in its own unit: points of percent for classifiers.
            Without metrics: by how much the loss may.
        kind: What is to be small: a kind of budget, such as macs, params, latency or file.
        train: What each network is trained by before it is judged, such as a short `distill`; None: it is repaired
            alone.
        samples: How many samples are looked at to score the network.
        space: What may be chosen; None: all that `inspect` finds.
        costs: How each kind of cost is counted.
        latency: How latency is measured where the kind is that.
        task: Says how outputs are compared, and what is judged by; None: `classification()`.
        by_loss: Whether the loss decides between architectures, as in `compress`.
        repair: Whether what is left is fitted.
        seed: Decides which samples are drawn.
        device: Where a copy of the model is to run instead.

    Raises:
        BudgetError: The kind is unknown, or even a hundredth less loses more than is allowed.
        TranspruneError: As `compress` and `evaluate`.
    """
    if not (math.isfinite(lose) and lose >= 0):
        raise BudgetError(f"cannot look for a network that loses at most {lose:g}: expected 0 or more, such as 0.5")
    if kind not in UNITS:
        raise BudgetError(f"cannot look for a network of little {kind!r}: expected one of {', '.join(UNITS)}")
    task, model = task or classification(), unwrapped(model)
    model = model if device is None else copied(model).to(choose_device(device, model))
    data = as_data(data, task)
    whole = evaluate(model, data, task=task)
    by_clock = how_timed(costs, latency)

    def compressed(step: int, known: Compression | None = None, *, repair: bool = repair) -> Compression:
        return compress(
            model,
            data,
            _share(kind, step),
            samples=samples,
            space=space,
            costs=costs if known is None else {kind: known.limits[0].cost},
            latency=by_clock if known is not None or by_clock is None else replace(by_clock, checks=0),
            task=task,
            scores=known or (),
            by_loss=by_loss,
            repair=repair,
            seed=seed,
        )

    known = compressed(STEPS)  # the unpruned network itself: its scores serve all budgets
    cost = known.limits[0].cost
    least = math.ceil(STEPS * least_cost(known.space, cost) / known.space.cost(cost, known.space.full_architecture()))
    worst = evaluate(compressed(least, known, repair=False).student, data, task=task)
    judge = _Judge(task.main or "loss", whole, lose, worst=worst)
    good: dict[int, tuple[Compression, nn.Module]] = {}

    def keeps(step: int) -> bool:
        made = compressed(step, known)
        student = made.student if train is None else train(made.student)
        is_kept = judge.keeps(_share(kind, step), made.spent[0], evaluate(student, data, task=task))
        if is_kept:
            good[step] = made, student
        return is_kept

    best = _least_that(keeps, least, STEPS)
    if best not in good:
        nearest = judge.tried[-1]
        raise BudgetError(
            f"cannot make a smaller network that loses at most {lose:g} of {judge.metric} ({judge.before:.4g}): within "
            f"{nearest.budget} it loses {nearest.lost:.3g}; expected more that may be lost, or a longer training"
        )
    made, student = good[best]
    return Smallest(
        budget=_share(kind, best),
        student=student,
        compression=made,
        metric=judge.metric,
        before=judge.before,
        tried=tuple(judge.tried),
    )


def _share(kind: str, step: int) -> Budget:
    return Budget(kind, step / STEPS, is_share=True)


def _least_that(keeps: Callable[[int], bool], least: int, most: int) -> int:
    """The least number that is enough, if all above it are; the most, which is not tried, where no other is."""
    if least >= most or keeps(least):
        return least
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if keeps(middle) else (middle, most)
    return most


class _Judge:
    """Says of networks whether they lose no more than is allowed, and notes what they lose.

    Args:
        metric: The name of a metric, or loss.
        whole: What the unpruned network reaches.
        lose: What may be lost.
        worst: What a network reaches that is worse for sure: nothing else says whether more of a metric is better.
    """

    def __init__(self, metric: str, whole: Evaluation, lose: float, *, worst: Evaluation) -> None:
        self.metric, self.lose, self.before = metric, lose, whole.headline()[metric]
        self.sign = -1.0 if worst.headline()[metric] > self.before else 1.0
        self.tried: list[TriedBudget] = []

    def keeps(self, budget: Budget, spent: int, evaluation: Evaluation) -> bool:
        """Whether a network within a budget is good enough; one whose figure is no number is not."""
        figure = evaluation.headline()[self.metric]
        lost = self.sign * (self.before - figure)
        is_enough = lost <= self.lose
        self.tried.append(TriedBudget(budget=budget, spent=spent, figure=figure, lost=lost))
        said = f"{max(lost, 0):.3g} lost, {'little enough' if is_enough else 'too much'}"
        announce(f"{budget}: {self.metric} {figure:.4g} of {self.before:.4g}, {said}")
        return is_enough


def gather_samples(model: nn.Module, data: Samples, count: int, *, task: Task, seed: int) -> tuple[Example, SampleAxes]:
    """Inputs of a network as one batch, on the CPU where they are not tensors of the caller's.

    Args:
        model: The network.
        data: As of `compress`.
        count: How many samples are wanted.
        task: Takes batches of a `LoaderData` or of a pair apart.
        seed: Decides which samples are drawn.

    Returns:
        The forward's inputs, fewer samples where there are fewer, and the axes along which samples lie.

    Raises:
        DataError: There are fewer than `LEAST_SAMPLES`, or a batch holds something else than tensors.
    """
    inputs, axes, _ = gather_labelled(model, data, count, task=task, seed=seed, has_labels=False)
    return inputs, axes


def gather_labelled(
    model: nn.Module, data: Samples, count: int, *, task: Task, seed: int, has_labels: bool
) -> tuple[Example, SampleAxes, Any]:
    """Inputs of a network as one batch, as `gather_samples` gives them, and what is right for them.

    Raises:
        DataError: As `gather_samples`, or labels are asked for that the data do not have.
    """
    noted: list[Any] = []

    def inputs_alone() -> Iterator[Example]:
        for inputs, targets in _batches(model, data, count, task=task, seed=seed):
            noted.append(targets)
            yield inputs

    inputs, axes = first_samples(model, inputs_alone(), count, task.sample_axis)
    found = samples_in(inputs, axis=axes if has_samples(axes) else task.sample_axis)
    check_enough(found)
    if not has_labels:
        return inputs, axes, None
    if any(each is None for each in noted):
        raise DataError(
            f"cannot go by the loss with a {type(data).__name__}: it does not say what is right for each sample; "
            "expected an ImageData, a LoaderData, a pair of loaders, or batches of inputs behind which targets stand"
        )
    if not has_samples(axes):
        return inputs, axes, noted[0]
    right = joined(noted, task.sample_axis)
    return inputs, axes, sliced(right, slice(0, found), samples_in(right, axis=task.sample_axis), task.sample_axis)


def _batches(model: nn.Module, data: Samples, count: int, *, task: Task, seed: int) -> Iterator[tuple[Example, Any]]:
    """Batches of inputs with their targets, None where there are none.

    Raises:
        DataError: There are no batches in this.
    """
    if is_pair(data):
        data = as_data(data, task, is_tested=False)
    if isinstance(data, ImageData):
        places = drawn(len(data.train), count, seed=seed)
        loader = make_loader(data.train.subset(places), data, batch_size=count, train=False, seed=seed, device="cpu")
        return (((images,), labels if data.is_labelled else None) for images, labels in loader)
    if isinstance(data, LoaderData):
        pairs = (task.split(batch) for batch in data.train)
        return ((as_inputs(inputs), targets) for inputs, targets in pairs)
    if isinstance(data, Tensor):
        return iter([((data[drawn(len(data), count, seed=seed)],), None)])
    if hasattr(data, "__iter__"):
        return (_apart(model, batch) for batch in data)
    raise DataError(
        f"cannot take samples from a {type(data).__name__}; expected an ImageData, a LoaderData, a tensor of "
        "samples, or an iterable of batches of inputs"
    )


def drawn(total: int, count: int, *, seed: int) -> Tensor:
    """The places of so many of all samples, drawn at random, ascending; of all of them where there are fewer."""
    order = torch.randperm(total, generator=generator_of(seed))
    return order[:count].sort().values


def check_enough(count: int) -> None:
    """Checks that there are samples enough to score a network on.

    Raises:
        DataError: There are not.
    """
    if count < LEAST_SAMPLES:
        raise DataError(
            f"cannot score a network on {count} sample{'s' if count != 1 else ''}: expected at least {LEAST_SAMPLES}, "
            "better some hundreds; labels are not needed"
        )


def _apart(model: nn.Module, batch: Any) -> tuple[Example, Any]:
    """A batch as the forward takes it, and its targets: what is too much at its end; None if nothing is."""
    if not isinstance(batch, tuple | list):
        return as_inputs(batch), None
    parameters = python.signature(model.forward).parameters.values()
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return tuple(batch), None
    own = max(1, len(positional))
    return tuple(batch[:own]), batch[own] if len(batch) > own else None
