"""A budget is read exactly as written, means a whole number of MACs or parameters, and is refused with a way out."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from small_networks import CASES, plain, resnet_space, space_of, staged
from transprune.architecture import Architecture
from transprune.budget import Budget, limits_of, parse_budgets, points
from transprune.costs import COSTS, Channels, Layer
from transprune.errors import BudgetError
from transprune.space import SearchSpace, WidthGroup
from transprune.tas.baselines import uniform_architecture

SPACE = space_of(staged)


@pytest.mark.parametrize(
    ("text", "kind", "amount", "is_share"),
    [
        ("macs=0.5", "macs", 0.5, True),
        ("macs=.5", "macs", 0.5, True),
        ("macs=1", "macs", 1.0, True),
        ("macs=1.0", "macs", 1.0, True),
        ("params=0.25", "params", 0.25, True),
        ("  macs=0.5\n", "macs", 0.5, True),
        ("MACs=0.5", "macs", 0.5, True),
        ("macs=1.5", "macs", 1.5, False),
        ("macs=2", "macs", 2.0, False),
        ("macs=20400000", "macs", 20_400_000.0, False),
        ("macs=20.4M", "macs", 20_400_000.0, False),
        ("macs=20.4m", "macs", 20_400_000.0, False),
        ("macs=0.5M", "macs", 500_000.0, False),
        ("macs=1M", "macs", 1e6, False),
        ("macs=3.G", "macs", 3e9, False),
        ("params=270K", "params", 270_000.0, False),
        ("params=270k", "params", 270_000.0, False),
        ("macs=0.001K", "macs", 1.0, False),
    ],
)
def test_a_budget_is_read_as_a_share_or_a_figure(text, kind, amount, is_share):
    assert Budget.parse(text) == Budget(kind=kind, amount=amount, is_share=is_share)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("macs=1,000,000", "macs=1000000 (or macs=1M)"),
        ("MACs=20,400", "MACs=20400 (or macs=20.4K)"),
        ("params=1,234,567", "params=1234567 (or params=1.234567M)"),
    ],
)
def test_commas_between_thousands_are_answered_with_the_figure(text, meant):
    with pytest.raises(BudgetError, match=re.escape(f"did you mean {meant}?")):
        points([text])
    assert points([meant.split(" ")[0]]) == points([meant.split()[-1].rstrip(")")])


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("macs=1e6", "macs=1M"),
        ("MACs=2.5E+7", "macs=25M"),
        ("macs=5e-1", "macs=0.5"),
        ("params=3e3", "params=3K"),
    ],
)
def test_an_exponent_is_answered_with_the_figure(text, meant):
    with pytest.raises(BudgetError, match=re.escape(f"; did you mean {meant}?")):
        Budget.parse(text)
    assert str(Budget.parse(meant)) == meant


@pytest.mark.parametrize(
    ("text", "share"),
    [("macs=50%", 0.5), ("MACs=47 %", 0.47), ("params=12.5%", 0.125), ("latency=100%", 1), ("macs=.5%", 0.005)],
)
def test_per_cent_are_a_share(text, share):
    assert Budget.parse(text) == Budget(text.partition("=")[0].lower(), share, is_share=True)


@pytest.mark.parametrize("text", ["macs=0%", "macs=150%"])
def test_other_shares_in_per_cent_are_refused(text):
    with pytest.raises(BudgetError, match=r"expected a share in \(0, 1\]"):
        Budget.parse(text)


def test_several_amounts_may_be_per_cent():
    assert points(["macs=30%,0.5"]) == [("macs=0.3",), ("macs=0.5",)]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("flops=0.5", "macs=0.5"),
        ("FLOP=40M", "macs=40M"),
        ("latency=4", "latency=4ms"),
        ("latency=1.5", "latency=1.5ms"),
    ],
)
def test_other_units_are_answered_with_ours(text, meant):
    with pytest.raises(BudgetError, match=f"id you mean {meant}"):
        Budget.parse(text)
    assert Budget.parse(meant)


@pytest.mark.parametrize("text", ["latency=1e6", "speed=1e6", "macs=0e0", "macs=1e"])
def test_an_exponent_that_means_no_budget_gets_no_answer(text):
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("text", ["macs=3000,200", "macs=30,200,1000", "macs=0.3,0.500", "macs=3M,200", "macs=30,20"])
def test_other_amounts_stand_side_by_side(text):
    assert len(points([text])) == text.count(",") + 1


@pytest.mark.parametrize(
    "text",
    [
        *("", "macs", "macs=", "=0.5", "0.5", "macs 0.5", "macs=abc", "macs=-0.5", "macs=+0.5", "macs=1e6", "macs=%"),
        *("macs = 0.5", "macs=0.5 M", "macs=1,000,000", "macs=20T", "macs=20MM", "macs=20KM", "macs=1.2.3", "macs=."),
        *(
            "macs=nan",
            "macs=inf",
            "speed=0.5",
            "flops=0.5",
            "latency=4",
            "macs=0.5,params=0.5",
            "macs==0.5",
            "macs=0x10",
        ),
        "macs=20\N{KELVIN SIGN}",
    ],
)
def test_malformed_text_is_refused_with_the_two_forms(text):
    with pytest.raises(BudgetError, match=r"cannot read the budget .*; expected KIND=SHARE .* or KIND=FIGURE"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["macs=0", "macs=0.0", "macs=0M", "params=.0K", "macs=" + "9" * 400])
def test_an_amount_that_is_not_above_zero_or_not_finite_is_refused(text):
    with pytest.raises(BudgetError, match=r"cannot use the budget .*expected a share in \(0, 1\]"):
        Budget.parse(text)


@given(st.text() | st.from_regex(r"(macs|params)=[0-9.]*\w?", fullmatch=True))
def test_no_text_raises_anything_but_a_budget_error(text):
    try:
        budget = Budget.parse(text)
    except BudgetError:
        return
    assert budget.kind in ("macs", "params")
    assert budget.amount > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("flops", 0.5, True),
        ("macs", 1.5, True),
        ("macs", 0.0, False),
        ("macs", -1.0, False),
        ("macs", float("nan"), True),
    ],
)
def test_a_budget_made_by_hand_is_checked_too(arguments):
    with pytest.raises(BudgetError, match="cannot use the budget"):
        Budget(*arguments)


@pytest.mark.parametrize(
    "text", ["macs=0.5", "macs=1", "params=0.123", "macs=20.4M", "macs=1.5", "params=270K", "macs=3G"]
)
def test_a_budget_prints_as_it_is_written(text):
    assert str(Budget.parse(text)) == text


@pytest.mark.parametrize("text", ["macs=0.123456789", "macs=0.0000001", "macs=0.001K", "macs=40813194"])
def test_what_a_budget_prints_reads_back_as_the_same_budget(text):
    budget = Budget.parse(text)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_a_share_is_taken_of_the_unpruned_network_and_rounded_down(kind):
    full = SPACE.cost(COSTS[kind], Architecture())
    for share in (0.5, 0.77, 0.9, 1.0):
        target = Budget(kind, share, is_share=True).limit(SPACE).most
        assert isinstance(target, int)
        assert target <= share * full < target + 1


@pytest.fixture
def space_of_hundredths():
    """One layer that costs 1 to 100 MACs."""
    group = WidthGroup(name="conv", width=100, candidates=(1, 100), layers=("conv",))
    layer = Layer(name="conv", operator="conv", inputs=Channels(1), outputs=Channels(100, source="conv"))
    return SearchSpace(groups=(group,), stages=(), layers=(layer,))


def test_a_share_is_taken_as_it_is_written(space_of_hundredths):
    targets = [Budget.parse(f"macs={percent / 100}").limit(space_of_hundredths).most for percent in range(1, 101)]
    assert targets == list(range(1, 101))


@pytest.mark.parametrize("amount", [1, np.float64(0.25)], ids=repr)
def test_a_share_may_be_any_number(space_of_hundredths, amount):
    budget = Budget("macs", amount, is_share=True)
    assert budget.limit(space_of_hundredths).most == 100 * amount
    assert Budget.parse(str(budget)) == budget


@given(st.integers(min_value=space_of(plain).macs(space_of(plain).smallest_architecture()), max_value=5_000))
def test_a_figure_is_the_target_itself(figure):
    assert Budget.parse(f"macs={figure}").limit(space_of(plain)).most == figure


@pytest.mark.parametrize("unit", ["K", "M", "G"])
def test_a_figure_with_a_unit_is_exact_to_the_last_mac(unit):
    space, digits = resnet_space(20), {"K": 3, "M": 6, "G": 9}[unit]
    for figure in range(1_001_864, 40_813_195, 40_009):
        text = f"{figure // 10**digits}.{figure % 10**digits:0{digits}d}{unit}"
        assert Budget.parse(f"macs={text}").limit(space).most == figure


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["macs", "params"])
def test_both_ends_of_the_attainable_range_are_attainable(name, kind):
    space = space_of(CASES[name])
    smallest, full = (space.cost(COSTS[kind], a) for a in (space.smallest_architecture(), space.full_architecture()))
    assert Budget.parse(f"{kind}={smallest}").limit(space).most == smallest
    assert Budget.parse(f"{kind}={full}").limit(space).most == full
    assert Budget.parse(f"{kind}=1").limit(space).most == full
    unit = COSTS[kind].name
    with pytest.raises(BudgetError, match=f"allows {smallest - 1:,} {unit}.*range .* is {smallest:,} .* to {full:,} "):
        Budget.parse(f"{kind}={smallest - 1}").limit(space)
    with pytest.raises(BudgetError, match=f"allows {full + 1:,} {unit}, and the unpruned network has {full:,} {unit}"):
        Budget.parse(f"{kind}={full + 1}").limit(space)


def test_a_budget_below_the_smallest_is_refused_with_the_attainable_range():
    message = (
        "cannot keep the budget macs=0.01: it allows 408,131 MACs, and the attainable range of this search space is "
        "1,001,864 MACs (0.025 of the unpruned network) to 40,813,194 MACs (1.000)"
    )
    with pytest.raises(BudgetError, match=re.escape(message)):
        Budget.parse("macs=0.01").limit(resnet_space(20))


def test_a_share_that_was_meant_in_per_cent_is_named():
    with pytest.raises(BudgetError, match=r"macs=50: it allows 50 MACs \(a share is macs=0\.5, or macs=50%\), and the"):
        Budget.parse("macs=50").limit(resnet_space(20))
    with pytest.raises(BudgetError, match=r"macs=101: it allows 101 MACs, and the"):
        Budget.parse("macs=101").limit(resnet_space(20))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["macs", "params"])
def test_the_smallest_share_that_a_refusal_states_is_attainable(name, kind):
    space = space_of(CASES[name])
    with pytest.raises(BudgetError) as refusal:
        Budget.parse(f"{kind}=0.001").limit(space)
    stated = re.search(r"\((0\.\d+) of the unpruned network\)", str(refusal.value))
    assert stated is not None
    Budget.parse(f"{kind}={stated[1]}").limit(space)


def test_several_amounts_of_one_kind_are_points_at_each_of_which_the_other_budgets_hold():
    assert points(["macs=0.5"]) == [("macs=0.5",)]
    assert points(["macs=0.3, 0.5,20M", "params=0.4"]) == [
        ("macs=0.3", "params=0.4"),
        ("macs=0.5", "params=0.4"),
        ("macs=20M", "params=0.4"),
    ]


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (["macs=0.3,0.5", "params=0.3,0.4"], "several amounts of one kind of cost only"),
        (["macs=0.5,0.50"], "expected amounts that differ"),
        (["macs=0.5,,0.3"], "cannot read the budget 'macs='"),
        (["macs=0.5", "macs=0.4"], "one or several of different kinds"),
        ([], "cannot search without a budget"),
    ],
)
def test_points_that_make_no_frontier_are_refused(budgets, message):
    with pytest.raises(BudgetError, match=message):
        points(budgets)


def test_one_budget_or_several_are_read_from_text_or_taken_as_they_are():
    budget = Budget.parse("params=0.4")
    assert parse_budgets("macs=0.5") == (Budget.parse("macs=0.5"),)
    assert parse_budgets(["macs=0.5", budget]) == (Budget.parse("macs=0.5"), budget)


@pytest.mark.parametrize("nothing", ["", [], ()])
def test_no_budget_at_all_is_refused_wherever_limits_are_taken(nothing):
    with pytest.raises(BudgetError):
        limits_of(nothing, SPACE)
    with pytest.raises(BudgetError):
        uniform_architecture(SPACE, nothing)


def test_limits_stay_as_they_are_and_texts_become_limits():
    (limit,) = limits_of("macs=0.5", SPACE)
    assert limits_of(limit, SPACE) == limits_of([limit], SPACE) == limits_of(["macs=0.5"], SPACE) == [limit]
    assert uniform_architecture(SPACE, "macs=0.5") == uniform_architecture(SPACE, [limit])
