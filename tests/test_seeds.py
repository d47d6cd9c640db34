"""A phase repeats exactly, whatever ran before it, and leaves no trace in the caller's generators."""

import random

import numpy as np
import pytest
import torch

from transprune.errors import OptionError
from transprune.runtime import choose_device, phase_seed, seeded


def draw():
    return (random.random(), float(np.random.random()), float(torch.rand(())))


def test_the_seed_of_a_phase_is_the_same_in_every_process_and_version():
    assert phase_seed(0, "search") == 444328982
    assert phase_seed(1, "teacher") == 701535372


def test_seeds_and_phases_have_different_seeds_that_every_library_accepts():
    seeds = {phase_seed(seed, phase) for seed in range(100) for phase in ("teacher", "search", "distill", "1")}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_phase_repeats_whatever_was_drawn_before():
    with seeded(0, "search"):
        first = draw()
    draw()
    with seeded(0, "search"):
        assert draw() == first
    with seeded(0, "distill"):
        other = draw()
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_the_callers_generators_go_on_as_if_nothing_had_been_drawn():
    def start():
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    start()
    expected = [draw(), draw()]
    start()
    found = [draw()]
    with pytest.raises(ZeroDivisionError), seeded(0, "search"):
        _ = draw(), 1 / 0
    found.append(draw())
    assert found == expected


def test_phases_within_phases_restore_each_other():
    with seeded(0, "search"):
        first, second = draw(), draw()
    with seeded(0, "search"):
        assert draw() == first
        with seeded(0, "evaluate"):
            draw()
        assert draw() == second


def test_a_phase_hands_out_its_seed_for_generators_of_its_own():
    with seeded(7, "search") as number:
        assert number == phase_seed(7, "search")


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_phase_repeats_on_cuda_and_restores_its_generator():
    torch.cuda.manual_seed_all(5)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed_all(5)
    with seeded(0, "search"):
        first = torch.rand(3, device="cuda")
    assert torch.equal(torch.rand(3, device="cuda"), expected)
    with seeded(0, "search"):
        assert torch.equal(torch.rand(3, device="cuda"), first)


# --- devices ----------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """Makes a machine with that many CUDA devices, of which the last is the current one."""

    def make(count, version="13.2"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: count - 1)
        monkeypatch.setattr(torch.version, "cuda", version)

    return make


def test_auto_takes_cuda_where_there_is_some(machine):
    machine(0)
    assert choose_device("auto") == torch.device("cpu")
    machine(2)
    assert choose_device("auto") == torch.device("cuda", 1)


def test_a_named_device_is_taken(machine):
    machine(2)
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("cuda") == torch.device("cuda", 1)
    assert choose_device("cuda:0") == torch.device("cuda", 0)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:-1", "cuda:x", "CPU", "cpu:0", "mps"])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(OptionError, match="it is unknown; use --device with auto, cpu, cuda or cuda:N"):
        choose_device(name)


@pytest.mark.parametrize(
    ("version", "reason"), [(None, "was built without CUDA"), ("13.2", r"\(CUDA 13\.2\) finds no CUDA device")]
)
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_cuda_is_refused_where_there_is_none_with_the_reason(machine, name, version, reason):
    machine(0, version)
    with pytest.raises(OptionError, match=f"cannot compute on '{name}': .*{reason}; use --device cpu"):
        choose_device(name)


def test_a_device_that_the_machine_lacks_is_refused(machine):
    machine(2)
    with pytest.raises(OptionError, match="cuda:0 to cuda:1"):
        choose_device("cuda:2")
