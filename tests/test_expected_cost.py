"""The expected cost: exact at certainty, exact in expectation, and differentiable."""

import random

import pytest
import torch

import oracles
from any_networks import SEVERAL_PARTS, any_space
from small_networks import (
    CASES,
    ODD_CASES,
    depthwise_stage_behind_stage,
    example,
    inline_residual,
    plain,
    resnet_space,
    space_of,
    stage_that_starts_depthwise,
    staged,
)
from transprune.architecture import Architecture
from transprune.costs import COSTS, MACS, Channels
from transprune.shrinking.shrink import shrink
from transprune.space import SearchSpace
from transprune.tas.expected_cost import ExpectedCost, alternatives, cost_terms
from transprune.tas.probabilities import Probabilities, candidate_masks, certain

KINDS = pytest.mark.parametrize("kind", COSTS.values(), ids=COSTS)
NETWORKS = pytest.mark.parametrize("name", [*CASES, *SEVERAL_PARTS])
THREE = (0.3, 0.6, 1.0)


def space_named(name):
    """The search space of a network of either zoo."""
    return space_of(CASES[name]) if name in CASES else any_space(name)


@KINDS
@NETWORKS
def test_at_certainty_it_is_the_actual_cost_of_every_architecture(name, kind):
    space = space_named(name)
    expected = ExpectedCost(space, kind)
    for pick, cost in oracles.all_costs(space, kind).items():
        assert expected(certain(space, oracles.architecture_of(space, pick))).item() == cost


@pytest.mark.parametrize("name", {**CASES, **ODD_CASES})
def test_the_actual_cost_is_counted_by_hand_on_the_shrunk_network(name):
    network = {**CASES, **ODD_CASES}[name]
    space = space_of(network)
    picks = list(oracles.all_picks(space))
    for pick in random.Random(0).sample(picks, min(4, len(picks))):
        architecture = oracles.architecture_of(space, pick)
        shrunk = shrink(network(), architecture, example())
        assert space.macs(architecture) == oracles.count_by_hand(shrunk, example())
        assert space.params(architecture) == oracles.count_parameters(shrunk)


@KINDS
@pytest.mark.parametrize("sharpness", [0.1, 3.0])
@NETWORKS
def test_it_is_the_mean_over_all_architectures(name, sharpness, kind):
    space = space_named(name)
    costs, expected = oracles.all_costs(space, kind), ExpectedCost(space, kind)
    for seed in range(3):
        probabilities = oracles.random_probabilities(space, seed, sharpness)
        brute_force = oracles.expected_cost(costs, probabilities).item()
        assert expected(probabilities).item() == pytest.approx(brute_force, rel=1e-12)


@KINDS
def test_it_is_the_mean_with_rows_of_different_numbers_of_candidates(kind):
    space = space_of(inline_residual, THREE)
    assert {len(group.candidates) for group in space.groups} == {3}
    mixed = SearchSpace(
        groups=(*space.groups[:-1], space_of(inline_residual).groups[-1]), stages=(), layers=space.layers
    )
    probabilities = oracles.random_probabilities(mixed, seed=5)
    brute_force = oracles.expected_cost(oracles.all_costs(mixed, kind), probabilities).item()
    assert ExpectedCost(mixed, kind)(probabilities).item() == pytest.approx(brute_force, rel=1e-12)


def test_a_stage_may_end_with_what_the_stage_before_ends_with():
    space = space_of(depthwise_stage_behind_stage)
    probabilities = oracles.random_probabilities(space, seed=0)
    brute_force = oracles.expected_cost(oracles.all_costs(space, MACS), probabilities).item()
    assert ExpectedCost(space)(probabilities).item() == pytest.approx(brute_force, rel=1e-12)


def test_it_is_exact_where_the_two_sides_of_a_sum_depend_on_each_other():
    space = space_of(stage_that_starts_depthwise)
    probabilities = oracles.random_probabilities(space, seed=0)
    brute_force = oracles.expected_cost(oracles.all_costs(space, MACS), probabilities).item()
    assert ExpectedCost(space)(probabilities).item() == pytest.approx(brute_force, rel=1e-12)


def logits_of(space, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(mask.shape, generator=generator, dtype=torch.float64).requires_grad_()
        for mask in candidate_masks(space)
    ]


def softmax_of(space, logits):
    masks = candidate_masks(space)
    rows = [row.masked_fill(~mask, -torch.inf).softmax(1) for row, mask in zip(logits, masks, strict=True)]
    return Probabilities(*rows)


@NETWORKS
def test_its_gradient_equals_finite_differences(name):
    space, logits = space_named(name), logits_of(space_named(name))
    expected, full = ExpectedCost(space), space.macs(space.full_architecture())

    def share(*rows):
        return expected(softmax_of(space, rows)) / full

    assert torch.autograd.gradcheck(share, logits)
    assert torch.autograd.grad(share(*logits), logits[0])[0].any()


@NETWORKS
def test_its_gradient_is_that_of_the_mean_over_all_architectures(name):
    space, logits = space_named(name), logits_of(space_named(name))
    costs = oracles.all_costs(space, MACS)
    gradients = [
        torch.autograd.grad(cost(softmax_of(space, logits)), logits, allow_unused=True, materialize_grads=True)
        for cost in (ExpectedCost(space), lambda probabilities: oracles.expected_cost(costs, probabilities))
    ]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-6)


def test_single_precision_probabilities_are_summed_in_double():
    space = resnet_space(20)
    probabilities = oracles.random_probabilities(space, seed=0)
    single = Probabilities(probabilities.widths.float(), probabilities.depths.float())
    found = ExpectedCost(space)(single)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(ExpectedCost(space)(probabilities).item(), rel=1e-6)


def test_the_parts_of_a_concatenation_are_terms_of_their_own_that_add_up():
    space = any_space("dense")
    layer = next(layer for layer in space.layers if layer.name == "parts.1.conv")
    assert layer.inputs.sources == ("stem.conv", "parts.0.conv")
    terms = [term for term in cost_terms(space, MACS) if term.layer is layer]
    assert [(term.inputs.source, term.part) for term in terms] == [("stem.conv", (0, 0)), ("parts.0.conv", (1, 0))]
    for row, first in enumerate((3, 6)):
        for other, second in enumerate((2, 4)):
            for column, outputs in enumerate((2, 4)):
                total = terms[0].values[row, column] + terms[1].values[other, column]
                assert total == layer.macs(first + second, outputs)


@KINDS
def test_terms_hold_what_each_layer_costs_at_every_pair_of_widths(kind):
    space = space_of(staged)
    terms = cost_terms(space, kind)
    for term in terms:
        inputs, outputs = (space.possible_widths(ends) for ends in (term.inputs, term.outputs))
        assert term.values.shape == (len(inputs), len(outputs))
        for row, before in zip(term.values, inputs, strict=True):
            assert row.tolist() == [kind.of_part(term.layer, term.part, before, after) for after in outputs]
    named = {term.layer.name for term in terms}
    assert all(layer.name in named for layer in space.layers if kind.of_part(layer, (0, 0), 3, 4))


def test_the_channels_behind_a_stage_are_those_of_its_possible_last_blocks():
    space = space_of(staged)
    assert list(alternatives(space, Channels(7, repeat=2))) == [({}, Channels(7, repeat=2))]
    stage = space.stages[0]
    assert list(alternatives(space, Channels(4, source=stage.name, repeat=3))) == [
        ({stage.name: frozenset({depth})}, Channels(4, source=stage.outputs[depth - 1].source, repeat=3))
        for depth in stage.candidates
    ]


def test_the_depths_of_a_term_stand_in_one_order_in_every_process():
    found = [list(term.depths) for term in cost_terms(space_of(staged), MACS)]
    assert max(map(len, found)) > 1
    assert all(names == sorted(names) for names in found)


def test_possible_widths_are_those_of_the_candidates_times_the_elements_of_a_channel():
    space = space_of(staged)
    assert space.possible_widths(Channels(7, repeat=2)) == (14,)
    assert space.possible_widths(Channels(4, source=space.groups[0].name, repeat=4)) == (8, 16)


def test_most_probable_and_one_hot_pick_the_same_architecture():
    space = resnet_space(20)
    for seed in range(5):
        probabilities = oracles.random_probabilities(space, seed)
        architecture, one_hot = probabilities.most_probable(space), probabilities.one_hot()
        chosen = certain(space, architecture)
        assert torch.equal(one_hot.widths.float(), chosen.widths)
        assert torch.equal(one_hot.depths.float(), chosen.depths)
        assert ExpectedCost(space)(one_hot).item() == space.macs(architecture)
        assert ExpectedCost(space)(probabilities).item() != space.macs(architecture)


def test_one_hot_has_no_gradient():
    space = space_of(staged)
    probabilities = oracles.random_probabilities(space, seed=0)
    for rows in (probabilities.widths, probabilities.depths):
        rows.requires_grad_()
    one_hot = probabilities.one_hot()
    assert not one_hot.widths.requires_grad
    assert not one_hot.depths.requires_grad


def test_probabilities_are_named_without_the_entries_that_stand_for_nothing():
    space = space_of(staged)
    probabilities = oracles.random_probabilities(space, seed=0)
    assert [list(row) for row in candidate_masks(space)[1].tolist()] == [[True, True, True], [True, True, False]]
    by_group, by_stage = probabilities.by_group(space), probabilities.by_stage(space)
    assert list(by_group) == [group.name for group in space.groups]
    assert [len(row) for row in by_stage.values()] == [3, 2]
    assert by_stage["body.2"] == probabilities.depths[1, :2].tolist()
    assert all(sum(row) == pytest.approx(1) for row in (*by_group.values(), *by_stage.values()))


def test_spaces_without_widths_or_without_depths_have_empty_tables():
    space = space_of(plain)
    assert candidate_masks(space)[1].shape == (0, 0)
    probabilities = oracles.random_probabilities(space, seed=0)
    assert probabilities.one_hot().depths.shape == (0, 0)
    assert probabilities.most_probable(space).depths == {}
    assert probabilities.by_stage(space) == {}


def test_certainty_fills_unnamed_sizes_with_the_full_ones():
    space = space_of(staged)
    full = certain(space, Architecture())
    assert torch.equal(full.widths, certain(space, space.full_architecture()).widths)
    assert torch.equal(full.depths, certain(space, space.full_architecture()).depths)
