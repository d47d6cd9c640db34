"""The phases of a run before it begins: what each will do, and how long that takes by a few of its own steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from transprune.architecture import Architecture
from transprune.budget import limits_of, points
from transprune.errors import BudgetError
from transprune.options import SearchOptions, TrainingOptions
from transprune.runs.frontier import point_name, point_options
from transprune.runs.material import Material
from transprune.runs.run_options import RunOptions
from transprune.runs.step_times import Pace, pace_of
from transprune.runtime import seeded
from transprune.shrinking.shrink import shrink
from transprune.tas.baselines import uniform_architecture
from transprune.tas.bilevel import Bilevel
from transprune.training.loop import Loop, Setup
from transprune.training.tasks import classification
from transprune.training.train import Fit


@dataclass(frozen=True, kw_only=True)
class PlannedPhase:
    """A phase of training."""

    phase: str
    """Its name in the journal: teacher, supernet, search or distill."""
    folder: str
    """Of a point of a frontier its folder in that of the run; else empty."""
    epochs: int
    """0 if it is left out."""
    steps: int
    """Steps in all epochs."""
    note: str
    """Why it is left out, or what it starts from."""
    seconds: float | None
    """About how long it will take, evaluations at the ends of epochs included; None: not estimated."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A phase of training with all that it needs."""

    phase: str
    options: TrainingOptions | SearchOptions
    loop: Callable[[], Loop]
    file: str
    """What it leaves."""
    folder: str = ""
    note: str = ""
    is_needed: bool = True
    like: str = ""
    """Phases that are like each other take as long for each step."""


class Rehearsal:
    """The phases of a run as loops that are ready to begin, of which a few steps are made to measure them.

    Args:
        options: What decides the run.
        material: What it works with.
        device: Where it trains.
        steps: Steps of each phase that are measured; 0: no times.
    """

    def __init__(self, options: RunOptions, material: Material, device: torch.device, *, steps: int) -> None:
        self.options, self.material, self.device = options, material, device
        self.steps = steps
        self._paces: dict[str, tuple[int, Pace | None]] = {}
        self._setup = Setup(seed=options.seed, device=device, on_divergence="skip")

    def works(self) -> Iterator[Work]:
        """Every phase, in order."""
        yield self._teacher()
        several = points(self.options.budget)
        if len(several) == 1:
            yield self._search(self.options, "")
            yield self._distill(several[0], "", self._uniform(several[0]))
            return
        yield self._supernet()
        for budgets in several:
            yield self._search(point_options(self.options, budgets), point_name(budgets))
            uniform = self._uniform(budgets)
            searched = self._distill(budgets, point_name(budgets), uniform)
            beside = replace(searched, folder=f"{searched.folder}-uniform")
            if uniform is None:
                beside = replace(beside, is_needed=False, note="left out: no uniform widths are within the budget")
            yield searched
            yield beside

    def planned(self, work: Work, *, is_done: bool) -> PlannedPhase:
        """What will be done for a phase."""
        left_out = PlannedPhase(
            phase=work.phase, folder=work.folder, epochs=0, steps=0, note=work.note, seconds=self._time(0, 0, None)
        )
        if is_done:
            return replace(left_out, note=f"done: the folder holds {work.file}")
        if not work.is_needed:
            return left_out
        epochs = work.options.epochs
        steps, pace = self._measured(work)
        return replace(
            left_out,
            epochs=epochs,
            steps=epochs * steps,
            seconds=self._time(epochs * steps, _evaluations(work.options), pace),
        )

    def _time(self, steps: int, evaluations: int, pace: Pace | None) -> float | None:
        if not self.steps:
            return None
        return steps * pace.step + evaluations * pace.evaluation if pace else 0.0

    def _measured(self, work: Work) -> tuple[int, Pace | None]:
        """Steps an epoch, and how fast they go."""
        like = work.like or work.phase
        if like not in self._paces:
            with seeded(self.options.seed, "plan"):
                loop = work.loop()
                pace = pace_of(loop, steps=self.steps) if self.steps else None
            self._paces[like] = len(loop.batches), pace
        return self._paces[like]

    def _teacher(self) -> Work:
        weights, options = self.material.weights, self.options
        note = "from new weights"
        if weights is not None:
            given = f"given: {options.weights}"
            note = (
                f"not trained, weights are {given}"
                if weights.is_whole
                else f"from the {len(weights.tensors)} tensors that fit of weights {given}; {weights.misfit}"
            )
        return Work(
            phase="teacher",
            options=options.teacher,
            loop=partial(self._fit, self.material.model, None, options.teacher, "teacher"),
            file="teacher.safetensors",
            note=note,
            is_needed=weights is None or not weights.is_whole,
        )

    def _supernet(self) -> Work:
        options = replace(self.options.search, architecture_after=1.0)
        return Work(
            phase="supernet",
            options=options,
            loop=partial(self._bilevel, options, "supernet", ()),
            file="shared.safetensors",
            note="the weights that all searches start from",
        )

    def _search(self, options: RunOptions, folder: str) -> Work:
        starts = {"scratch": "from new weights", "model": "from the teacher's weights"}
        return Work(
            phase="search",
            options=options.search,
            loop=partial(self._bilevel, options.search, "search", options.budget),
            file="architecture.json",
            folder=folder,
            note="from the supernet's weights" if folder else starts[options.search.start],
        )

    def _distill(self, budgets: tuple[str, ...], folder: str, uniform: Architecture | None) -> Work:
        starts = {"scratch": "new weights", "teacher": "the teacher's weights", "supernet": "the supernet's weights"}
        return Work(
            phase="distill",
            options=self.options.distill,
            loop=partial(self._distilling, uniform),
            file="student.safetensors",
            folder=folder,
            note=f"from {starts[self.options.student]}",
            like=f"distill {budgets}",
        )

    def _bilevel(self, options: SearchOptions, phase: str, budgets: tuple[str, ...]) -> Loop:
        space = self.material.space
        limits = limits_of(budgets, space, self.material.costs) if budgets else []
        setup = self._setup.named(phase)
        return Bilevel(self.material.model, self.material.data, options, space=space, limits=limits, setup=setup)

    def _distilling(self, uniform: Architecture | None) -> Loop:
        model = self.material.model
        architecture = uniform or self.material.space.smallest_architecture()  # where blocks have to go as well
        example = torch.zeros(1, *self.material.data.image_size)
        student = shrink(model, architecture, example, reading=self.material.space.reading)
        return self._fit(student, model, self.options.distill, "distill")

    def _uniform(self, budgets: tuple[str, ...]) -> Architecture | None:
        """Uniform widths within the budgets, if there are any."""
        try:
            return uniform_architecture(
                self.material.space, limits_of(budgets, self.material.space, self.material.costs)
            )
        except BudgetError:
            return None

    def _fit(self, network: nn.Module, teacher: nn.Module | None, options: TrainingOptions, phase: str) -> Loop:
        return Fit(network, teacher, self.material.data, options, classification(), setup=self._setup.named(phase))


def _evaluations(options: TrainingOptions | SearchOptions) -> int:
    """How often the end of an epoch is followed by an evaluation."""
    every = options.evaluate_every if isinstance(options, TrainingOptions) else 1
    return -(-options.epochs // every)
