"""Plans a run: says what it would do, without writing anything and with only a few steps of training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from transprune.data import said_of_left_out
from transprune.errors import DataError
from transprune.reports.words import amount
from transprune.runs.material import (
    GivenTeacher,
    Material,
    begun_in,
    check_training_images,
    collect,
    judge_teacher,
)
from transprune.runs.phases import DISTILL, TEACHER, courses
from transprune.runs.preparation import check_asked
from transprune.runs.rehearsal import PlannedPhase, Rehearsal
from transprune.runs.run_options import RunOptions
from transprune.runtime import RunFolder, choose_device, print_table
from transprune.runtime.terminal import duration
from transprune.space import Fixed
from transprune.tas.derivation import least_cost


@dataclass(frozen=True, kw_only=True)
class PlannedBudget:
    """A budget in units of its cost."""

    text: str
    """The budget as given."""
    kind: str
    target: int
    """The most that the smaller network may cost."""
    full: int
    """The cost of the unpruned network."""
    smallest: int
    """The least cost of any architecture."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do, on which data and network."""

    model: str
    data: str
    classes: int
    image_size: tuple[int, int, int]
    """Channels, rows and columns."""
    training_images: int
    test_images: int
    left_out: str
    """Says which files are not images by their endings; empty if there are none."""
    divided: str
    """What was taken for the test images where there were none of their own; empty if there are some."""
    teacher: GivenTeacher | None
    """What a teacher whose weights are given can do; None if none is given, or the folder holds it already."""
    groups: int
    """Number of widths to choose."""
    stages: int
    """Number of depths to choose."""
    architectures: float
    """Number of architectures in the space."""
    fixed: tuple[Fixed, ...]
    """What is not searched, and why."""
    budgets: tuple[PlannedBudget, ...]
    phases: tuple[PlannedPhase, ...]
    device: str

    @property
    def seconds(self) -> float | None:
        """Estimated duration of all phases, without evaluation, export and report; None: not estimated."""
        each = [phase.seconds for phase in self.phases]
        return None if None in each else sum(seconds for seconds in each if seconds is not None)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
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
    """Checks everything that a run checks and says what it would do, without changing the folder.

    Durations are estimated from a few real steps of each phase, with untrained networks; a student that is not known
    yet is replaced by one of uniform widths within the budget.

    Args:
        options: The options that decide the result of the run.
        out: The run folder; phases whose results it has are left out.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        overwrite: As in `prepare`.
        resume: As in `prepare`.
        search_only: Plan without distillation.
        measured_steps: Number of steps to time in each phase, after one to warm up; 0: no estimates.

    Raises:
        TranspruneError: Model, data, weights, budget, options or folder cannot be used.
    """
    check_asked(out, overwrite=overwrite, resume=resume)
    chosen = choose_device(device)
    begun = begun_in(out, options, overwrite=overwrite)
    material = _gathered(options, chosen, begun)
    folder = RunFolder(out)
    folder.check(asdict(options), overwrite=overwrite)
    is_known = TEACHER.is_done(folder) and not overwrite
    teacher = None if is_known else judge_teacher(material, chosen)
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
        divided=data.divided,
        teacher=teacher,
        groups=len(space.groups),
        stages=len(space.stages),
        architectures=float(space.count()),
        fixed=tuple(space.fixed),
        budgets=_budgets(material),
        phases=tuple(phases),
        device=str(chosen),
    )


def _gathered(options: RunOptions, device: torch.device, begun: RunFolder | None) -> Material:
    """The material of the run, without downloading anything.

    Raises:
        DataError: The data would have to be downloaded.
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
    if plan.divided:
        print(f"divided: {plan.divided}")
    if plan.teacher:
        print(f"teacher: {plan.teacher}")
        for doubt in plan.teacher.doubts:
            print(f"look at this first: {doubt}")
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
