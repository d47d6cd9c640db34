"""The derivation: the most probable architecture within the budget, which is a promise in whole numbers."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from any_networks import SEVERAL_PARTS, any_space
from random_spaces import Drawn, Steps, random_space
from small_networks import CASES, depthwise_stage_behind_stage, example, plain, resnet_space, space_of, staged
from transprune.budget import Budget, Limit
from transprune.costs import COSTS, MACS, PARAMS, Channels, Layer
from transprune.errors import BudgetError
from transprune.options import NEARLY_FULL
from transprune.reading.macs import count_macs
from transprune.shrinking.shrink import shrink
from transprune.space import PAPER_RATIOS, SearchSpace, WidthGroup
from transprune.tas.derivation import GAP, check_attainable, derive, derive_with_proof, least_cost
from transprune.tas.integer_program import IntegerProgram, Solution
from transprune.tas.local_search import _Stepping, log_probabilities, step_within
from transprune.tas.probabilities import Probabilities, certain

NETWORKS = pytest.mark.parametrize("name", [*CASES, *SEVERAL_PARTS])


def space_named(name):
    """The search space of a network of either zoo."""
    return space_of(CASES[name]) if name in CASES else any_space(name)


def check_against_brute_force(space, costs, probabilities, target, fill, *, kind=MACS):
    """The derived architecture costs what it may, and no architecture that may be derived is more probable."""
    architecture = derive(space, probabilities, [Limit(kind, target)], fill=fill)
    cost = space.cost(kind, architecture)
    fullest = max(each for each in costs.values() if each <= target)
    asked = fill * (target if fullest >= fill * target else fullest)
    best = oracles.best_within(costs, probabilities, target, asked)
    assert asked <= cost <= target
    unconstrained = oracles.best_within(costs, probabilities, max(costs.values()), 0)
    found = oracles.log_probability(space, probabilities, architecture)
    assert best - GAP * (unconstrained - best) - 1e-6 <= found <= best + 1e-9


def budgets(costs, seed, count):
    """Targets over the attainable range: its ends, costs of architectures, and figures just below one."""
    attainable = np.array(sorted(set(costs.values())))
    drawn = np.random.default_rng(seed).choice(attainable, count)
    between = (drawn + attainable[0]) // 2
    near = [cost - 1 for cost in drawn if cost > attainable[0]]
    return sorted({int(target) for target in (attainable[0], attainable[-1], *drawn, *near, *between)})


@pytest.mark.parametrize("fill", [0.0, 0.8, NEARLY_FULL])
@NETWORKS
def test_it_is_the_most_probable_of_all_that_the_budget_allows(name, fill):
    space = space_named(name)
    costs = oracles.all_costs(space, MACS)
    for seed, sharpness in enumerate((0.3, 5.0)):
        probabilities = oracles.random_probabilities(space, seed, sharpness)
        for target in budgets(costs, seed, count=1):
            check_against_brute_force(space, costs, probabilities, target, fill)


@pytest.mark.parametrize("fill", [0.0, NEARLY_FULL])
@pytest.mark.parametrize("name", ["staged", "flattened_stage", "residual", "dense", "cross_stage"])
def test_it_is_the_most_probable_within_a_budget_of_parameters(name, fill):
    space = space_named(name)
    costs = oracles.all_costs(space, PARAMS)
    for seed in range(2):
        probabilities = oracles.random_probabilities(space, seed, sharpness=2.0)
        for target in budgets(costs, seed, count=3):
            check_against_brute_force(space, costs, probabilities, target, fill, kind=PARAMS)


@pytest.mark.parametrize("fill", [0.0, NEARLY_FULL])
@pytest.mark.parametrize("ratios", [(0.3, 0.6, 1.0), PAPER_RATIOS])
def test_it_is_the_most_probable_among_many_candidates(ratios, fill):
    space = space_of(CASES["inline_residual"], ratios)
    costs = oracles.all_costs(space, MACS)
    for seed in range(2):
        probabilities = oracles.random_probabilities(space, seed)
        for target in budgets(costs, seed, count=2):
            check_against_brute_force(space, costs, probabilities, target, fill)


def test_by_default_it_uses_nearly_all_of_the_budget():
    space = space_of(staged)
    probabilities = certain(space, space.smallest_architecture())
    target = space.macs(space.full_architecture()) * 3 // 4
    assert derive(space, probabilities, [Limit(MACS, target)], fill=0) == space.smallest_architecture()
    assert space.macs(derive(space, probabilities, [Limit(MACS, target)])) >= 0.99 * target


def test_certain_probabilities_with_zeros_leave_it_a_way_to_the_budget():
    space = space_of(staged)
    costs = oracles.all_costs(space, MACS)
    for architecture in (space.full_architecture(), space.random_architecture(1), space.random_architecture(2)):
        probabilities = certain(space, architecture)
        for target in budgets(costs, seed=0, count=4):
            check_against_brute_force(space, costs, probabilities, target, fill=0)


def test_small_probabilities_still_tell_candidates_apart():
    space = space_of(staged)
    costs = oracles.all_costs(space, MACS)
    for seed in range(4):
        probabilities = oracles.random_probabilities(space, seed, sharpness=20.0)
        for target in budgets(costs, seed, count=3):
            check_against_brute_force(space, costs, probabilities, target, fill=0.9)


def test_equal_probabilities_leave_only_the_budget_to_keep():
    space = space_of(staged)
    costs = oracles.all_costs(space, MACS)
    probabilities = oracles.random_probabilities(space, seed=0, sharpness=0)
    for target in budgets(costs, seed=0, count=10):
        check_against_brute_force(space, costs, probabilities, target, NEARLY_FULL)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-40, 40), min_size=18, max_size=18),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.5, NEARLY_FULL, 1.0]),
    st.sampled_from([*COSTS.values()]),
)
def test_it_never_exceeds_the_budget(logits, share, fill, kind):
    space = space_of(staged)
    widths = torch.tensor(logits[:12], dtype=torch.float64).view(6, 2).softmax(1)
    depths = torch.tensor(logits[12:], dtype=torch.float64).view(2, 3)
    depths = depths.masked_fill(torch.tensor([[False, False, False], [False, False, True]]), -torch.inf).softmax(1)
    smallest, full = (space.cost(kind, a) for a in (space.smallest_architecture(), space.full_architecture()))
    target = smallest + math.floor(share * (full - smallest))
    architecture = derive(space, Probabilities(widths, depths), [Limit(kind, target)], fill=fill)
    assert space.cost(kind, architecture) <= target
    assert all(architecture.widths[group.name] in group.candidates for group in space.groups)
    assert all(architecture.depths[stage.name] in stage.candidates for stage in space.stages)


@pytest.mark.parametrize(("share", "seeds"), [(0.3, 1), (0.5, 4), (0.8, 2)])
def test_it_keeps_and_uses_the_budget_of_the_papers_network(share, seeds):
    space = resnet_space(20)
    target = math.floor(share * space.macs(space.full_architecture()))
    for seed in range(seeds):
        probabilities = oracles.random_probabilities(space, seed, sharpness=(0.05, 1.0, 5.0)[seed % 3])
        cost = space.macs(derive(space, probabilities, [Limit(MACS, target)]))
        assert NEARLY_FULL * target <= cost <= target


@pytest.mark.parametrize("fill", [0.0, NEARLY_FULL])
@pytest.mark.parametrize("seed", range(4))
def test_the_most_probable_architecture_itself_is_derived_where_it_just_fits(seed, fill):
    space = resnet_space(20)
    probabilities = oracles.random_probabilities(space, seed, sharpness=3.0)
    likeliest = probabilities.most_probable(space)
    assert derive(space, probabilities, [Limit(MACS, space.macs(likeliest))], fill=fill) == likeliest


@pytest.mark.parametrize("fill", [0.0, NEARLY_FULL])
@pytest.mark.parametrize("seed", [0, 2, 3])
def test_a_budget_one_mac_too_small_for_the_most_probable_architecture_is_kept_too(seed, fill):
    space = resnet_space(20)
    probabilities = oracles.random_probabilities(space, seed, sharpness=3.0)
    target = space.macs(probabilities.most_probable(space)) - 1
    cost = space.macs(derive(space, probabilities, [Limit(MACS, target)], fill=fill))
    assert fill * target <= cost <= target


@pytest.mark.parametrize("fill", [0.0, NEARLY_FULL])
@pytest.mark.parametrize("kind", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_smallest_architecture_is_derived_where_nothing_else_fits(seed, kind, fill):
    space = resnet_space(20)
    probabilities = oracles.random_probabilities(space, seed, sharpness=3.0)
    smallest = space.smallest_architecture()
    for slack in (0, 1):
        target = space.cost(kind, smallest) + slack
        assert space.cost(kind, derive(space, probabilities, [Limit(kind, target)], fill=fill)) <= target


def test_a_stage_may_end_with_what_the_stage_before_ends_with():
    space = space_of(depthwise_stage_behind_stage)
    costs = oracles.all_costs(space, MACS)
    probabilities = oracles.random_probabilities(space, seed=0)
    for target in budgets(costs, seed=0, count=3):
        check_against_brute_force(space, costs, probabilities, target, NEARLY_FULL)


@NETWORKS
def test_a_budget_below_the_smallest_architecture_is_refused(name):
    space = space_named(name)
    probabilities = oracles.random_probabilities(space, seed=0)
    smallest = space.macs(space.smallest_architecture())
    for target in (smallest - 1, smallest // 2, 1):
        message = f"at most {target:,} MACs: the smallest of this search space has {smallest:,}"
        with pytest.raises(BudgetError, match=f"cannot derive an architecture of {message}"):
            derive(space, probabilities, [Limit(MACS, target)])


@pytest.mark.parametrize("target", [0, -1])
def test_a_budget_of_nothing_is_refused(target):
    space = space_of(plain)
    with pytest.raises(BudgetError, match=f"cannot derive an architecture of at most {target:,} MACs"):
        derive(space, oracles.random_probabilities(space, seed=0), [Limit(MACS, target)])


def test_single_precision_and_gradients_of_the_probabilities_do_not_matter():
    space = space_of(staged)
    probabilities = oracles.random_probabilities(space, seed=0, sharpness=2.0)
    target = space.macs(space.full_architecture()) // 2
    single = Probabilities(probabilities.widths.float().requires_grad_(), probabilities.depths.float().requires_grad_())
    assert derive(space, single, [Limit(MACS, target)]) == derive(space, probabilities, [Limit(MACS, target)])


def test_the_same_probabilities_give_the_same_architecture():
    space = resnet_space(20)
    probabilities = oracles.random_probabilities(space, seed=0, sharpness=0.01)
    target = space.macs(space.full_architecture()) // 2
    assert derive(space, probabilities, [Limit(MACS, target)]) == derive(space, probabilities, [Limit(MACS, target)])


KINDS = (MACS, PARAMS, Steps())


def best_of_all(space, costs, logs, limits, fill):
    """Brute force: the largest log-probability within all limits, of those that use one, or what can be used of it."""
    kept = [
        pick for pick in costs[0] if all(cost[pick] <= limit.most for cost, limit in zip(costs, limits, strict=True))
    ]

    def using(amounts):
        return [
            pick
            for pick in kept
            if any(cost[pick] >= fill * amount for cost, amount in zip(costs, amounts, strict=True))
        ]

    filled = using([limit.most for limit in limits]) or using([max(cost[pick] for pick in kept) for cost in costs])
    return max(sum(row[at] for row, at in zip(logs, pick, strict=True)) for pick in filled)


def random_limits(space, costs, kinds, draw):
    """Limits that some architecture keeps together; sometimes exactly its costs."""
    pick = draw.choice(list(costs[0]))
    return [
        Limit(kind, cost[pick] + draw.choice([0, draw.randint(0, max(cost.values()) // 5)]))
        for kind, cost in zip(kinds, costs, strict=True)
    ]


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_on_random_spaces_with_one_or_several_budgets_it_equals_brute_force(first):
    for seed in range(first, first + 25):
        draw, space = random.Random(seed), random_space(seed)
        kinds = draw.sample(KINDS, draw.randint(1, 3))
        costs = [oracles.all_costs(space, kind) for kind in kinds]
        probabilities = oracles.random_probabilities(space, seed, sharpness=draw.choice([0.3, 2.0, 8.0]))
        limits = random_limits(space, costs, kinds, draw)
        for fill in (0.0, NEARLY_FULL):
            found = derive_with_proof(space, probabilities, limits, fill=fill)
            assert all(limit.is_kept(space, found.architecture) for limit in limits)
            best = best_of_all(space, costs, log_probabilities(space, probabilities), limits, fill)
            reached = oracles.log_probability(space, probabilities, found.architecture)
            assert best - GAP * found.given_up - 1e-5 <= reached <= best + 1e-9, seed
            assert found.is_proved, seed


@pytest.mark.parametrize("fill", [0.0, NEARLY_FULL])
@pytest.mark.parametrize("seed", range(16))
def test_without_time_it_still_keeps_every_budget_and_claims_nothing_false(seed, fill):
    draw, space = random.Random(seed), random_space(seed)
    costs = [oracles.all_costs(space, kind) for kind in (MACS, PARAMS)]
    probabilities = oracles.random_probabilities(space, seed, sharpness=3.0)
    limits = random_limits(space, costs, (MACS, PARAMS), draw)
    found = derive_with_proof(space, probabilities, limits, fill=fill, seconds=0.0)
    assert all(limit.is_kept(space, found.architecture) for limit in limits)
    best = best_of_all(space, costs, log_probabilities(space, probabilities), limits, fill)
    reached = oracles.log_probability(space, probabilities, found.architecture)
    assert reached + found.gap >= best - 1e-6
    if not fill:
        assert reached >= oracles.log_probability(space, probabilities, space.smallest_architecture()) - 1e-9


def test_without_time_single_steps_take_the_place_of_the_smallest_architecture():
    space = resnet_space(56)
    limits = [Limit(MACS, space.macs(space.full_architecture()) // 2)]
    probabilities = oracles.random_probabilities(space, seed=0, sharpness=2.0)
    found = derive_with_proof(space, probabilities, limits, seconds=0.0)
    assert found.architecture == step_within(space, probabilities, limits) != space.smallest_architecture()


@pytest.mark.parametrize("fill", [NEARLY_FULL, 0.9])
def test_where_the_time_ends_before_a_full_one_is_found_nothing_is_called_proved(fill, monkeypatch):
    space = resnet_space(20)
    limits = [Limit(MACS, space.macs(space.full_architecture()) // 2)]
    probabilities = oracles.random_probabilities(space, seed=0, sharpness=0.0)
    probabilities.widths[:, 0] *= 2  # the smallest ones are the most probable
    solve = IntegerProgram.solve

    def solve_once(program, objective, least, most, *, seconds=None):
        return Solution(None, -np.inf) if any(least) else solve(program, objective, least, most, seconds=seconds)

    monkeypatch.setattr(IntegerProgram, "solve", solve_once)
    found = derive_with_proof(space, probabilities, limits, fill=fill)
    assert not found.is_proved
    assert str(found) == "not proved: the time ran out first"


def test_large_spaces_are_derived_within_the_stated_gap_and_use_a_budget():
    space = resnet_space(56)
    full = space.full_architecture()
    limits = [Limit(MACS, space.macs(full) // 2), Limit(PARAMS, space.params(full) * 2 // 5)]
    probabilities = oracles.random_probabilities(space, seed=56, sharpness=2.0)
    found = derive_with_proof(space, probabilities, limits)
    assert all(limit.is_kept(space, found.architecture) for limit in limits)
    assert any(space.cost(limit.cost, found.architecture) >= NEARLY_FULL * limit.most for limit in limits)
    free = derive_with_proof(space, probabilities, limits, fill=0)
    stepped = oracles.log_probability(space, probabilities, step_within(space, probabilities, limits))
    assert stepped <= oracles.log_probability(space, probabilities, free.architecture) + free.gap + 1e-6


def test_single_steps_know_what_every_change_of_one_size_costs():
    space = space_of(staged)
    limits = [Limit(MACS, 1), Limit(PARAMS, 1)]
    stepping = _Stepping(space, oracles.random_probabilities(space, seed=0), limits)
    costs, after = stepping._costs()
    here = list(space.sizes_of(stepping.architecture))
    assert costs.tolist() == [space.macs(stepping.architecture), space.params(stepping.architecture)]
    for place, choice in enumerate(space.choices):
        for candidate, found in zip(choice.candidates, after[place], strict=True):
            changed = space.architecture_of([*here[:place], candidate, *here[place + 1 :]])
            assert found.tolist() == [space.macs(changed), space.params(changed)]


def test_budgets_that_no_architecture_keeps_together_are_refused_with_what_each_leaves():
    group = WidthGroup(name="conv", width=4, candidates=(1, 2, 4), layers=("conv",))
    layer = Layer(name="conv", operator="conv", inputs=Channels(1), outputs=Channels(4, "conv"))
    space = SearchSpace(groups=(group,), stages=(), layers=(layer,))

    class Falling(MACS.__class__):
        kind = name = "slack"

        def of_part(self, layer, part, inputs, outputs):
            return 10 - outputs

    check_attainable(space, [Limit(MACS, 2), Limit(Falling(), 8)])
    with pytest.raises(BudgetError, match=r"2 MACs and 7 slack together.*MACs at least 4 MACs, slack at least 8 slack"):
        check_attainable(space, [Limit(MACS, 2), Limit(Falling(), 7)])


@pytest.mark.parametrize("name", CASES)
def test_independent_counters_find_the_budgets_kept_on_the_shrunk_network_to_the_last_unit(name):
    space = space_of(CASES[name])
    draw = random.Random(name)
    picks = list(oracles.all_picks(space))
    for seed in range(2):
        within = oracles.architecture_of(space, draw.choice(picks))
        limits = [Limit(MACS, space.macs(within)), Limit(PARAMS, space.params(within))]
        architecture = derive(space, oracles.random_probabilities(space, seed), limits)
        student = shrink(CASES[name](), architecture, example())
        assert count_macs(student, example()) == space.macs(architecture) <= limits[0].most
        assert oracles.count_parameters(student) == space.params(architecture) <= limits[1].most


@pytest.mark.parametrize("cost", [*KINDS, Drawn()], ids=lambda cost: cost.kind)
@pytest.mark.parametrize("name", ["staged", "residual", "dense", "cross_stage"])
def test_a_budget_is_attainable_from_the_cheapest_architecture_on_whichever_that_is(name, cost):
    space = space_named(name)
    cheapest = min(oracles.all_costs(space, cost).values())
    assert least_cost(space, cost) == cheapest
    smallest = space.cost(cost, space.smallest_architecture())
    assert cheapest == smallest if space.smallest_is_cheapest(cost) else cheapest <= smallest
    assert cost.kind != "drawn" or cheapest < smallest
    check_attainable(space, [Limit(cost, cheapest)])
    with pytest.raises(BudgetError, match=f"range of this search space is {cheapest:,} {cost.name}"):
        check_attainable(space, [Limit(cost, cheapest - 1)])


def test_equal_sides_of_a_sum_may_cost_less_than_smaller_ones_that_need_a_projection():
    groups = tuple(
        WidthGroup(name=name, width=4, candidates=candidates, layers=(name,))
        for name, candidates in (("main", (2, 4)), ("shortcut", (3, 4)))
    )
    convolutions = tuple(
        Layer(name=name, operator="conv", inputs=Channels(1), outputs=Channels(4, name))
        for name in ("main", "shortcut")
    )
    projection = Layer(name="sum", operator="projection", inputs=Channels(4, "shortcut"), outputs=Channels(4, "main"))
    space = SearchSpace(groups=groups, stages=(), layers=(*convolutions, projection))
    assert not space.smallest_is_cheapest(MACS)
    assert least_cost(space, MACS) == space.macs(space.full_architecture()) == 8 < 2 + 3 + 2 * 3
    limit = Budget.parse("macs=8").limit(space)
    check_attainable(space, [limit])
    with pytest.raises(BudgetError, match="range of this search space is 8 MACs"):
        check_attainable(space, [Budget.parse("macs=7").limit(space)])


class NormsOfConcatenations(torch.nn.Module):
    """Each layer reads a norm of all that came before, as in a DenseNet."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(8 * each) for each in (1, 2, 3))
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(8 * each, 8, 3, padding=1) for each in (1, 2))
        self.head = torch.nn.Linear(24, 4)

    def forward(self, images):
        features = self.stem(images)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            features = torch.cat([features, layer(norm(features).relu())], 1)
        return self.head(self.norms[-1](features).mean((2, 3)))


def test_parameters_of_norms_of_a_concatenation_need_no_pairs_of_widths():
    space = space_of(NormsOfConcatenations)
    macs, params = (IntegerProgram(space, [cost]) for cost in (MACS, PARAMS))
    assert params.variables == macs.variables
    costs, probabilities = oracles.all_costs(space, PARAMS), oracles.random_probabilities(space, 0, sharpness=2.0)
    for target in budgets(costs, seed=0, count=2):
        check_against_brute_force(space, costs, probabilities, target, NEARLY_FULL, kind=PARAMS)
