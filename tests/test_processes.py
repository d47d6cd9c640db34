"""Several processes work as one: the same gradients, figures and results as one process on the joined batches."""

from contextlib import nullcontext
from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader

import jobs
from test_loader_data import Endless
from test_training import assert_same_state
from transprune.errors import StoppedError
from transprune.runtime import processes
from transprune.training.batches import shared


@pytest.fixture(scope="module")
def together():
    return jobs.together(("cuda:gloo", jobs.exchanges), ("gloo", jobs.everything), ("gloo", jobs.dies))


@pytest.fixture(scope="module")
def two(together):
    return together[0][1]


@pytest.fixture(scope="module")
def one():
    return jobs.everything()


def close(first, second):
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["gloo", "cuda:gloo"])
def test_what_is_exchanged_arrives_in_every_process(backend, together, two):
    """Also where the job's own group serves CUDA alone, as Fabric and accelerate make it."""
    works = [each["exchanges"] for each in two] if backend == "gloo" else together[0][0]
    for rank, found in enumerate(works):
        assert [tensor.tolist() for tensor in found["added"]] == [[3.0, 3.0], 10, [[2.0, 0.0], [0.0, 2.0]]]
        assert found["aligned"][0].tolist() == [0.0, 0.0, 0.0]
        assert found["gradient"] == 3.0, "each process's share of the sum is in the gradients of both"
        assert found["total"] == 11
        assert found["any"] == (True, False, True)
        assert found["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert found["first"] == "made by 0"
        assert found["alone"] == (1, 0, rank == 0, [rank])


def test_a_failure_of_the_first_process_ends_the_others(two):
    assert two[0]["exchanges"]["failed"] == "ValueError: no such luck"
    assert two[1]["exchanges"]["failed"] == (
        "ResourceError: cannot go on: the first process of the job failed: no such luck"
    )


@pytest.mark.parametrize("kind", ["plain", "normed", "parts"])
def test_two_processes_give_the_gradients_of_one_on_the_joined_batch(kind, two, one):
    for each in two:
        found, expected = each["step_of_fit"][kind], one["step_of_fit"][kind]
        close(found["gradients"], expected["gradients"])
        close(found["state"], expected["state"])
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_parts_of_a_batch_give_the_gradients_of_the_whole(one):
    close(one["step_of_fit"]["parts"]["gradients"], one["step_of_fit"]["plain"]["gradients"])


def test_two_processes_give_the_gradients_of_both_halves_of_a_search_step(two, one):
    expected = one["steps_of_search"]
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in expected["weights"])
    assert all(gradient.abs().max() > 0 for gradient in expected["architecture"])
    for each in two:
        torch.testing.assert_close(each["steps_of_search"], expected, rtol=1e-6, atol=1e-12)


def test_two_processes_hold_the_same_network_bit_for_bit(two):
    assert_same_state(two[0]["trained"]["state"], two[1]["trained"]["state"])
    assert torch.equal(two[0]["searched"]["widths"], two[1]["searched"]["widths"])
    assert two[0]["searched"]["architecture"] == two[1]["searched"]["architecture"]
    assert [each["searched"]["derivations"] for each in two] == [1, 0], "one that ran out of time would differ"


def test_two_processes_train_as_one_does_and_report_the_same(two, one):
    expected = one["trained"]["history"]
    for each in two:
        for figures, wanted in zip(each["trained"]["history"], expected, strict=True):
            for name in ("loss", "top1", "test_loss", "test_top1", "learning_rate"):
                assert figures[name] == pytest.approx(wanted[name], rel=1e-3), name


def test_a_job_that_stopped_goes_on_bit_for_bit_whichever_process_was_asked_to(two):
    for each in two:
        assert_same_state(each["resumed"]["whole"], each["resumed"]["resumed"])
        assert each["resumed"]["reason"] == "SIGTERM", "the second process alone was asked to"


@pytest.mark.parametrize("phase", ["train", "search", "distill"])
def test_a_phase_that_other_numbers_of_processes_take_up_in_its_middle_ends_as_one_left_alone(phase, two, one):
    first, alone = (each[0]["moved"][phase] if each is two else each["moved"][phase] for each in (two, one))
    assert [count for count, _ in first["stopped"]] == [1, 2], "one process, then two, then one"
    assert all(steps > 0 for _, steps in first["stopped"]), "in the middle of an epoch"
    assert_same_state(alone["moved"], alone["whole"])
    for name, value in first["whole"].items():
        torch.testing.assert_close(first["moved"][name], value, rtol=1e-3, atol=1e-4)


def test_a_process_that_comes_new_draws_numbers_of_its_own(two):
    drawn = two[0]["drawn_by_newcomers"]
    assert drawn[0] != drawn[1]


def test_processes_share_every_batch_of_a_loader_and_miss_none(two, one):
    first, second = (each["loaded"] for each in two)
    assert sorted(chain(*first["train"], *second["train"])) == list(range(22))
    assert [len(part) for part in first["train"]] == [3, 3, 3, 2]
    assert [len(part) for part in first["test"]] == [3, 3, 3], "the last batch has one sample, for the second"
    own = [*first["test"], []]
    assert [before + after for before, after in zip(own, second["test"], strict=True)] == one["loaded"]["test"]


def test_a_loader_with_a_generator_of_its_own_is_taken_up_where_it_was(two):
    found = [each["taken_up"] for each in two]
    for each in found:
        assert each["resumed"] == each["rest"]
    assert sorted(int(number) for each in found for number in chain(*each["given"], *each["rest"])) == list(range(24))


def test_a_loader_of_samples_without_places_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    loader = DataLoader(Endless(), 4)
    assert shared(loader, "train") is loader


def test_figures_are_those_of_all_processes(two, one):
    for each in two:
        assert each["measured"] == pytest.approx(one["measured"])


def test_a_process_that_is_gone_is_an_error_and_not_a_wait(together):
    works, ended = together
    assert len(works) == 2, "of the last one there is no result of both"
    assert "process 1 terminated" in str(ended)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, ["connects", "meets", "works", "leaves"]),
        (StoppedError("asked to stop", reason="SIGTERM"), ["connects", "meets", "works", "meets", "leaves"]),
        (ValueError("no such luck"), ["connects", "meets", "works"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_process_meets_the_others_before_it_may_leave(error, expected, monkeypatch):
    """One without work would else be gone while the others still connect. After an error the others may be gone."""
    done = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes.distributed, "init_process_group", lambda *_, **__: done.append("connects"))
    monkeypatch.setattr(processes, "total", lambda number: done.append("meets"))
    monkeypatch.setattr(processes.distributed, "destroy_process_group", lambda: done.append("leaves"))
    with pytest.raises(type(error)) if error else nullcontext(), processes.joined():
        done.append("works")
        if error:
            raise error
    assert done == expected
