"""How figures move over a run: where they start, where they end, and that they never turn back."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transprune.training.update import anneal, warm_up_then_cosine

SHARES = st.floats(0, 1)
VALUES = st.floats(-1e6, 1e6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_it_starts_at_the_start_and_ends_at_the_end(schedule):
    assert anneal(10.0, 0.1, 0.0, schedule) == 10.0
    assert anneal(10.0, 0.1, 1.0, schedule) == pytest.approx(0.1, abs=1e-12)
    assert anneal(0.1, 5.0, 1.0, schedule) == pytest.approx(5.0, abs=1e-12)


def test_linear_moves_evenly():
    assert [anneal(10.0, 2.0, progress) for progress in (0.25, 0.5, 0.75)] == [8.0, 6.0, 4.0]


def test_cosine_moves_along_half_a_wave():
    for progress in (0.0, 0.1, 0.3, 0.5, 0.9, 1.0):
        expected = 2 + (10 - 2) * (1 + math.cos(math.pi * progress)) / 2
        assert anneal(10.0, 2.0, progress, "cosine") == pytest.approx(expected)


@given(start=VALUES, end=VALUES, first=SHARES, second=SHARES, schedule=st.sampled_from(["linear", "cosine"]))
def test_it_never_turns_back_nor_leaves_the_way(start, end, first, second, schedule):
    before, after = (anneal(start, end, progress, schedule) for progress in sorted((first, second)))
    slack = 1e-9 * (abs(start) + abs(end))
    assert min(start, end) - slack <= before <= max(start, end) + slack
    assert (after - before) * math.copysign(1, end - start) >= -slack


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine():
    rate = [warm_up_then_cosine(progress, 0.2) for progress in (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)]
    cosine = [(1 + math.cos(math.pi * share)) / 2 for share in (0.25, 0.5, 0.75)]
    assert rate == pytest.approx([0.0, 0.25, 0.5, 1.0, *cosine, 0.0])


def test_without_a_warm_up_it_starts_at_the_peak():
    assert warm_up_then_cosine(0.0, 0.0) == 1.0
    assert warm_up_then_cosine(0.5, 0.0) == pytest.approx(0.5)


@given(st.floats(0, 0.99))
def test_the_peak_is_reached_when_the_warm_up_ends_and_zero_exactly_when_the_run_ends(warm_up):
    assert warm_up_then_cosine(warm_up, warm_up) == 1.0
    assert warm_up_then_cosine(1.0, warm_up) == 0.0


@given(warm_up=st.floats(0, 0.9), progress=SHARES)
def test_the_learning_rate_stays_between_zero_and_the_peak(warm_up, progress):
    assert 0 <= warm_up_then_cosine(progress, warm_up) <= 1


def test_no_step_of_a_run_trains_at_rate_zero_but_the_first():
    steps = 1_000
    rates = [warm_up_then_cosine(step / steps, 5 / 300) for step in range(steps)]
    assert rates[0] == 0.0
    assert min(rates[1:]) > 0
    peak = rates.index(max(rates))
    assert all(before < after for before, after in pairwise(rates[: peak + 1]))
    assert all(before > after for before, after in pairwise(rates[peak:]))
