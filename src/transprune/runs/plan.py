"""What a run would do, said before it is done: nothing is written, and no more than a few steps are trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from transprune.data import said_of_left_out
from transprune.errors import DataError
from transprune.reports.words import amount
from transprune.runs.material import Material, begun_in, check_training_images, collect
from transprune.runs.phases import DISTILL, courses
from transprune.runs.preparation import check_asked
from transprune.runs.rehearsal import PlannedPhase, Rehearsal
from transprune.runs.run_options import RunOptions
from transprune.runtime import RunFolder, choose_device, print_table
from transprune.runtime.terminal import duration
from transprune.space import Fixed
from transprune.tas.derivation import least_cost


@dataclass(frozen=True, kw_only=True)
class PlannedBudget:
    """What a budget comes to."""

    text: str
    """As it was given."""
    kind: str
    target: int
    """The most that the smaller network may cost."""
    full: int
    """What the unpruned network costs."""
    smallest: int
    """What the smallest architecture costs."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do."""

    model: str
    data: str
    classes: int
    image_size: tuple[int, int, int]
    """Channels, rows and columns."""
    training_images: int
    test_images: int
    left_out: str
    """Which files beside the images are none by their ending; empty if there are none."""
    groups: int
    """Widths to choose."""
    stages: int
    """Depths to choose."""
    architectures: float
    """How many there are."""
    fixed: tuple[Fixed, ...]
    """What is not searched, and why."""
    budgets: tuple[PlannedBudget, ...]
    phases: tuple[PlannedPhase, ...]
    device: str

    @property
    def seconds(self) -> float | None:
        """About how long all phases will take; None: not estimated. Evaluation, export and report come on top."""
        each = [phase.seconds for phase in self.phases]
        return None if None in each else sum(seconds for seconds in each if seconds is not None)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {**asdict(self), "seconds": self.seconds}


def plan_run(
    options: RunOptions,
    out: str | Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    search_only: bool = False,
    measured_steps: int = 3,
) -> Plan:
    """Checks all that a run checks, and says what it would do. The folder is read, and not changed.

    Times are those of a few real steps of each phase, on untrained networks and, where a student is not known yet, with
    one of uniform widths within the budget.

    Args:
        options: What decides the run.
        out: The run folder; phases whose result it holds are left out.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        overwrite: As of `prepare`.
        resume: As of `prepare`.
        search_only: Without the distillation.
        measured_steps: Steps of each phase that are measured, after one that warms up; 0: no times.

    Raises:
        TranspruneError: Model, data, weights, budget, options or folder cannot be used.
    """
    check_asked(out, overwrite=overwrite, resume=resume)
    chosen = choose_device(device)
    begun = begun_in(out, options, overwrite=overwrite)
    material = _gathered(options, chosen, begun)
    folder = RunFolder(out)
    folder.check(asdict(options), overwrite=overwrite)
    rehearsal = Rehearsal(material, chosen, steps=measured_steps)
    phases = [
        rehearsal.planned(course, phase, is_done=not overwrite and phase.is_done(RunFolder(Path(out, course.folder))))
        for course in courses(options, material.space, material.costs)
        for phase in course.phases
        if not (search_only and phase is DISTILL)
    ]
    space, data = material.space, material.data
    if begun is not None and any(phase.epochs for phase in phases):
        check_training_images(data, begun)
    return Plan(
        model=options.model,
        data=options.data,
        classes=len(data.classes),
        image_size=data.image_size,
        training_images=len(data.train),
        test_images=len(data.test),
        left_out=said_of_left_out(data),
        groups=len(space.groups),
        stages=len(space.stages),
        architectures=float(space.count()),
        fixed=tuple(space.fixed),
        budgets=_budgets(material),
        phases=tuple(phases),
        device=str(chosen),
    )


def _gathered(options: RunOptions, device: torch.device, begun: RunFolder | None) -> Material:
    """All that the run works with, but nothing is downloaded.

    Raises:
        DataError: It would have to be.
    """
    try:
        return collect(replace(options, download=False), device, begun_in=begun)
    except DataError as error:
        if not options.download:
            raise
        raise DataError(
            f"cannot plan with data that is not there: {error}; a plan downloads nothing, let a run do it first"
        ) from error


def _budgets(material: Material) -> tuple[PlannedBudget, ...]:
    space, found = material.space, []
    for budget in material.budgets:
        limit = budget.limit(space, material.costs)
        found.append(
            PlannedBudget(
                text=str(budget),
                kind=budget.kind,
                target=limit.most,
                full=space.cost(limit.cost, space.full_architecture()),
                smallest=least_cost(space, limit.cost),
            )
        )
    return tuple(found)


def show_plan(plan: Plan) -> None:
    """Prints a plan."""
    size = " × ".join(map(str, plan.image_size))
    print(f"{plan.model} on {plan.data}: a plan, nothing is written")
    images = f"{plan.training_images:,} training and {plan.test_images:,} test images"
    print(f"data: {images} of {size}, {plan.classes} classes")
    if plan.left_out:
        print(f"left out: {plan.left_out}")
    print(f"to choose: {plan.groups} widths and {plan.stages} depths, {plan.architectures:.3g} architectures")
    for reason in dict.fromkeys(fixed.reason for fixed in plan.fixed):
        first, *others = [fixed.name for fixed in plan.fixed if fixed.reason == reason]
        print(f"fixed: {first}{f' and {len(others)} more' if others else ''}: {reason}")
    print_table(
        "",
        ["budget", "target", "unpruned", "smallest attainable"],
        [
            [budget.text, *(amount(budget.kind, value) for value in (budget.target, budget.full, budget.smallest))]
            for budget in plan.budgets
        ],
    )
    print_table(
        f"on {plan.device}",
        ["phase", "epochs", "steps", "about", ""],
        [
            [
                f"{phase.folder} {phase.phase}".strip(),
                phase.epochs,
                f"{phase.steps:,}",
                "?" if phase.seconds is None else duration(phase.seconds),
                phase.note,
            ]
            for phase in plan.phases
        ],
    )
    if plan.seconds is not None:
        print(f"about {duration(plan.seconds)} in all, and then evaluation, export and report")
