"""The reference runs by itself, and the fast machine gives what it gives: draws, costs, penalty and derivation.

The supernet is held against the reference in `test_supernet.py`.
"""

import doctest
import inspect as source

import numpy as np
import pytest
import torch
from scipy import stats

from oracles import random_probabilities
from transprune.budget import Limit
from transprune.costs import MACS
from transprune.models.resnet import resnet
from transprune.options import ALIGNMENTS
from transprune.reading.inspection import inspect
from transprune.tas import reference
from transprune.tas.derivation import derive
from transprune.tas.expected_cost import ExpectedCost, budget_penalty
from transprune.tas.mixing import align_channels
from transprune.tas.probabilities import Probabilities, candidate_masks
from transprune.tas.sampling import ArchitectureParameters, draw_candidates, masked_log_softmax

IMAGES = torch.zeros(2, 3, 8, 8)
RESNET14 = inspect(resnet(14), IMAGES)


def choices_of(space):
    """The candidates of a space, as the reference has them."""
    return {choice.name: choice.candidates for choice in space.choices}


def rows_of(space, probabilities):
    """Probabilities without the zeros at the ends of rows, as the reference has them."""
    return {
        **{name: torch.tensor(row).double() for name, row in probabilities.by_group(space).items()},
        **{name: torch.tensor(row).double() for name, row in probabilities.by_stage(space).items()},
    }


def slow_resnet14():
    return reference.SlowSupernet(dict(resnet(14).named_parameters()), (2, 2, 2))


def batches(steps):
    """Images and labels, and the temperature, of that many steps."""
    halves = [[(torch.randn(16, 3, 8, 8), torch.randint(10, (16,))) for _ in range(steps)] for _ in range(2)]
    return zip(*halves, torch.linspace(10, 0.1, steps).tolist(), strict=True)


def test_the_reference_is_short_and_uses_nothing_else_of_the_package():
    text = source.getsource(reference)
    assert len(text.splitlines()) <= 200
    assert "import transprune" not in text
    assert "from transprune" not in text


def test_the_example_of_the_reference_runs():
    torch.manual_seed(0)
    found = doctest.testmod(reference)
    assert found.attempted >= 4
    assert found.failed == 0


def test_the_reference_searches_by_itself_and_its_weights_and_logits_learn():
    torch.manual_seed(0)
    net, candidates = reference.small_resnet()
    logits = {name: torch.zeros(len(sizes), requires_grad=True) for name, sizes in candidates.items()}
    before = {name: weight.detach().clone() for name, weight in net.weights.items()}
    found = reference.search(net, candidates, logits, batches(5), budget=1e5)
    assert found == reference.most_probable(logits, candidates)
    assert found.keys() == candidates.keys()
    assert all(size in candidates[name] for name, size in found.items())
    assert all(row.any() for row in logits.values())
    assert all(not torch.equal(weight, before[name]) for name, weight in net.weights.items())


@pytest.mark.parametrize(("budget", "side"), [(1.0, min), (1e12, max)])
def test_the_reference_follows_its_budget(budget, side):
    torch.manual_seed(0)
    net, candidates = reference.small_resnet()
    logits = {name: torch.zeros(len(sizes), requires_grad=True) for name, sizes in candidates.items()}
    start = {name: torch.full((len(sizes),), 1 / len(sizes)) for name, sizes in candidates.items()}
    reference.search(net, candidates, logits, batches(8), budget=budget)
    end = {name: row.detach().softmax(0) for name, row in logits.items()}
    costs = [float(reference.expected_macs(net, candidates, rows, (3, 8, 8))) for rows in (start, end)]
    assert costs[1] == side(costs)
    assert costs[1] != costs[0]


@pytest.mark.parametrize("temperature", [0.2, 1.0, 10.0])
def test_draws_are_distributed_as_in_the_reference(temperature):
    logits, trials = torch.tensor([0.0, 1.0, -1.0, 0.5]), 4000
    torch.manual_seed(0)
    slow = [reference.draw(logits, (4, 6, 8, 9), temperature) for _ in range(trials)]
    rows = logits.expand(trials, -1)
    fast = draw_candidates(rows, torch.ones_like(rows, dtype=torch.bool), temperature=temperature)
    pairs = [np.array([each.indices for each in slow]), fast.indices.numpy()]
    counts = np.array([np.bincount(pair[:, 0] * 4 + pair[:, 1], minlength=16) for pair in pairs])
    assert stats.chi2_contingency(counts[:, counts.sum(0) > 0]).pvalue > 1e-3
    weights = [np.array([float(each.weights[0]) for each in slow]), fast.weights[:, 0].numpy()]
    assert stats.ks_2samp(*weights).pvalue > 1e-3


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize(("channels", "width"), [(1, 5), (2, 3), (6, 8), (9, 16), (16, 16)])
def test_feature_maps_reach_a_width_as_in_the_reference(channels, width, alignment):
    features = torch.randn(2, channels, 3, 3, dtype=torch.float64)
    slow = (reference.interpolate if alignment == "interpolate" else reference.pad)(features, width)
    torch.testing.assert_close(align_channels(features, width, alignment), slow)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_the_expected_cost_is_the_references(seed, sharpness):
    torch.manual_seed(seed)
    parameters = ArchitectureParameters(RESNET14).double()
    logits = [(sharpness * torch.randn_like(each)).requires_grad_() for each in parameters.parameters()]
    rows = [row for each in logits for row in each]
    slow_rows = {
        choice.name: row[: len(choice.candidates)].softmax(0)
        for choice, row in zip(RESNET14.choices, rows, strict=True)
    }
    masks = candidate_masks(RESNET14)
    fast_rows = [masked_log_softmax(each, mask).exp() for each, mask in zip(logits, masks, strict=True)]
    slow = reference.expected_macs(slow_resnet14(), choices_of(RESNET14), slow_rows, (3, 8, 8))
    fast = ExpectedCost(RESNET14)(Probabilities(*fast_rows))
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    for ours, theirs in zip(*(torch.autograd.grad(each, logits) for each in (fast, slow)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("expected", [40.0, 100.0, 250.0])
@pytest.mark.parametrize("actual", [10, 94, 95, 100, 105, 106, 1000])
def test_the_penalty_is_the_references(expected, actual):
    variable = torch.tensor(expected, dtype=torch.float64, requires_grad=True)
    slow = reference.penalty(variable, actual, 100)
    fast = budget_penalty(variable, torch.tensor(actual), 100, 0.05)
    assert fast.item() == slow.item()
    assert torch.autograd.grad(fast, variable) == torch.autograd.grad(slow, variable)


@pytest.mark.parametrize("seed", range(5))
def test_where_no_budget_binds_the_references_architecture_is_derived(seed):
    space = RESNET14
    probabilities = random_probabilities(space, seed)
    slow = reference.most_probable(rows_of(space, probabilities), choices_of(space))
    roomy = Limit(MACS, space.macs(space.full_architecture()))
    for fast in (probabilities.most_probable(space), derive(space, probabilities, [roomy], fill=0)):
        assert {**fast.widths, **fast.depths} == slow
