"""Scoring again around the architecture found so far, in a few rounds towards the budget.

Figures of single changes do not add up: what a candidate costs depends on what else is cut. So earlier rounds derive
within wider limits, at even ratios down to the budget, and each round looks around from what the one before found. By
default there is one, at the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from transprune.architecture import Architecture
from transprune.budget import Limit
from transprune.errors import SpaceError
from transprune.latency.stopwatch import UNTIMED, Timekeeper
from transprune.reading.execution import Program, Surroundings
from transprune.reading.layouts import Sizes
from transprune.reading.networks import unwrapped
from transprune.reading.reading import Reading, read_for
from transprune.reading.trace import Example, inputs_for
from transprune.runtime.structures import called, on_device, sliced
from transprune.scores.evidence import Halves, check_choices, distance_of, gather_evidence
from transprune.scores.refit import Refit, repair_read
from transprune.scores.score import ABLATION_SAMPLES, Measure, Scores, ablation, scores_of
from transprune.shrinking.shrink import shrink
from transprune.shrinking.sort import reorder_channels
from transprune.shrinking.traced_network import CutRun, sizes_of
from transprune.space import DepthStage, SearchSpace
from transprune.training.evaluation import evaluation_mode
from transprune.training.tasks import Task, classification

Found = TypeVar("Found")
APPROACHES = 1
"""Rounds until the budget is reached."""
REPETITIONS = 0
"""Rounds at the budget itself."""
MOST_RUNS = 800
"""Runs without some blocks of a stage, about twice; long stages follow one order alone, each block of it once."""
TRIES = 4
"""Sets of blocks that are measured on all samples, once the widths are known."""
MOST_BYTES = 2**28
"""What is kept of an unpruned network's outputs for another budget."""
CHECK_SAMPLES = 8
"""Samples on which the smaller network's own forward is held against the operators."""


@dataclass(frozen=True)
class Tried(Generic[Found]):
    """What a round at the budget found, and how much it loses."""

    found: Found
    lost: float


def rounds_towards(
    start: Found,
    find: Callable[[Found, float], Found],
    lost: Callable[[Found], float],
    *,
    approaches: int = APPROACHES,
    repetitions: int = REPETITIONS,
) -> Tried[Found]:
    """The best of what several rounds find at the budget.

    Args:
        start: Where to look around from first.
        find: From where to look around, and how much of the way to the budget to go (1: all of it), to what is found.
        lost: What something that was found at the budget loses.
        approaches: Rounds until the budget is reached.
        repetitions: Rounds at the budget itself; they end early where nothing changes.
    """
    here, tried = start, list[Tried[Found]]()
    for place in range(approaches + repetitions):
        found = find(here, min(1.0, (place + 1) / approaches))
        if place + 1 >= approaches:
            if any(found == each.found for each in tried):
                break
            tried.append(Tried(found, lost(found)))
        here = found
    return min(tried, key=lambda each: each.lost)


def limits_on_the_way(space: SearchSpace, limits: Sequence[Limit], share: float) -> list[Limit]:
    """Limits between what the unpruned network costs and the budget, at even ratios."""
    full = [space.cost(limit.cost, space.full_architecture()) for limit in limits]
    if share >= 1:
        return list(limits)
    return [
        Limit(limit.cost, int(cost * (limit.most / cost) ** share)) for limit, cost in zip(limits, full, strict=True)
    ]


@dataclass(frozen=True, eq=False, repr=False)
class Compression:
    """A smaller network within a budget, with what led to it."""

    architecture: Architecture
    space: SearchSpace
    """What could be chosen."""
    limits: tuple[Limit, ...]
    """The most that it may cost of each kind."""
    within: tuple[Limit, ...]
    """The limits that it was derived within: the same, or a tighter one of time where the clock said more than the
    latency model (`Timekeeper`)."""
    scores: tuple[Scores, ...]
    """Of each round; the first ones look around from the unpruned network."""
    sorted_model: nn.Module
    """The unpruned network with its channels in the order in which the student's were cut."""
    student: nn.Module
    """The smaller network; repaired, unless that was switched off."""
    moved: float
    """How far its outputs are from the unpruned network's."""
    halves: Halves | None = None
    """What was seen of the unpruned network, for another budget; None where it takes more memory than `MOST_BYTES`."""

    @property
    def spent(self) -> tuple[int, ...]:
        """What the architecture costs, by the kind of each limit."""
        return tuple(self.space.cost(limit.cost, self.architecture) for limit in self.limits)

    def __repr__(self) -> str:
        each = zip(self.limits, self.spent, strict=True)
        spent = " and ".join(f"{limit.cost.written(cost)} of at most {limit}" for limit, cost in each)
        return f"Compression({spent}; outputs moved by {self.moved:.3g})"

    def _repr_html_(self) -> str:
        return self.space.picture(self.architecture, repr(self))


@dataclass(frozen=True)
class _Place:
    """An architecture, and the round that it was derived in, whose orders its channels are cut in."""

    architecture: Architecture
    round: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Place) and other.architecture == self.architecture

    __hash__ = None  # type: ignore[assignment]


def compress_by_scores(
    model: nn.Module,
    space: SearchSpace,
    limits: Sequence[Limit],
    samples: Example,
    *,
    task: Task | None = None,
    targets: Any = None,
    measure: Measure = ablation,
    scores: Sequence[Scores] = (),
    seen: Halves | None = None,
    repair: bool = True,
    timekeeper: Timekeeper = UNTIMED,
    on_round: Callable[[int, Architecture], None] | None = None,
    approaches: int = APPROACHES,
    repetitions: int = REPETITIONS,
) -> Compression:
    """A smaller network without training: scored in rounds, derived, shrunk and repaired. The model is untouched.

    Deviation: the paper's shallower stages keep their first blocks. Here the blocks of a stage go in the order in which
    they are missed least, if all hand on what they read; the space of the result has that order.

    Args:
        model: The trained network.
        space: The space that `inspect` read from it.
        limits: The most that the smaller network may cost of each kind.
        samples: A batch of inputs, or a tuple of the forward's positional arguments; some hundreds of samples, without
            labels. Candidates are fitted on every second one and tried on the others, and all are what the smaller
            network is repaired on.
        task: Says how outputs are compared; None: `classification()`.
        targets: What is right for each sample, as the task's loss takes it; where given, that loss decides between
            architectures that were found. None: how far the outputs move decides.
        measure: What gives the figures.
        scores: What was scored for another budget; nothing is scored anew then.
        seen: What was seen of the network for another budget; used if it was the same network and samples.
        repair: Whether the smaller network is repaired; else it has the weights that were left.
        timekeeper: Holds what is found against the clock, where a limit is one of time.
        on_round: Is told the number of each round, from 1, and what it found.
        approaches: Rounds until the budget is reached.
        repetitions: Rounds at the budget itself.

    Raises:
        ModelError: The model cannot be read (see `inspect`).
        SpaceError: The space, or what the scores are about, is another network's.
        BudgetError: No architecture costs that little.
    """
    model = unwrapped(model)
    reading = read_for(model, samples, space)
    check_choices(space, reading)
    with evaluation_mode(model):
        compressing = _Compressing(
            model,
            reading,
            space,
            limits=limits,
            samples=samples,
            task=task or classification(),
            targets=targets,
            measure=measure,
            scores=scores,
            seen=seen,
            on_round=on_round,
        )
        start = compressing.space

        def derive(within: Sequence[Limit]) -> tuple[_Place, SearchSpace]:
            compressing.limits, compressing.space = within, start
            place = compressing.derived() if scores else compressing.scored(approaches, repetitions, is_repaired=repair)
            return place, compressing.space

        (place, compressing.space), compressing.limits = timekeeper.settled(
            "what the scores say", space, limits, derive, architecture=lambda found: found[0].architecture
        )
        return compressing.student(place, limits, is_repaired=repair)


def _without_one(kept: tuple[int, ...], stage: DepthStage) -> list[tuple[int, ...]]:
    """A set of blocks without each one that may go, the last one first."""
    return [tuple(each for each in kept if each != place) for place in reversed(kept) if place in stage.free]


class _Compressing:
    """A network on its way to a budget."""

    def __init__(
        self,
        model: nn.Module,
        reading: Reading,
        space: SearchSpace,
        *,
        limits: Sequence[Limit],
        samples: Example,
        task: Task,
        targets: Any,
        measure: Measure,
        scores: Sequence[Scores],
        seen: Halves | None,
        on_round: Callable[[int, Architecture], None] | None,
    ) -> None:
        self.on_round = on_round
        self.model, self.reading, self.limits, self.measure = model, reading, limits, measure
        self.program, self.distance = Program(reading), distance_of(task)
        self.inputs = inputs_for(model, samples)
        is_seen = seen is not None and seen.are_of(model, self.program, self.inputs)
        self.halves = seen if seen is not None and is_seen else Halves(model, self.program, self.inputs)
        self.task, self.right = task, None
        if targets is not None:
            trace = reading.trace
            count = trace.samples_in(trace.tensors_of(self.inputs))
            others = targets if trace.batch is None else sliced(targets, slice(1, None, 2), count, trace.sample_axis)
            self.right = on_device(others, next(model.parameters()).device)
        self.scores: list[Scores] = list(scores)
        self.centres: list[tuple[Architecture, int]] = []
        """The places that were scored, which another budget leaves as they are."""
        self.space = space
        self.looked_at: dict[str, dict[tuple[int, ...], float]] = {}
        """How far the outputs move with sets of blocks, by the name of the stage."""
        self.space = space.ordered(scores[0].block_orders if scores else self._block_orders())

    def scored(self, approaches: int, repetitions: int, *, is_repaired: bool) -> _Place:
        """The best architecture that rounds of scoring find."""
        start = _Place(self.space.full_architecture(), -1)
        best = rounds_towards(start, self._find, self._lost, approaches=approaches, repetitions=repetitions)
        # Single changes say least of blocks: what dropping several costs is far more than the sum. So widths alone are
        # tried as well, with the first and the last figures.
        for round in dict.fromkeys((0, len(self.scores) - 1)):
            if round == best.found.round and self._keeps_blocks(best.found):
                continue
            derived = self.scores[round].keeping_blocks().derive(self.space, self.limits).architecture
            other = _Place(derived, round)
            if other != best.found and (lost := self._lost(other)) < best.lost:
                best = Tried(other, lost)
        return self._with_other_blocks(best, is_repaired=is_repaired)

    def derived(self) -> _Place:
        """The best architecture that follows from scores for another budget."""
        self._check_scores()
        places: list[_Place] = []
        for round, each in enumerate(self.scores):
            for figures in (each, each.keeping_blocks()):
                place = _Place(figures.derive(self.space, self.limits).architecture, round)
                if place not in places:
                    places.append(place)
                if self._keeps_blocks(place):
                    break
        return min(places, key=self._lost) if len(places) > 1 else places[0]

    def _keeps_blocks(self, place: _Place) -> bool:
        """Whether an architecture has all blocks, so that it is also the best of those that do."""
        return all(place.architecture.depths[stage.name] == stage.depth for stage in self.space.stages)

    @torch.no_grad()
    def _block_orders(self) -> dict[str, tuple[int, ...]]:
        """The blocks of each stage that has no order yet, the one that stays longest first.

        Of the blocks that may go, the one goes next without which the outputs move least; of equals the last. Beside
        that, the best other sets of as many blocks are followed, for `_with_other_blocks`.
        """
        trace, first = self.reading.trace, slice(0, ABLATION_SAMPLES)
        few = trace.some_of(self.halves.inputs, first)
        count = trace.samples_in(trace.tensors_of(self.halves.inputs))
        wanted = self.halves.targets.outputs
        if trace.batch is not None:
            wanted = sliced(wanted, first, count, trace.sample_axis)

        def moved(stage: str, kept: tuple[int, ...]) -> float:
            run = CutRun(self.model, self.program, Sizes(blocks={stage: (kept,)}))
            return float(self.distance(self.program.run(run, few), wanted))

        found: dict[str, tuple[int, ...]] = {}
        for stage in self.space.stages:
            if stage.order or len(stage.free) < stage.depth - 1:
                continue
            kept, gone = tuple(range(stage.depth)), list[int]()
            looked_at = self.looked_at[stage.name] = {}
            beam = [kept]
            while len(kept) > 1:
                for each in (kept, *beam):
                    for smaller in _without_one(each, stage):
                        if smaller not in looked_at:
                            looked_at[smaller] = moved(stage.name, smaller)
                least = min(_without_one(kept, stage), key=looked_at.__getitem__)
                kept, gone = least, [next(iter(set(kept) - set(least))), *gone]
                level = sorted((each for each in looked_at if len(each) == len(kept)), key=looked_at.__getitem__)
                beam = level[: MOST_RUNS // stage.depth**2]
            found[stage.name] = (*kept, *gone)
        return found

    def _with_other_blocks(self, best: Tried[_Place], *, is_repaired: bool) -> _Place:
        """The same widths with those sets of blocks that lose least, of the nearest of all that were looked at.

        An order says for each number of blocks which go. What a budget allows is often another set: fewer large ones
        and more small ones, or one that is not among the smaller sets of a good order.
        """
        lost = best.lost if is_repaired else self._lost(best.found, is_fitted=False)
        place = best.found
        for stage in self.space.stages:
            looked_at, now = self.looked_at.get(stage.name, {}), stage.kept_in(place.architecture)
            if now not in looked_at:  # all of them
                continue
            # By the loss, sets that move the outputs more may be better: the unpruned network is wrong at times.
            most = looked_at[now] if self.right is None else float("inf")
            better = sorted((kept for kept in looked_at if looked_at[kept] < most), key=looked_at.__getitem__)
            better = [kept for kept in better if kept != now and len(kept) in stage.candidates]
            ways = (self._with_blocks(place, stage, kept) for kept in better)
            for other in list(islice(filter(self._is_within, ways), TRIES)):
                moved = self._lost(other, is_fitted=is_repaired)
                if moved < lost:
                    place, lost = other, moved
            kept = stage.kept_in(place.architecture)
            gone = [each for each in stage.order if each not in kept]
            self.space = self.space.ordered({stage.name: [each for each in stage.order if each in kept] + gone})
        return place

    def _with_blocks(self, place: _Place, stage: DepthStage, kept: Sequence[int]) -> _Place:
        here = place.architecture
        blocks = {**here.blocks, stage.name: tuple(stage.blocks[each] for each in kept)}
        return replace(place, architecture=replace(here, depths={**here.depths, stage.name: len(kept)}, blocks=blocks))

    def _is_within(self, place: _Place) -> bool:
        return all(self.space.cost(limit.cost, place.architecture) <= limit.most for limit in self.limits)

    def _check_scores(self) -> None:
        """Checks that scores are about the candidates of the space.

        Raises:
            SpaceError: They are not.
        """
        for each in self.scores:
            found = [(choice.name, choice.sizes) for choice in (*each.groups, *each.stages)]
            wanted = [(choice.name, tuple(choice.candidates)) for choice in self.space.choices]
            if found != wanted:
                name = next((name for name in dict(wanted) if name not in dict(found)), "the candidates")
                raise SpaceError(
                    f"cannot derive from these scores: they are about other candidates than the space ({name} differs)"
                    "; expected the scores of this network, made with the same choices"
                )

    def _find(self, here: _Place, share: float) -> _Place:
        centre = here.architecture, here.round
        if centre not in self.centres:
            evidence = gather_evidence(
                self.model,
                self.program,
                self.space,
                samples=self.halves,
                distance=self.distance,
                centre=here.architecture,
                orders=self._orders(here) if here.round >= 0 else None,
            )
            self.scores.append(scores_of(evidence, self.measure))
            self.centres.append(centre)
        round = self.centres.index(centre)
        limits = limits_on_the_way(self.space, self.limits, share)
        place = _Place(self.scores[round].derive(self.space, limits).architecture, round)
        if self.on_round is not None:
            self.on_round(round + 1, place.architecture)
        return place

    def _orders(self, place: _Place) -> dict[str, np.ndarray]:
        natural = {group.name: np.arange(group.width) for group in self.reading.groups}
        return natural | self.scores[place.round].orders

    @torch.no_grad()
    def _lost(self, place: _Place, *, is_fitted: bool = True) -> float:
        """How far the outputs have moved, or the loss, once everything is fitted or as it was cut.

        Judged on samples that nothing is fitted to: on its own the least squares of few and wide layers look better
        than they are.
        """
        sizes = sizes_of(place.architecture, self.reading)
        run: Surroundings
        run = cut = CutRun(self.model, self.program, sizes, self._orders(place).__getitem__)
        if is_fitted:
            refit = Refit(cut, self.halves.targets)
            self.program.run(refit, self.halves.inputs)
            run = refit.as_fitted()
        others = self.halves.others
        outputs = self.program.run(run, others.inputs)
        if self.right is not None:
            return float(self.task.loss_of(outputs, self.right))
        return float(self.distance(outputs, others.wanted))

    def student(self, place: _Place, limits: Sequence[Limit], *, is_repaired: bool) -> Compression:
        """The smaller network of an architecture."""
        units = self._orders(place)
        ordered = reorder_channels(self.model, self.reading, units)
        few = self.reading.trace.some_of(self.inputs, slice(0, CHECK_SAMPLES))
        student = shrink(ordered, place.architecture, few, reading=self.reading)
        targets = self.halves.all_targets
        if is_repaired:
            student = repair_read(
                student, self.reading, targets, place.architecture, self.inputs, units=units.__getitem__
            )
        with torch.no_grad(), evaluation_mode(student):
            moved = float(self.distance(called(student, self.inputs), targets.outputs))
        return Compression(
            architecture=place.architecture,
            space=self.space,
            limits=tuple(limits),
            within=tuple(self.limits),
            scores=tuple(self.scores),
            sorted_model=ordered,
            student=student,
            moved=moved,
            halves=self.halves if self.halves.bytes <= MOST_BYTES else None,
        )
