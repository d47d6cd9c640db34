"""Real runs, killed at random moments over all phases, end as one left alone. A hundred of them: `make torture`."""

import pytest

import torture


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    place = tmp_path_factory.mktemp("torture")
    return place, torture.left_alone(place, torture.start_fork, torture.training_alone)


@pytest.mark.parametrize("seed", range(6))
def test_a_run_killed_at_random_moments_ends_as_one_left_alone(seed, alone):
    case = torture.torture(seed, *alone, torture.start_fork, torture.training_alone)
    assert any(not hit.is_late for hit in case.hits)
    assert case.faults == []
