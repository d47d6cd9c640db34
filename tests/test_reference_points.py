"""Architectures that a search is compared with: uniform scaling and random ones, at the same cost."""

import math
from bisect import bisect_right
from itertools import combinations, groupby

import pytest
import torch

from any_networks import SEVERAL_PARTS, any_space
from random_spaces import Drawn
from small_networks import CASES, resnet_space, space_of
from transprune.architecture import Architecture
from transprune.budget import Limit
from transprune.costs import COSTS, MACS
from transprune.errors import BudgetError
from transprune.options import NEARLY_FULL
from transprune.tas.baselines import random_architecture, uniform_architecture

DRAWN = Drawn()
NETWORKS = pytest.mark.parametrize("name", [*CASES, *SEVERAL_PARTS])


def space_named(name):
    """The search space of a network of either zoo."""
    return space_of(CASES[name]) if name in CASES else any_space(name)


def all_uniform(space):
    """Every uniform architecture, from the narrowest on: the oracle, which tries every share."""
    shares = sorted({(width - 0.5) / group.width for group in space.groups for width in range(1, group.width + 1)})
    depths = {stage.name: stage.depth for stage in space.stages}
    widths = [
        {group.name: max(1, math.floor(group.width * share + 0.5 + 1e-9)) for group in space.groups}
        for share in [0.0, *shares]
    ]
    return [Architecture(widths=each, depths=depths) for each, _ in groupby(widths)]


@NETWORKS
def test_uniform_widths_are_the_widest_of_one_share_that_the_budget_allows(name):
    space = space_named(name)
    uniform = all_uniform(space)
    costs = [space.macs(each) for each in uniform]
    for target in (costs[0], (costs[0] + costs[-1]) // 2, costs[-1] - 1, costs[-1]):
        widest = bisect_right(costs, target) - 1
        assert uniform_architecture(space, [Limit(MACS, target)]) == uniform[widest]


def test_uniform_widths_need_no_projection_in_a_residual_network():
    space = resnet_space(20)
    architecture = uniform_architecture(space, [Limit(MACS, space.macs(space.full_architecture()) // 2)])
    by_full_width = {group.width: architecture.widths[group.name] for group in space.groups}
    assert all(architecture.widths[group.name] == by_full_width[group.width] for group in space.groups)
    assert len(by_full_width) == 3


def test_uniform_widths_use_nearly_all_of_any_budget_of_a_residual_network():
    space = resnet_space(20)
    full = space.macs(space.full_architecture())
    for share in (0.25, 0.4, 0.5, 0.7):
        assert space.macs(uniform_architecture(space, [Limit(MACS, int(share * full))])) > 0.93 * share * full


def test_a_budget_below_widths_of_one_is_refused():
    space = resnet_space(20)
    with pytest.raises(BudgetError, match=r"cannot scale all widths to at most 10 MACs: .* has at least [\d,]+"):
        uniform_architecture(space, [Limit(MACS, 10)])


def test_of_a_cost_with_dips_the_widest_that_fits_is_taken_even_where_narrower_ones_do_not_fit():
    space = space_named("residual")
    uniform = all_uniform(space)
    costs = [space.cost(DRAWN, each) for each in uniform]
    assert costs != sorted(costs)
    for limit in costs:
        widest = [each for each, cost in zip(uniform, costs, strict=True) if cost <= limit][-1]
        assert uniform_architecture(space, [Limit(DRAWN, limit)]) == widest
    with pytest.raises(BudgetError, match=rf"has at least {min(costs):,} drawn$"):
        uniform_architecture(space, [Limit(DRAWN, min(costs) - 1)])


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_random_candidates_use_the_budget_and_differ_by_seed(cost):
    space = resnet_space(20)
    target = space.cost(cost, space.full_architecture()) // 2
    drawn = [random_architecture(space, [Limit(cost, target)], seed=seed) for seed in range(4)]
    assert all(NEARLY_FULL * target <= space.cost(cost, each) <= target for each in drawn)
    assert all(one != other for one, other in combinations(drawn, 2))
    assert random_architecture(space, [Limit(cost, target)], seed=0) == drawn[0]


def test_where_no_budget_binds_every_candidate_is_drawn_alike():
    space = space_of(CASES["plain"])
    full = space.macs(space.full_architecture())
    group = space.groups[0]
    limits = [Limit(MACS, full)]
    drawn = [random_architecture(space, limits, seed=seed, fill=0).widths[group.name] for seed in range(150)]
    counts = torch.tensor([drawn.count(width) for width in group.candidates], dtype=torch.float64)
    expected = len(drawn) / len(counts)
    assert ((counts - expected).abs() < 4 * expected**0.5).all()
