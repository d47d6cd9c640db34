"""A smaller network without training as one call: from a trained network, samples and a budget."""

from __future__ import annotations

import inspect as python
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from transprune.budget import Budget, parse_budgets
from transprune.costs import COSTS, Cost
from transprune.data import ImageData, LoaderData, make_loader
from transprune.errors import DataError
from transprune.latency.measurement import costs_for
from transprune.options import LEAST_SAMPLES, CompressOptions, LatencyOptions
from transprune.reading.inspection import inspect
from transprune.reading.networks import unwrapped
from transprune.reading.reading import read
from transprune.reading.trace import Example
from transprune.runtime import choose_device
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
from transprune.tas.derivation import check_attainable
from transprune.training.batches import as_data, first_samples, is_pair
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
    task = task or classification()
    if isinstance(scores, Compression):
        space, scores = space or scores.space, scores.scores
    inputs, axes, right = gather_labelled(model, data, samples, task=task, seed=seed, has_labels=by_loss)
    example = on_device(sliced(inputs, slice(0, 1), samples_in(inputs, axis=axes), axes), "cpu")
    space = space or inspect(copied(model).cpu(), example, removable="branches")
    task.check_axis(read(model, example, space.reading).trace.axes)
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
        repair=repair,
    )


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
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
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
