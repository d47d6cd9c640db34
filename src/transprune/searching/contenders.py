"""What a search found against what is free: uniform widths, and what the scores say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from torch import Tensor, nn

from transprune.architecture import Architecture
from transprune.budget import Limit
from transprune.errors import BudgetError
from transprune.latency.stopwatch import UNTIMED, Timekeeper
from transprune.options import DistillationOptions, StepOptions
from transprune.reading.execution import Program
from transprune.reading.reading import Reading, read_for
from transprune.reading.trace import inputs_for
from transprune.runtime import processes, seeded
from transprune.runtime.structures import copied, on_device
from transprune.scores.refit import Targets, record_targets, repair_read
from transprune.shrinking.shrink import shrink
from transprune.tas.baselines import uniform_architecture
from transprune.tas.bilevel import Bilevel
from transprune.tas.prior import Prior
from transprune.training.evaluation import Evaluation, evaluate_batches, evaluation_mode
from transprune.training.train import Fit, with_statistics

SEARCHED, SCORES, UNIFORM = "what the search derived", "what the scores say", "uniform widths"
KEEPING_BLOCKS = "what the scores say, keeping blocks"
CONTENDERS = (SEARCHED, SCORES, KEEPING_BLOCKS, UNIFORM)
"""The names of all that may be compared."""


Origin = Literal["teacher", "supernet"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """An architecture within the budget, as a network with weights that has been tried."""

    name: str
    architecture: Architecture
    evaluation: Evaluation
    """On the architecture's part of the data, after the epochs of the trial, or before them if these did harm."""
    origin: Origin
    """Whose weights it was cut from: those of the trained network, which were repaired, or those that the supernet has
    learned; what did better before the trial."""
    trial_epochs: int = 0
    """Epochs for which it has learned."""
    student: Mapping[str, Tensor] = field(repr=False)
    """The parameters and buffers that were evaluated, under the names of the shrunk network: what its training goes on
    from."""


def contenders(
    bilevel: Bilevel, derived: Architecture, limits: Sequence[Limit], keeper: Timekeeper = UNTIMED
) -> tuple[Contender, ...]:
    """What a search that knew scores beforehand found, and what is free at the same budget, all treated alike.

    Each is cut from the trained network, its channels in the order of the scores, and repaired on the same samples; and
    cut from the supernet, its norms seeing the samples that the weights learned from. The better of the two is
    distilled for a few epochs on these samples if the options ask for it, and measured on the data that the
    architecture learned from. What a network is worth untrained says little of what it will be worth, where blocks are
    left out.

    Deviation: the paper's student begins anew. Here it goes on from what did best in the trial (`Contender.student`).

    Returns:
        None of them where the search knew nothing beforehand; without the uniform widths where none are in the budget,
        and without what takes longer than a budget of time allows, if not all do.
    """
    if bilevel.prior is None:
        return ()
    prior, found = bilevel.prior, {SEARCHED: derived, SCORES: bilevel.prior.architecture}
    if prior.keeping_blocks not in (None, prior.architecture):
        found[KEEPING_BLOCKS] = prior.keeping_blocks
    with suppress(BudgetError):  # blocks have to go as well
        found[UNIFORM], _ = keeper.settled(
            UNIFORM,
            bilevel.space,
            limits,
            lambda within: uniform_architecture(bilevel.space, within),
            architecture=lambda found: found,
        )
    in_time = {name: each for name, each in found.items() if keeper.keeps(bilevel.space, limits, each)}
    found = in_time or found
    reading = read_for(prior.network, prior.samples, bilevel.space)
    with evaluation_mode(prior.network):
        targets = record_targets(prior.network, Program(reading), inputs_for(prior.network, prior.samples))
    compared: list[Contender] = []
    kept = bilevel.setup.checkpoints
    if kept is not None and bilevel.options.trial_epochs:
        kept.save(bilevel.phase, bilevel.state_dict())  # so that a stop in a trial leaves no epoch to be searched again
    for name, architecture in found.items():
        known = next((each for each in compared if each.architecture == architecture), None)
        if known is None:
            with seeded(bilevel.setup.seed, "contenders"):  # samples of a user's may be drawn at random
                known = _measured(bilevel, prior, reading, targets, name=name, architecture=architecture)
        compared.append(replace(known, name=name))
    return tuple(compared)


def best_of(all_alike: tuple[Contender, ...]) -> Contender | None:
    """The one with the least loss, the first of equals."""
    return min(all_alike, key=lambda each: each.evaluation.loss, default=None)


def _measured(
    bilevel: Bilevel, prior: Prior, reading: Reading, targets: Targets, *, name: str, architecture: Architecture
) -> Contender:
    starts: dict[Origin, nn.Module] = {
        "teacher": _repaired(prior, reading, targets, architecture),
        "supernet": _inherited(bilevel, prior, reading, architecture),
    }
    found = {origin: _evaluated(bilevel, network) for origin, network in starts.items()}
    origin = min(found, key=lambda each: found[each].loss)
    student, evaluation = starts[origin], found[origin]
    if bilevel.options.trial_epochs:
        tried = _tried(bilevel, student, prior.network, name)
        after = _evaluated(bilevel, tried)
        # A trial that does harm, as at a rate that is too high for the network, says nothing of the architecture.
        if after.loss < evaluation.loss:
            student, evaluation = tried, after
    return Contender(
        name=name,
        architecture=architecture,
        evaluation=evaluation,
        origin=origin,
        trial_epochs=bilevel.options.trial_epochs,
        student=on_device(dict(student.state_dict()), "cpu"),
    )


def _repaired(prior: Prior, reading: Reading, targets: Targets, architecture: Architecture) -> nn.Module:
    """A smaller network with the trained network's weights, fitted to what that gives."""
    student = shrink(prior.network, architecture, prior.samples, reading=reading)

    def repaired() -> dict[str, Any]:
        with processes.alone():
            fitted = repair_read(student, reading, targets, architecture, prior.samples)
        return dict(fitted.state_dict())

    student.load_state_dict(processes.from_first(repaired))  # sums differ from process to process
    return student


def _inherited(bilevel: Bilevel, prior: Prior, reading: Reading, architecture: Architecture) -> nn.Module:
    """A smaller network with the supernet's weights, its norms with statistics of the samples that these learned on."""
    origin = copied(prior.network)
    origin.load_state_dict(bilevel.plain_weights(architecture), strict=False)
    student = shrink(origin, architecture, prior.samples, reading=reading).to(bilevel.device)

    def estimated() -> dict[str, Any]:
        with processes.alone():
            return dict(with_statistics(student, bilevel.feeds().weights).state_dict())

    student.load_state_dict(processes.from_first(estimated))
    return student


def _tried(bilevel: Bilevel, student: nn.Module, teacher: nn.Module, name: str) -> nn.Module:
    """A copy of a student that has learned from the unpruned network, on the weights' part of the data alone."""
    options, task, setup = bilevel.options, bilevel.task, bilevel.setup
    feeds = bilevel.feeds()
    trial = DistillationOptions(
        **{each.name: getattr(options, each.name) for each in fields(StepOptions)},
        epochs=options.trial_epochs,
        batch_size=options.batch_size,
        learning_rate=None,  # as the student will learn, and not as the supernet
        warm_up_epochs=options.trial_epochs / 10,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        evaluate_every=options.trial_epochs,
        hints=None,
    )
    phase = f"trial of {name}"
    kept = setup.checkpoints and setup.checkpoints.below(phase.replace(" ", "-"))
    setup = replace(setup, phase=phase, on_epoch=None, on_step=None, checkpoints=kept)
    fit = Fit(student, teacher, bilevel.data, trial, task, setup=setup, feeds=(feeds.weights, feeds.validation))
    fit.run()
    if kept is not None:
        kept.save(phase, fit.state_dict())  # where a later trial is stopped, this one is not done again
    return fit.finished()


def _evaluated(bilevel: Bilevel, student: nn.Module) -> Evaluation:
    placed = student.to(bilevel.device)
    with evaluation_mode(placed):
        return evaluate_batches(placed, bilevel.validation_batches, bilevel.task)
