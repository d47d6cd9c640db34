"""What a search found against what is free: uniform widths, and what the scores say."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from transprune.architecture import Architecture
from transprune.errors import BudgetError
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

SEARCHED, SCORES, UNIFORM = "what the search derived", "what the scores say", "uniform widths"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """An architecture within the budget, cut from the trained network and repaired without training."""

    name: str
    architecture: Architecture
    evaluation: Evaluation
    """On the architecture's part of the data."""
    student: Mapping[str, Tensor] = field(repr=False)
    """The repaired network's parameters and buffers, under the names of the shrunk network."""


def contenders(bilevel: Bilevel, derived: Architecture) -> tuple[Contender, ...]:
    """What a search that knew scores beforehand found, and what is free at the same budget, all treated alike.

    Each is cut from the trained network, its channels in the order of the scores, repaired on the same samples, and
    measured on the data that the architecture learned from.

    Returns:
        None of them where the search knew nothing beforehand; without the uniform widths where none are in the budget.
    """
    if bilevel.prior is None:
        return ()
    prior, found = bilevel.prior, {SEARCHED: derived, SCORES: bilevel.prior.architecture}
    with suppress(BudgetError):  # blocks have to go as well
        found[UNIFORM] = uniform_architecture(bilevel.space, bilevel.limits)
    with evaluation_mode(prior.network):
        targets = record_targets(
            prior.network, Program(bilevel.space.reading), inputs_for(prior.network, prior.samples)
        )
    compared = []
    for name, architecture in found.items():
        with seeded(bilevel.setup.seed, "contenders"):  # samples of a user's may be drawn at random
            compared.append(_measured(bilevel, prior, targets, name=name, architecture=architecture))
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
    evaluation = _evaluated(bilevel, student)
    return Contender(name=name, architecture=architecture, evaluation=evaluation, student=on_device(state, "cpu"))


def _evaluated(bilevel: Bilevel, student: nn.Module) -> Evaluation:
    placed = student.to(bilevel.device)
    with evaluation_mode(placed):
        return evaluate_batches(placed, bilevel.validation_batches, bilevel.task)
