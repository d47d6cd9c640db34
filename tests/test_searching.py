"""The bilevel search."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from test_training import assert_same_state, state_of, two_colours
from transprune.budget import Limit
from transprune.costs import MACS, PARAMS
from transprune.errors import BudgetError, OptionError
from transprune.models.resnet import ResidualSum
from transprune.options import SearchOptions
from transprune.reading.inspection import inspect
from transprune.searching.search import search
from transprune.tas.bilevel import Bilevel
from transprune.tas.expected_cost import ExpectedCost
from transprune.training.batches import example_of, search_feeds
from transprune.training.loop import Setup
from transprune.training.tasks import Task, classification


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.sum = ResidualSum()

    def forward(self, features):
        return F.relu(self.sum(self.norm(self.conv(features)), features))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.classifier = nn.Linear(8, 2)

    def forward(self, images):
        return self.classifier(self.blocks(self.stem(images)).mean((2, 3)))


OPTIONS = SearchOptions(epochs=3, batch_size=16, learning_rate=0.05, architecture_learning_rate=0.05)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Residual()


def bilevel(model, options=OPTIONS, share=0.5, seed=0):
    data = two_colours()
    space = inspect(model, torch.zeros(1, *data.image_size))
    target = int(space.macs(space.full_architecture()) * share)
    torch.manual_seed(seed)
    return Bilevel(model, data, options, space=space, limits=[Limit(MACS, target)], setup=Setup(seed=seed))


def test_a_search_ends_within_its_budget_and_uses_it(model):
    found = search(model, two_colours(), "macs=0.5", OPTIONS)
    assert found.actual == found.space.macs(found.architecture)
    assert 0.9 * found.target < found.actual <= found.target


def test_a_search_keeps_a_budget_of_parameters(model):
    found = search(model, two_colours(), "params=0.4", OPTIONS)
    assert [limit.cost for limit in found.limits] == [PARAMS]
    assert found.space.params(found.architecture) == found.actual <= found.target
    assert "expected_params" in found.history[0]


def test_a_search_leaves_the_model_untouched(model):
    model.train()
    before = state_of(model)
    search(model, two_colours(), "macs=0.5", OPTIONS)
    assert_same_state(before, model.state_dict())
    assert model.training


def test_the_same_seed_finds_the_same_architecture_and_probabilities(model):
    first = search(model, two_colours(), "macs=0.5", OPTIONS, setup=Setup(seed=5))
    torch.manual_seed(99)
    second = search(model, two_colours(), "macs=0.5", OPTIONS, setup=Setup(seed=5))
    other = search(model, two_colours(), "macs=0.5", OPTIONS, setup=Setup(seed=6))
    assert first.architecture == second.architecture
    assert torch.equal(first.probabilities.widths, second.probabilities.widths)
    assert_same_state(first.weights, second.weights)
    assert not torch.equal(first.probabilities.widths, other.probabilities.widths)


def test_a_step_of_the_weights_moves_no_architecture_parameter_and_the_other_way_round(model):
    searching = bilevel(model)
    batch = next(iter(searching.weight_batches))
    weights, parameters = state_of(searching.supernet), state_of(searching.parameters)
    searching.step_architecture(batch, 5.0)
    assert_same_state(weights, searching.supernet.state_dict())
    assert not torch.equal(parameters["widths"], searching.parameters.widths)
    assert not torch.equal(parameters["depths"], searching.parameters.depths)
    assert all(weight.grad is None for weight in searching.weights), "the architecture step needs no weight gradients"
    parameters = state_of(searching.parameters)
    searching.step_weights(batch, 5.0)
    assert_same_state(parameters, searching.parameters.state_dict())
    assert not torch.equal(weights["network.stem.weight"], searching.supernet.state_dict()["network.stem.weight"])


def test_weights_and_architecture_learn_on_different_images(model):
    searching = bilevel(model)
    seen = [set(), set()]
    for place, batches in enumerate((searching.weight_batches, searching.validation_batches)):
        for (images,), *_ in batches:
            seen[place] |= {tuple(image.flatten().tolist()) for image in images}
    assert len(seen[0]) + len(seen[1]) == 64
    assert not seen[0] & seen[1]


@pytest.mark.parametrize(("likeliest", "direction"), [(-1, -1), (0, 1)])
def test_the_penalty_alone_moves_the_expected_cost_towards_the_budget(model, likeliest, direction):
    searching = bilevel(model)
    with torch.no_grad():  # the most probable architecture is the largest, which is too dear, or the smallest
        searching.parameters.widths[:, likeliest] += 1
        searching.parameters.depths[:, likeliest] += 1

    @torch.no_grad()
    def expected():
        return float(searching.expected_costs[0](searching.parameters.probabilities()))

    before = expected()
    for _ in range(5):
        searching.architecture_optimizer.zero_grad()
        searching.penalty().backward()
        searching.architecture_optimizer.step()
    assert (expected() - before) * direction > 0


def test_the_temperature_goes_from_start_to_end(model):
    searching = bilevel(model)
    assert searching.temperature(1) == OPTIONS.temperature_start
    assert searching.temperature(OPTIONS.epochs) == pytest.approx(OPTIONS.temperature_end)


def test_the_architecture_waits_while_the_weights_alone_learn(model):
    options = SearchOptions(epochs=3, batch_size=16, architecture_after=0.34, architecture_learning_rate=0.05)
    searching = bilevel(model, options)
    before = searching.parameters.widths.detach().clone()
    searching.run_epoch()
    assert torch.equal(before, searching.parameters.widths)
    searching.run_epoch()
    assert not torch.equal(before, searching.parameters.widths)


def test_validation_draws_nothing_at_random(model):
    searching = bilevel(model)
    architecture = searching.space.random_architecture(0)
    assert searching.validate(architecture) == searching.validate(architecture)


def test_validation_batches_mix_the_classes_of_data_that_stand_class_by_class():
    data = two_colours()
    ordered = replace(data, train=data.train.subset(data.train.labels.argsort()))
    feeds = search_feeds(ordered, classification(), batch_size=8, weights_share=0.5, seed=0, device=torch.device("cpu"))
    assert all(0 < int(batch.targets.sum()) < 8 for batch in feeds.validation)


def test_every_epoch_reports_probabilities_that_sum_to_one_and_the_costs(model):
    seen = []
    search(model, two_colours(), "macs=0.5", OPTIONS, setup=Setup(on_epoch=seen.append))
    assert [figures["epoch"] for figures in seen] == [1, 2, 3]
    for figures in seen:
        for name in ("width_probabilities", "depth_probabilities"):
            assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in figures[name].values())
        assert 0 <= figures["entropy"] <= 1 + 1e-6
        assert isinstance(figures["actual_macs"], int)


def test_an_unattainable_budget_is_refused_before_any_training_with_the_attainable_range(model):
    seen = []
    with pytest.raises(BudgetError, match=r"attainable range of this search space is [\d,]+ MACs \(0\.\d+ of the"):
        search(model, two_colours(), "macs=0.001", OPTIONS, setup=Setup(on_epoch=seen.append))
    assert seen == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature_end": 0.0}, "temperature_end=0.0: expected at least 0.001"),
        ({"weights_share": 1.0}, "weights_share=1.0"),
        ({"alignment": "stretch"}, "alignment='stretch': expected one of interpolate, pad"),
        ({"width_samples": 0}, "width_samples=0: expected at least 1"),
        ({"epochs": 2, "warm_up_epochs": 2}, "warm_up_epochs=2"),
        ({"tolerance": -0.1}, "tolerance=-0.1: expected at least 0"),
    ],
)
def test_search_options_out_of_range_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        SearchOptions(**options)


def test_several_budgets_are_all_kept_and_every_epoch_tells_of_each(model):
    found = search(model, two_colours(), ["macs=0.5", "params=0.4"], OPTIONS)
    assert found.space.macs(found.architecture) == found.spent[0] <= found.limits[0].most
    assert found.space.params(found.architecture) == found.spent[1] <= found.limits[1].most
    for figures in found.history:
        for kind, limit in zip(("macs", "params"), found.limits, strict=True):
            assert figures[f"target_{kind}"] == limit.most
            assert {f"expected_{kind}", f"actual_{kind}"} <= figures.keys()
    assert found.derivation.is_proved


def test_the_penalty_of_several_budgets_is_the_sum_of_each_ones(model):
    both = bilevel(model)
    macs, params = both.limits[0], Limit(PARAMS, both.space.params(both.space.full_architecture()) // 3)

    def penalty(*limits):
        both.limits = limits
        both.expected_costs = [ExpectedCost(both.space, limit.cost) for limit in limits]
        with torch.no_grad():
            return both.penalty().item()

    with torch.no_grad():  # the most probable architecture is the largest, which exceeds both
        both.parameters.widths[:, -1] += 1
        both.parameters.depths[:, -1] += 1
    each = penalty(macs), penalty(params)
    assert all(each)
    assert penalty(macs, params) == pytest.approx(sum(each))


@pytest.mark.parametrize("budgets", [[], ["macs=0.5", "macs=0.4"]])
def test_no_budget_or_two_of_a_kind_are_refused(model, budgets):
    with pytest.raises(BudgetError, match=r"without a budget|expected one or several of different kinds"):
        search(model, two_colours(), budgets, OPTIONS)


def test_the_unpruned_network_has_the_share_of_the_loss_that_is_asked_for(model):
    task = Task(loss=lambda outputs, targets: outputs.square().mean(), outputs="logits")
    space, outputs = inspect(model, example_of(two_colours())), torch.tensor([[4.0, -4.0]])

    def loss(share):
        options = replace(OPTIONS, start="model", distillation=share)
        search = Bilevel(model, two_colours(), options, task=task, space=space, limits=())
        batch = next(iter(search.weight_batches))
        return float(search.loss(outputs.expand(len(batch.targets), 2), batch))

    assert loss(0.0) == 16
    assert loss(0.5) == pytest.approx((loss(0.0) + loss(1.0)) / 2)
    assert loss(1.0) < 15


def test_a_search_from_new_weights_learns_from_the_trained_network_that_is_given(model):
    teacher, batch = copy.deepcopy(model).eval(), two_colours()
    options = replace(OPTIONS, start="scratch", distillation=1.0)
    bilevel = Bilevel(model, batch, options, space=inspect(model, example_of(batch)), limits=(), teacher=teacher)
    images = next(iter(bilevel.weight_batches))
    with torch.no_grad():
        same = bilevel.loss(teacher(*images.inputs), images)
        other = bilevel.loss(-teacher(*images.inputs), images)
    assert float(same) == pytest.approx(0, abs=1e-5)
    assert float(other) > 0.01


def test_shared_weights_learn_without_any_choice_and_fit_the_model(model):
    seen = []
    before = state_of(model)
    space = inspect(model, torch.zeros(1, *two_colours().image_size))
    options, setup = replace(OPTIONS, architecture_after=1.0), Setup(phase="supernet", on_epoch=seen.append)
    shared = Bilevel(model, two_colours(), options, space=space, limits=(), setup=setup)
    shared.run()
    weights = shared.plain_weights(space.full_architecture())
    assert_same_state(before, model.state_dict())
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert all("running" in name or "num_batches" in name for name in missing)
    assert not torch.equal(weights["stem.weight"], before["stem.weight"])
    assert [figures["phase"] for figures in seen] == ["supernet"] * OPTIONS.epochs
    assert all(figures["entropy"] > 0.99 for figures in seen)
