"""A search that starts from what the trained network shows of its own accord."""

from __future__ import annotations

import copy
import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from test_searching import OPTIONS, Residual
from test_training import assert_same_state, two_colours
from transprune import Architecture, inspect, shrink
from transprune.budget import Limit
from transprune.costs import MACS
from transprune.errors import OptionError, StoppedError
from transprune.options import SearchOptions, TrainingOptions
from transprune.runtime import Checkpoints
from transprune.searching import contenders
from transprune.searching.contenders import SCORES as SCORES_SAY
from transprune.searching.contenders import SEARCHED, UNIFORM, Contender, best_of
from transprune.searching.search import prior_from_scores, search
from transprune.space import SearchSpace
from transprune.tas.bilevel import Bilevel, architecture_rates
from transprune.tas.expected_cost import ExpectedCost
from transprune.tas.prior import Prior, starting_probabilities
from transprune.tas.sampling import mean_entropy
from transprune.training.batches import Batch, search_feeds
from transprune.training.evaluation import Evaluation, evaluate_batches, evaluation_mode
from transprune.training.loop import Setup
from transprune.training.tasks import classification
from transprune.training.train import Fit, train

SCORES = replace(OPTIONS, start="model", alignment="pad", prior="scores")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return train(Residual(), two_colours(), TrainingOptions(epochs=3, batch_size=16, warm_up_epochs=0))


def half(space: SearchSpace) -> Limit:
    return Limit(MACS, space.macs(space.full_architecture()) // 2)


def prior_of(model: nn.Module, seed: int = 0) -> tuple[Prior, SearchSpace, Limit]:
    space = inspect(model, torch.zeros(1, 1, 4, 4))
    found = prior_from_scores(
        model, two_colours(), SCORES, space=space, limits=[half(space)], setup=Setup(seed=seed, phase="search")
    )
    assert found is not None
    return found, space, half(space)


def test_the_channels_stand_in_another_order_and_the_network_computes_the_same(model: nn.Module) -> None:
    prior, *_ = prior_of(model)
    images = torch.randn(4, 1, 4, 4)
    with evaluation_mode(model), evaluation_mode(prior.network):
        torch.testing.assert_close(prior.network(images), model(images))
    assert len(prior.samples[0]) == 32, "the architecture's half of 64 images"


def test_a_search_starts_half_decided_at_the_budget_around_what_the_scores_found(model: nn.Module) -> None:
    prior, space, limit = prior_of(model)
    assert mean_entropy(prior.probabilities, space) == pytest.approx(0.5, abs=0.05)
    assert float(ExpectedCost(space, MACS)(prior.probabilities)) == pytest.approx(limit.most, rel=0.05)
    assert prior.probabilities.most_probable(space) == prior.architecture
    searching = Bilevel(model, two_colours(), SCORES, space=space, limits=[limit], prior=prior)
    torch.testing.assert_close(searching.probabilities().widths, prior.probabilities.widths.float())
    torch.testing.assert_close(searching.probabilities().depths, prior.probabilities.depths.float())


def test_where_nothing_is_lost_the_least_is_most_probable(model: nn.Module) -> None:
    space = inspect(model, torch.zeros(1, 1, 4, 4))
    falling = [
        [float(len(choice.candidates) - place) for place in range(len(choice.candidates))] for choice in space.choices
    ]
    nothing = [[0.0] * len(row) if place == 1 else row for place, row in enumerate(falling)]
    smallest = space.smallest_architecture()
    before, after = (
        starting_probabilities(space, lost, smallest, [half(space)]).widths[1] for lost in (falling, nothing)
    )
    assert before[-1] > before[1]
    assert (after[:-1] >= after[1:]).all()
    assert after[0] > after[-1]


def test_a_dead_channel_goes_first() -> None:
    torch.manual_seed(0)
    network = Residual()
    with torch.no_grad():
        network.stem.weight[3], network.stem.bias[3] = 0, -1
        for block in network.blocks:
            block.conv.weight[:, 3] = 0
            block.norm.weight[3] = block.norm.bias[3] = 0
        network.classifier.weight[:, 3] = 0
    prior, *_ = prior_of(network)
    weights = prior.network.get_parameter("stem.weight").detach()
    assert [not weight.any() for weight in weights] == [False] * 7 + [True]


def test_the_same_seed_scores_the_same(model: nn.Module) -> None:
    (first, *_), (second, *_) = prior_of(model), prior_of(model)
    assert_same_state(first.network.state_dict(), second.network.state_dict())
    assert torch.equal(first.probabilities.widths, second.probabilities.widths)
    assert first.architecture == second.architecture


def test_scores_say_nothing_of_new_weights(model: nn.Module) -> None:
    space = inspect(model, torch.zeros(1, 1, 4, 4))
    for options in (replace(SCORES, start="scratch"), replace(SCORES, prior="none")):
        assert prior_from_scores(model, two_colours(), options, space=space, limits=[half(space)]) is None


def test_a_prior_that_is_unknown_is_an_error() -> None:
    with pytest.raises(OptionError, match="prior='magic': expected one of none, scores"):
        replace(SCORES, prior="magic")


def test_a_search_that_starts_from_scores_keeps_the_budget_and_repeats(model: nn.Module) -> None:
    first, second = (search(model, two_colours(), "macs=0.5", SCORES, setup=Setup(seed=3)) for _ in range(2))
    assert first.actual <= first.target
    assert first.architecture == second.architecture
    assert torch.equal(first.probabilities.widths, second.probabilities.widths)
    assert_same_state(first.weights, second.weights)


def test_a_search_of_few_steps_takes_larger_ones_and_as_many_temperatures(model: nn.Module) -> None:
    space = inspect(model, torch.zeros(1, 1, 4, 4))
    by_steps = replace(SCORES, architecture_learning_rate=None, architecture_weight_decay=1e-3)
    short, long = architecture_rates(by_steps, 30), architecture_rates(by_steps, 300)
    assert short == pytest.approx((10 * long[0], long[1] / 10))
    assert architecture_rates(by_steps, 600 * 98)[1] == pytest.approx(1e-3), "the paper's steps"
    assert architecture_rates(OPTIONS, 10) == (OPTIONS.architecture_learning_rate, OPTIONS.architecture_weight_decay)
    searching = Bilevel(model, two_colours(), by_steps, space=space, limits=[half(space)])
    steps = [searching.temperature(epoch, step) for epoch in (1, 2, 3) for step in (0, 1)]
    assert steps == sorted(steps, reverse=True)
    assert len(set(steps)) == 6
    assert steps[0] == by_steps.temperature_start
    assert searching.temperature(3, searching.steps_an_epoch) == pytest.approx(by_steps.temperature_end)


def test_probabilities_are_raised_to_a_power_in_the_course_of_a_search(model: nn.Module) -> None:
    space = inspect(model, torch.zeros(1, 1, 4, 4))
    still = replace(OPTIONS, epochs=3, architecture_learning_rate=0.0, architecture_weight_decay=0.0)

    def ended(options: SearchOptions) -> Tensor:
        searching = Bilevel(model, two_colours(), options, space=space, limits=[half(space)])
        begin = torch.tensor([[0.28, 0.24, 0.2, 0.16, 0.08, 0.02, 0.02]]).expand_as(searching.parameters.widths)
        searching.parameters.start_at(replace(searching.probabilities(), widths=begin))
        searching.run()
        return searching.probabilities().widths[0]

    plain = torch.tensor([0.28, 0.24, 0.2, 0.16, 0.08, 0.02, 0.02])
    assert_close(ended(still), plain)
    squares = plain.square()
    for later in (0.0, 0.5):
        assert_close(ended(replace(still, sharpening=2.0, architecture_after=later)), squares / squares.sum())


def test_a_search_that_has_not_decided_says_what_to_change(model: nn.Module) -> None:
    still = replace(OPTIONS, epochs=1, architecture_learning_rate=1e-6)
    found = search(model, two_colours(), "macs=0.5", still)
    assert found.entropy > 0.99
    assert "search.epochs" in found.indecision
    assert "search.architecture_learning_rate" in found.indecision
    assert not replace(found, entropy=0.2).indecision


def test_what_is_kept_is_never_worse_than_what_is_free(model: nn.Module) -> None:
    data = two_colours()
    found = search(model, data, "macs=0.5", SCORES)
    losses = {each.name: each.evaluation.loss for each in found.contenders}
    assert list(losses) == [SEARCHED, SCORES_SAY, UNIFORM]
    assert found.kept is not None
    assert found.kept.evaluation.loss == min(losses.values())
    assert found.architecture == found.kept.architecture
    assert all(found.space.macs(each.architecture) <= found.target for each in found.contenders)
    assert found.contenders[0].architecture == found.derivation.architecture
    assert loss_of(model, found.kept) == pytest.approx(min(losses.values()))


def loss_of(model: nn.Module, contender: Contender) -> float:
    """What a contender's network loses on the data that the architecture learns from."""
    student = shrink(model, contender.architecture, torch.zeros(1, 1, 4, 4), weights="scratch")
    student.load_state_dict(contender.student)
    feeds = search_feeds(
        two_colours(), classification(), batch_size=16, weights_share=0.5, seed=0, device=torch.device("cpu")
    )
    with evaluation_mode(student):
        return evaluate_batches(student, feeds.validation, classification()).loss


def test_the_least_loss_is_kept_and_of_equals_the_first() -> None:
    losses = {SEARCHED: 0.3, SCORES_SAY: 0.2, UNIFORM: 0.2}
    compared = tuple(
        Contender(name=name, architecture=Architecture(), evaluation=Evaluation(loss), origin="teacher", student={})
        for name, loss in losses.items()
    )
    best = best_of(compared)
    assert best is not None
    assert best.name == SCORES_SAY
    assert best_of(()) is None


def test_a_search_that_knows_nothing_beforehand_compares_nothing(model: nn.Module) -> None:
    found = search(model, two_colours(), "macs=0.5", OPTIONS)
    assert found.contenders == ()
    assert found.kept is None
    assert found.architecture == found.derivation.architecture


def test_contenders_are_tried_before_one_is_kept(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_repaired", "_inherited"):
        monkeypatch.setattr(contenders, name, _without_answers(getattr(contenders, name)))
    data = two_colours()
    untried = {each.name: each for each in search(model, data, "macs=0.5", replace(SCORES, epochs=1)).contenders}
    found = search(model, data, "macs=0.5", replace(SCORES, epochs=1, trial_epochs=2))
    assert found.kept is not None
    for each in found.contenders:
        assert each.trial_epochs == 2
        assert each.evaluation.loss < 0.9 * untried[each.name].evaluation.loss, "it has learned"
        assert loss_of(model, each) == pytest.approx(each.evaluation.loss), "training goes on from what was tried"
    assert found.kept.evaluation.loss == min(each.evaluation.loss for each in found.contenders)


def _without_answers(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Starts that cannot tell the classes apart."""

    def made(*arguments: Any, **named: Any) -> nn.Module:
        network = make(*arguments, **named)
        nn.init.zeros_(network.get_parameter("classifier.weight"))
        return network

    return made


@pytest.mark.parametrize(("spoilt", "origin"), [("_repaired", "supernet"), ("_inherited", "teacher")])
def test_a_contender_has_the_better_of_two_starts(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, spoilt: str, origin: str
) -> None:
    start = getattr(contenders, spoilt)

    def harmed(*arguments: Any, **named: Any) -> nn.Module:
        network: nn.Module = start(*arguments, **named)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=100)
        return network

    monkeypatch.setattr(contenders, spoilt, harmed)
    found = search(model, two_colours(), "macs=0.5", replace(SCORES, epochs=2))
    assert {each.origin for each in found.contenders} == {origin}
    for each in found.contenders:
        assert loss_of(model, each) == pytest.approx(each.evaluation.loss)


def test_what_the_supernet_has_learned_serves_the_student(model: nn.Module) -> None:
    forgetful = copy.deepcopy(model)
    nn.init.normal_(forgetful.get_parameter("classifier.weight"), std=5)
    options = replace(SCORES, epochs=6, learning_rate=0.05)
    found = search(forgetful, two_colours(), "macs=0.5", options)
    assert found.kept is not None
    assert found.kept.origin == "supernet"


def test_a_trial_that_does_harm_is_not_counted(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(bilevel: Bilevel, student: nn.Module, teacher: nn.Module, name: str) -> nn.Module:
        harmed = copy.deepcopy(student)
        for parameter in harmed.parameters():
            nn.init.normal_(parameter, std=100)
        return harmed

    monkeypatch.setattr("transprune.searching.contenders._tried", spoilt)
    untried, tried = (
        search(model, two_colours(), "macs=0.5", replace(SCORES, epochs=1, trial_epochs=epochs)) for epochs in (0, 2)
    )
    assert [each.evaluation for each in tried.contenders] == [each.evaluation for each in untried.contenders]


def test_a_stopped_trial_goes_on(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, options = two_colours(), replace(SCORES, epochs=1, trial_epochs=2)
    whole = search(model, data, "macs=0.5", options)
    steps, step = itertools.count(1), Fit.step

    def stopping(self: Fit, batch: Batch) -> None:
        if next(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, batch)

    monkeypatch.setattr(Fit, "step", stopping)
    kept = Checkpoints(tmp_path)
    with pytest.raises(StoppedError, match="trial of what the search derived"):
        search(model, data, "macs=0.5", options, setup=Setup(checkpoints=kept))
    monkeypatch.setattr(Bilevel, "step", Mock(side_effect=AssertionError("it searches again")))
    again = search(model, data, "macs=0.5", options, setup=Setup(checkpoints=kept))
    assert [each.evaluation for each in again.contenders] == [each.evaluation for each in whole.contenders]
    assert again.architecture == whole.architecture
    distinct = {str(each.architecture) for each in again.contenders}
    assert next(steps) - 1 == 4 * len(distinct), "no step twice"
    kept.clear()
    assert list(tmp_path.iterdir()) == []
