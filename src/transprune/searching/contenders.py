"""What a search found against what is free: uniform widths, and what the scores say."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor, nn

from transprune.architecture import Architecture
from transprune.errors import BudgetError
from transprune.options import DistillationOptions, StepOptions
from transprune.reading.execution import Program
from transprune.reading.trace import inputs_for
from transprune.runtime import processes, seeded
from transprune.runtime.structures import on_device
from transprune.scores.refit import Targets, record_targets, repair_read
from transprune.shrinking.shrink import shrink
from transprune.tas.baselines import uniform_architecture
from transprune.tas.bilevel import Bilevel
from transprune.tas.prior import Prior
from transprune.training.evaluation import Evaluation, evaluate_batches, evaluation_mode
from transprune.training.train import Fit

SEARCHED, SCORES, UNIFORM = "what the search derived", "what the scores say", "uniform widths"
KEEPING_BLOCKS = "what the scores say, keeping blocks"
CONTENDERS = (SEARCHED, SCORES, KEEPING_BLOCKS, UNIFORM)
"""The names of all that may be compared."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """An architecture within the budget, cut from the trained network, repaired, and tried."""

    name: str
    architecture: Architecture
    evaluation: Evaluation
    """On the architecture's part of the data, after the epochs of the trial, or before them if these did harm."""
    trial_epochs: int = 0
    """Epochs for which it has learned."""
    student: Mapping[str, Tensor] = field(repr=False)
    """The repaired network's parameters and buffers, under the names of the shrunk network."""


def contenders(bilevel: Bilevel, derived: Architecture) -> tuple[Contender, ...]:
    """What a search that knew scores beforehand found, and what is free at the same budget, all treated alike.

    Each is cut from the trained network, its channels in the order of the scores, repaired on the same samples,
    distilled for a few epochs on the data that the weights learned from if the options ask for it, and measured on the
    data that the architecture learned from. The trial has the search's rates, which fall to zero in it: what a network
    is worth untrained says little of what it will be worth, where blocks are left out.

    Returns:
        None of them where the search knew nothing beforehand; without the uniform widths where none are in the budget.
    """
    if bilevel.prior is None:
        return ()
    prior, found = bilevel.prior, {SEARCHED: derived, SCORES: bilevel.prior.architecture}
    if prior.keeping_blocks not in (None, prior.architecture):
        found[KEEPING_BLOCKS] = prior.keeping_blocks
    with suppress(BudgetError):  # blocks have to go as well
        found[UNIFORM] = uniform_architecture(bilevel.space, bilevel.limits)
    with evaluation_mode(prior.network):
        targets = record_targets(
            prior.network, Program(bilevel.space.reading), inputs_for(prior.network, prior.samples)
        )
    compared: list[Contender] = []
    kept = bilevel.setup.checkpoints
    if kept is not None and bilevel.options.trial_epochs:
        kept.save(bilevel.phase, bilevel.state_dict())  # so that a stop in a trial leaves no epoch to be searched again
    for name, architecture in found.items():
        known = next((each for each in compared if each.architecture == architecture), None)
        if known is None:
            with seeded(bilevel.setup.seed, "contenders"):  # samples of a user's may be drawn at random
                known = _measured(bilevel, prior, targets, name=name, architecture=architecture)
        compared.append(replace(known, name=name))
    return tuple(compared)


def best_of(all_alike: tuple[Contender, ...]) -> Contender | None:
    """The one with the least loss, the first of equals."""
    return min(all_alike, key=lambda each: each.evaluation.loss, default=None)


def _measured(bilevel: Bilevel, prior: Prior, targets: Targets, *, name: str, architecture: Architecture) -> Contender:
    student = shrink(prior.network, architecture, prior.samples, reading=bilevel.space.reading)

    def repaired() -> dict[str, Any]:
        with processes.alone():
            fitted = repair_read(student, bilevel.space.reading, targets, architecture, prior.samples)
        return dict(fitted.state_dict())

    state = processes.from_first(repaired)  # sums differ from process to process
    student.load_state_dict(state)
    each = [_tried(bilevel, student, prior.network, name)] if bilevel.options.trial_epochs else []
    # A trial that does harm, as at a rate that is too high for the network, says nothing of the architecture.
    evaluation = min((_evaluated(bilevel, network) for network in (*each, student)), key=lambda found: found.loss)
    return Contender(
        name=name,
        architecture=architecture,
        evaluation=evaluation,
        trial_epochs=bilevel.options.trial_epochs,
        student=on_device(state, "cpu"),
    )


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
