"""Counting MACs by running a network, and timing it."""

import copy
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import oracles
from small_networks import CASES, ODD_CASES, example, inline_residual, plain
from transprune.latency import counting
from transprune.latency.counting import count_macs, measure_latencies

ALL = {**CASES, **ODD_CASES}


@pytest.mark.parametrize("name", ALL)
def test_macs_equal_those_counted_by_hand_whatever_the_batch(name):
    network = ALL[name]()
    expected = oracles.count_by_hand(network, example(1))
    assert [count_macs(network, example(batch)) for batch in (1, 2, 7)] == [expected] * 3


def test_without_biases_they_are_half_of_what_torch_counts():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5, bias=False))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(example(1))
    assert 2 * count_macs(network, example(1)) == counter.get_total_flops()


def test_a_bias_is_one_mac_an_output_element():
    with_bias, without = (nn.Conv2d(3, 4, 3, stride=2, bias=bias) for bias in (True, False))
    assert count_macs(with_bias, example()) - count_macs(without, example()) == 4 * 3 * 3
    assert count_macs(nn.Linear(6, 5), torch.zeros(2, 7, 6)) == 7 * 5 * (6 + 1)


def test_norms_activations_pooling_and_sums_do_not_count():
    assert count_macs(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)), example()) == 0


def test_transposed_grouped_and_one_dimensional_convolutions_count():
    assert count_macs(nn.ConvTranspose2d(3, 4, 2, stride=2), example()) == 64 * 4 * 3 * 4 + 4 * 16 * 16
    assert count_macs(nn.Conv2d(6, 4, 3, groups=2), torch.zeros(1, 6, 5, 5)) == 9 * 4 * (9 * 3 + 1)
    assert count_macs(nn.Conv1d(3, 4, 3), torch.zeros(2, 3, 9)) == 7 * 4 * (3 * 3 + 1)


def test_a_network_used_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, first, second):
            return self.layer(first) + self.layer(second)

    assert count_macs(Twice(), (torch.zeros(3, 4), torch.zeros(3, 4))) == 2 * 4 * (4 + 1)


def test_attention_counts_its_matrix_products():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, tokens):
            return self.attention(tokens, tokens, tokens, need_weights=False)[0]

    assert count_macs(Attention(), torch.zeros(2, 5, 16)) >= 5 * 4 * 16 * 16 + 2 * 5 * 5 * 16


def test_counting_leaves_the_network_as_it_was():
    network = inline_residual().train()
    before = copy.deepcopy(network.state_dict())
    count_macs(network, example())
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("is_fused", [True, False])
def test_counting_leaves_torchs_settings_as_they_were(is_fused):
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(is_fused)
    try:
        count_macs(plain(), example())
        with pytest.raises(RuntimeError):
            count_macs(plain(), torch.zeros(1, 7, 8, 8))
        assert torch.backends.mha.get_fastpath_enabled() == is_fused
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_counting_draws_no_random_numbers():
    network = nn.Sequential(nn.Dropout(), plain())
    state = torch.get_rng_state()
    count_macs(network, example())
    assert torch.equal(torch.get_rng_state(), state)


class Clock:
    """Stands in for the time: networks move it on."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def perf_counter(self):
        return self.now

    def network(self, name, milliseconds):
        times = iter(milliseconds)

        def forward(*inputs):
            assert not torch.is_grad_enabled()
            self.calls.append((name, len(inputs)))
            self.now += next(times) / 1000

        return forward


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(counting, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def test_latency_is_the_median_after_the_warm_up(clock):
    networks = {"slow": clock.network("slow", [500, 500, 7, 9, 8, 100, 8.5]), "fast": clock.network("fast", [1] * 7)}
    latencies = measure_latencies(networks, example(1), repeats=5, warm_up=2)
    assert latencies == pytest.approx({"slow": 8.5, "fast": 1.0})
    assert list(latencies) == ["slow", "fast"]


def test_networks_take_turns(clock):
    networks = {name: clock.network(name, [1] * 4) for name in ("teacher", "student")}
    measure_latencies(networks, (example(1), example(1)), repeats=3, warm_up=1)
    assert clock.calls == [("teacher", 2), ("student", 2)] * 4


def test_a_network_that_takes_longer_is_found_slower():
    def sleeping(seconds):
        return lambda images: time.sleep(seconds)

    found = measure_latencies({"short": sleeping(0.001), "long": sleeping(0.006)}, example(1), repeats=5, warm_up=1)
    assert found["short"] >= 1
    assert found["long"] >= 6
    assert found["short"] < found["long"]


def test_a_real_network_is_timed_in_evaluation_mode_without_a_trace_of_it():
    network = inline_residual().eval()
    before = copy.deepcopy(network.state_dict())
    assert measure_latencies({"network": network}, example(1), repeats=2, warm_up=1)["network"] > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
