"""How long each phase of a run will take, from a few of its own steps before it begins."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from transprune.budget import limits_of
from transprune.errors import BudgetError
from transprune.options import SearchOptions, TrainingOptions
from transprune.runs.material import Material
from transprune.runs.phases import DISTILL, Course, Start, TrainingPhase
from transprune.runtime import seeded
from transprune.shrinking.shrink import shrink
from transprune.tas.baselines import uniform_architecture
from transprune.tas.bilevel import Bilevel
from transprune.tas.sampling import Selection
from transprune.training.batches import Batch, Feed
from transprune.training.evaluation import evaluate_batches, evaluation_mode
from transprune.training.loop import Loop, Setup
from transprune.training.train import Fit


@dataclass(frozen=True, kw_only=True)
class PlannedPhase:
    """A phase of training."""

    phase: str
    """Its name in the journal: teacher, supernet, search or distill."""
    folder: str
    """Of a point of a frontier its folder in that of the run; else empty."""
    epochs: int = 0
    """0 if it is left out."""
    steps: int = 0
    """Steps in all epochs."""
    note: str
    """Why it is left out, or what it starts from."""
    seconds: float | None
    """About how long it will take, evaluations at the ends of epochs included; None: not estimated."""


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """How long the parts of a phase take."""

    an_epoch: int
    """How many steps an epoch has."""
    step: float
    """Seconds a step, the batch included."""
    evaluation: float
    """Seconds of an evaluation at the end of an epoch."""


class Rehearsal:
    """Makes a few steps of each phase, on untrained networks, to see how long they take.

    Args:
        material: What the run works with.
        device: Where it trains.
        steps: Steps of each phase that are measured; 0: no times.
    """

    def __init__(self, material: Material, device: torch.device, *, steps: int) -> None:
        self._material, self._steps = material, steps
        self._setup = Setup(seed=material.options.seed, device=device, on_divergence="skip")
        self._times: dict[tuple[str, ...], StepTimes] = {}

    def planned(self, course: Course, phase: TrainingPhase, *, is_done: bool) -> PlannedPhase:
        """What will be done for a phase."""
        material = replace(self._material, options=course.options)
        plan = PlannedPhase(
            phase=phase.name, folder=course.folder, note=phase.note(material), seconds=0.0 if self._steps else None
        )
        if is_done:
            return replace(plan, note=f"done: the folder holds {phase.file}")
        if course.left_out:
            return replace(plan, note="left out: no uniform widths are within the budget")
        if phase.is_given(material):
            return plan
        options = phase.options(course.options)
        times = self._measured(course, phase, material)
        steps = options.epochs * times.an_epoch
        seconds = steps * times.step + _evaluations(options) * times.evaluation
        return replace(plan, epochs=options.epochs, steps=steps, seconds=seconds if self._steps else None)

    def _measured(self, course: Course, phase: TrainingPhase, material: Material) -> StepTimes:
        """How long a step takes. All searches are alike, and all students of one budget."""
        like = (phase.name, *(course.options.budget if phase is DISTILL else ()))
        if like not in self._times:
            with seeded(material.options.seed, "plan"):
                loop = phase.loop(material, self._start(course, phase), self._setup.named(phase.name))
                self._times[like] = time_steps(loop, steps=self._steps)
        return self._times[like]

    def _start(self, course: Course, phase: TrainingPhase) -> Start:
        """Stand-ins for what the phase will start from; for a student, one of uniform widths."""
        model, space = self._material.model, self._material.space
        if phase is not DISTILL:
            return Start(model)
        try:
            limits = limits_of(course.options.budget, space, self._material.costs)
            architecture = course.scaled or uniform_architecture(space, limits)
        except BudgetError:  # blocks have to go as well
            architecture = space.smallest_architecture()
        example = torch.zeros(1, *self._material.data.image_size)
        return Start(shrink(model, architecture, example, reading=self._material.reading), model)


def time_steps(loop: Loop, *, steps: int) -> StepTimes:
    """Measures a loop on its own batches, after a step that warms up. The loop has learned from them then.

    Args:
        loop: A `Fit` or a `Bilevel` that has not begun; of a search, the last epoch is measured, where the architecture
            learns too.
        steps: How many steps are measured, and batches of an evaluation; 0: none, and no time is known.
    """
    if not steps:
        return StepTimes(an_epoch=len(loop.batches), step=0.0, evaluation=0.0)
    loop.epoch = loop.epochs
    step = _seconds(loop.batches, loop.step, steps, loop.device)
    network, forward, batches = _evaluated(loop)
    with evaluation_mode(network):
        batch = _seconds(batches, lambda batch: evaluate_batches(forward, [batch], loop.task), steps, loop.device)
    return StepTimes(an_epoch=len(loop.batches), step=step, evaluation=batch * len(batches))


def _evaluated(loop: Loop) -> tuple[nn.Module, Callable[..., Any], Feed]:
    """What is evaluated at the end of an epoch: its module, its forward, and on which batches."""
    if isinstance(loop, Bilevel):
        likeliest = loop.probabilities().most_probable(loop.space)
        selection = Selection.of(loop.space, likeliest, loop.device)
        return loop.supernet, partial(loop.supernet, selection), loop.validation_batches
    assert isinstance(loop, Fit)
    return loop.network, loop.network, loop.test_batches


def _evaluations(options: TrainingOptions | SearchOptions) -> int:
    """How often the end of an epoch is followed by an evaluation."""
    every = options.evaluate_every if isinstance(options, TrainingOptions) else 1
    return -(-options.epochs // every)


def _seconds(batches: Iterable[Batch], act: Callable[[Batch], object], count: int, device: torch.device) -> float:
    """Median seconds of getting a batch and doing something with it; the first one only warms up."""
    times = []
    with closing(iter(batches)) as stream:  # type: ignore[type-var]
        for _ in range(count + 1):
            begun = time.perf_counter()
            for batch in itertools.islice(stream, 1):
                act(batch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - begun)
    return statistics.median(times[1:] or times)
