"""The budget penalty: three regions of the actual cost, their borders, and how each pushes the expected cost."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transprune.tas.expected_cost import budget_penalty, sum_of_penalties


def penalty(expected, actual, target=100.0, tolerance=0.25):
    """Value and slope of the penalty in the expected cost."""
    variable = torch.tensor(float(expected), dtype=torch.float64, requires_grad=True)
    value = budget_penalty(variable, torch.tensor(float(actual), dtype=torch.float64), target, tolerance)
    value.backward()
    return value.item(), variable.grad.item()


@pytest.mark.parametrize("expected", [40.0, 90.0, 100.0, 130.0, 200.0])
def test_above_the_band_it_is_the_logarithm_and_pushes_the_cost_down(expected):
    value, slope = penalty(expected, actual=126)
    assert value == pytest.approx(math.log(expected / 100))
    assert slope == pytest.approx(1 / expected)
    assert slope > 0


@pytest.mark.parametrize("expected", [40.0, 90.0, 100.0, 130.0, 200.0])
def test_below_the_band_it_is_minus_the_logarithm_and_pushes_the_cost_up(expected):
    value, slope = penalty(expected, actual=74)
    assert value == pytest.approx(-math.log(expected / 100))
    assert slope == pytest.approx(-1 / expected)
    assert slope < 0


@pytest.mark.parametrize("actual", [76.0, 99.0, 100.0, 101.0, 124.0])
@pytest.mark.parametrize("expected", [1.0, 74.0, 100.0, 126.0, 1e9])
def test_in_the_band_it_is_zero_and_pushes_nowhere(actual, expected):
    assert penalty(expected, actual) == (0, 0)


def test_the_borders_belong_to_the_band_and_what_lies_beyond_does_not():
    assert penalty(50, actual=125) == (0, 0)
    assert penalty(50, actual=75) == (0, 0)
    assert penalty(50, actual=math.nextafter(125, 200))[1] > 0
    assert penalty(50, actual=math.nextafter(75, 0))[1] < 0


def test_without_tolerance_only_the_target_itself_is_free():
    assert penalty(50, actual=100, tolerance=0) == (0, 0)
    assert penalty(50, actual=101, tolerance=0)[1] > 0
    assert penalty(50, actual=99, tolerance=0)[1] < 0


@given(expected=st.floats(1, 1e12), actual=st.floats(1, 1e12), target=st.floats(1, 1e12), tolerance=st.floats(0, 0.5))
def test_the_region_depends_on_the_actual_cost_alone(expected, actual, target, tolerance):
    _, slope = penalty(expected, actual, target, tolerance)
    direction = (actual > (1 + tolerance) * target) - (actual < (1 - tolerance) * target)
    assert slope == pytest.approx(direction / expected, rel=1e-9)


def test_it_does_not_depend_on_the_unit():
    for actual in (74, 100, 126):
        in_macs, in_millions = penalty(4e7, actual * 1e6, 1e8), penalty(40, actual, 100)
        assert in_macs[0] == pytest.approx(in_millions[0])


def test_no_gradient_flows_to_the_actual_cost():
    actual = torch.tensor(126.0, requires_grad=True)
    budget_penalty(torch.tensor(90.0, requires_grad=True), actual, 100, 0.25).backward()
    assert actual.grad is None


@pytest.mark.parametrize("kind", [torch.float64, torch.int64])
def test_a_single_mac_beyond_the_border_counts(kind):
    expected = torch.tensor(1e8, dtype=torch.float64)
    within, beyond = torch.tensor(125_000_000, dtype=kind), torch.tensor(125_000_001, dtype=kind)
    assert budget_penalty(2 * expected, within, 100_000_000, 0.25) == 0
    assert budget_penalty(2 * expected, beyond, 100_000_000, 0.25) > 0


@pytest.mark.parametrize(
    ("actual", "slopes"),
    [
        ([50, 20], [-1, -1]),
        ([97, 20], [0, 0]),
        ([50, 51], [0, 0]),
        ([150, 20], [1, 0]),
        ([101, 20], [0, 0]),
        ([150, 60], [1, 1]),
    ],
)
def test_of_several_budgets_costs_are_pushed_up_only_where_all_have_room(actual, slopes):
    expected = torch.tensor([80.0, 40.0], dtype=torch.float64, requires_grad=True)
    sum_of_penalties(expected, torch.tensor(actual), [100, 50], tolerance=0.05).backward()
    assert (expected.grad * expected.detach()).tolist() == pytest.approx(slopes)


@given(expected=st.floats(1, 1e12), actual=st.floats(1, 1e12), target=st.floats(1, 1e12), tolerance=st.floats(0, 0.5))
def test_of_one_budget_the_penalty_is_the_papers(expected, actual, target, tolerance):
    one, other = torch.tensor(expected, dtype=torch.float64), torch.tensor(actual, dtype=torch.float64)
    several = sum_of_penalties(one[None], other[None], [target], tolerance)
    torch.testing.assert_close(several, budget_penalty(one, other, target, tolerance))
