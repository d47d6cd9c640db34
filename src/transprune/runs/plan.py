"""Plans a run: says what it would do, without writing anything and with only a few steps of training."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transprune.budget import limits_of
from transprune.data import ImageData, LoaderData, said_of_left_out
from transprune.errors import BudgetError, DataError
from transprune.options import SearchOptions, TrainingOptions
from transprune.reports.words import amount
from transprune.runs.material import (
    GivenTeacher,
    Material,
    begun_in,
    check_asked,
    check_training_images,
    collect,
    judge_teacher,
)
from transprune.runs.phases import DISTILL, SEARCH, TEACHER, Course, Start, TrainingPhase, chosen_optimizers, courses
from transprune.runs.run_options import RunOptions
from transprune.runtime import RunFolder, announce, choose_device, print_table, processes, seeded
from transprune.runtime.terminal import duration, roughly, say
from transprune.searching.contenders import CONTENDERS
from transprune.shrinking.shrink import shrink
from transprune.space import Fixed
from transprune.tas.baselines import uniform_architecture
from transprune.tas.bilevel import Bilevel
from transprune.tas.derivation import least_cost
from transprune.tas.sampling import Selection
from transprune.training.batches import Batch, Data, Feed, example_of, generators_of
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

    def planned(
        self, course: Course, phase: TrainingPhase, *, is_done: bool, is_given: bool | None = None
    ) -> PlannedPhase:
        """What will be done for a phase; `is_given=False`: as if there were something to learn in any case."""
        material = replace(self._material, options=course.options)
        plan = PlannedPhase(
            phase=phase.name, folder=course.folder, note=phase.note(material), seconds=0.0 if self._steps else None
        )
        if is_done:
            return replace(plan, note=f"done: the folder holds {phase.file}")
        if course.left_out:
            return replace(plan, note="left out: no uniform widths are within the budget")
        if phase.is_given(material) if is_given is None else is_given:
            return plan
        options = phase.options(course.options)
        times = self._measured(course, phase, material)
        steps = options.epochs * times.an_epoch
        seconds = steps * times.step + _evaluations(options) * times.evaluation
        if (
            phase is SEARCH
            and isinstance(options, SearchOptions)
            and options.prior == "scores"
            and options.trial_epochs
        ):
            samples = len(CONTENDERS) * options.trial_epochs * times.an_epoch * options.batch_size
            seconds += samples / course.options.distill.batch_size * self._measured(course, DISTILL, material).step
        return replace(plan, epochs=options.epochs, steps=steps, seconds=seconds if self._steps else None)

    def _measured(self, course: Course, phase: TrainingPhase, material: Material) -> StepTimes:
        """How long a step takes. All searches are alike, and all students of one budget."""
        like = (phase.name, *(course.options.budget if phase is DISTILL else ()))
        if like not in self._times:
            with seeded(material.options.seed, "plan"):
                start = self._start(course, phase)
                loop = phase.loop(material, start, self._setup.named(phase.name, start.network))
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
        example = example_of(self._material.data)
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
    classes: int | None
    """None, as what follows, for data of the user's own."""
    image_size: tuple[int, int, int] | None
    """Channels, rows and columns."""
    mean: tuple[float, ...] | None
    """What images are normalised by, for pixels from 0 to 1: the mean of each channel."""
    std: tuple[float, ...] | None
    """Likewise the standard deviation."""
    training_images: int | None
    test_images: int | None
    left_out: str
    """Says which files are not images by their endings; empty if there are none."""
    divided: str
    """What was taken for the test images where there were none of their own; empty if there are some."""
    teacher: GivenTeacher | None
    """What a teacher whose weights are given can do; None if none is given, or the folder holds it already."""
    optimizers: str
    """Says which optimizer the kind of network has decided, and why; empty where the options name them."""
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
    images = data if isinstance(data, ImageData) else None
    if begun is not None and any(phase.epochs for phase in phases):
        check_training_images(data, begun)
    return Plan(
        model=options.model,
        data=options.data,
        classes=len(images.classes) if images else None,
        image_size=images.image_size if images else None,
        mean=images.mean if images else None,
        std=images.std if images else None,
        training_images=len(images.train) if images else None,
        test_images=len(images.test) if images else None,
        left_out=said_of_left_out(images) if images else "",
        divided=images.divided if images else "",
        teacher=teacher,
        optimizers=": ".join(chosen_optimizers(material) or ()),
        groups=len(space.groups),
        stages=len(space.stages),
        architectures=float(space.count()),
        fixed=tuple(space.fixed),
        budgets=_budgets(material),
        phases=tuple(phases),
        device=str(chosen),
    )


WORTH_MEASURING = 60.0
"""Where a run takes no more seconds if all steps were as those of the teacher, the others are not tried."""
DEAREST = 4
"""Steps of the teacher that a step of a search or of distillation takes at most, roughly."""


def foretell(material: Material, device: torch.device, folder: RunFolder, *, search_only: bool = False) -> None:
    """Says at the start of a run which phases it has, and about how long they may take.

    Args:
        material: What the run works with.
        device: Where it trains.
        folder: The run folder; phases whose results it has are left out.
        search_only: Whether the student is left to another command.
    """
    options = material.options
    waiting = [
        (course, phase)
        for course in courses(options, material.space, material.costs)
        for phase in course.phases
        if not (search_only and phase is DISTILL)
        and not (course.left_out or phase.is_given(material) or phase.is_done(RunFolder(folder.path / course.folder)))
    ]
    if not waiting:
        return
    named = [f"{course.folder} {phase.name} {_epochs(course, phase)}".strip() for course, phase in waiting]
    after = "" if search_only else "; then evaluation, export and report"
    announce(f"epochs: {', '.join(named)}{after}")
    with processes.alone(), _same_order(material.data):
        time = _estimated(replace(material, model=copy.deepcopy(material.model)), device, waiting)
    announce(f"{time} of training on {device}, as the first steps take now")


@contextmanager
def _same_order(data: Data) -> Iterator[None]:
    """Lets loaders with generators of their own draw the same samples after the block as if it had not been."""
    loaders = (data.train, data.test, *(data.search or ())) if isinstance(data, LoaderData) else ()
    states = [(each, each.get_state()) for loader in loaders for each in generators_of(loader)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _epochs(course: Course, phase: TrainingPhase) -> int:
    return phase.options(course.options).epochs


def _estimated(material: Material, device: torch.device, waiting: Sequence[tuple[Course, TrainingPhase]]) -> str:
    """About how long phases take, in words. The network of the material learns a little."""
    rehearsal = Rehearsal(material, device, steps=1)
    alike = rehearsal.planned(waiting[0][0], TEACHER, is_done=False, is_given=False)
    assert alike.seconds is not None
    if_alike = alike.seconds / alike.epochs * sum(_epochs(*each) for each in waiting)
    if if_alike <= WORTH_MEASURING:
        return "less than a minute" if DEAREST * if_alike < 60 else "a few minutes at most"
    planned = [rehearsal.planned(course, phase, is_done=False) for course, phase in waiting]
    return roughly(sum(each.seconds for each in planned if each.seconds is not None))


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
    say(f"{plan.model} on {plan.data}: a plan, nothing is written")
    if plan.image_size:
        size = " × ".join(map(str, plan.image_size))
        images = f"{plan.training_images:,} training and {plan.test_images:,} test images"
        say(f"data: {images} of {size}, {plan.classes} classes")
    if plan.mean and plan.std:
        mean, std = (", ".join(f"{value:.4g}" for value in figures) for figures in (plan.mean, plan.std))
        say(f"normalised by mean {mean} and std {std} (--mean, --std)")
    if plan.left_out:
        say(f"left out: {plan.left_out}")
    if plan.divided:
        say(f"divided: {plan.divided}")
    if plan.teacher:
        say(f"teacher: {plan.teacher}")
        for doubt in plan.teacher.doubts:
            say(f"look at this first: {doubt}")
    if plan.optimizers:
        say(plan.optimizers)
    say(f"to choose: {plan.groups} widths and {plan.stages} depths, {plan.architectures:.3g} architectures")
    for reason in dict.fromkeys(fixed.reason for fixed in plan.fixed):
        first, *others = [fixed.name for fixed in plan.fixed if fixed.reason == reason]
        say(f"fixed: {first}{f' and {len(others)} more' if others else ''}: {reason}")
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
        ["phase", "epochs", "steps", "about"],
        [
            [
                f"{phase.folder} {phase.phase}".strip(),
                phase.epochs,
                f"{phase.steps:,}",
                "?" if phase.seconds is None else duration(phase.seconds),
            ]
            for phase in plan.phases
        ],
    )
    notes: dict[str, list[str]] = {}
    for phase in plan.phases:
        notes.setdefault(phase.note, []).append(f"{phase.folder} {phase.phase}".strip())
    for note, phases in notes.items():
        if note:
            say(f"{', '.join(phases)}: {note}")
    if plan.seconds is not None:
        say(f"{roughly(plan.seconds)} in all, and then evaluation, export and report")
