"""Counting MACs by running a network, and timing it."""

import copy
import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import oracles
from small_networks import CASES, ODD_CASES, example, inline_residual, plain
from transprune.errors import LatencyError, ModelError
from transprune.latency.backends import Backend, network_onnx
from transprune.latency.stopwatch import measure_latencies, time_networks
from transprune.options import LEAST_REPEATS, LatencyOptions
from transprune.reading.macs import count_macs

OPTIONS = LatencyOptions(backend="torch", threads=2, batch_size=3, repeats=3)
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
        with pytest.raises(ModelError, match="expected input"):
            count_macs(plain(), torch.zeros(1, 7, 8, 8))
        assert torch.backends.mha.get_fastpath_enabled() == is_fused
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_counting_draws_no_random_numbers():
    network = nn.Sequential(nn.Dropout(), plain())
    state = torch.get_rng_state()
    count_macs(network, example())
    assert torch.equal(torch.get_rng_state(), state)


class Clock(Backend):
    """A backend whose calls move its clock on, by the milliseconds that each is given."""

    def __init__(self, options=OPTIONS):
        super().__init__(options, torch.device("cpu"))
        self.now, self.calls = 0, []

    def clock(self):
        return self.now

    def call(self, name, milliseconds):
        times = iter(milliseconds)

        def run():
            self.calls.append(name)
            self.now += round(1e6 * next(times))

        return run


def test_a_latency_is_the_median_of_a_batch_with_its_quartiles_and_says_where():
    clock = Clock()
    # Before a first look a network runs once untimed, and so it does before each of the three turns.
    slow = clock.call("slow", [500, 8, 500, 7, 500, 9, 8, 500, 100, 8.5])
    fast = clock.call("fast", [1] * 10)
    found = time_networks([slow, fast], clock, repeats=5, least=0)
    assert [each.latency_ms for each in found] == [8.5, 1.0]
    assert (found[0].lower_ms, found[0].upper_ms) == (8.0, 9.0)
    assert (found[0].runtime, found[0].device, found[0].threads, found[0].batch_size) == ("torch", "cpu", 2, 3)


def test_networks_take_turns():
    clock = Clock()
    time_networks([clock.call(name, [1] * 20) for name in ("teacher", "student")], clock, repeats=6, least=0)
    assert clock.calls == (["teacher"] * 2 + ["student"] * 2) + (["teacher"] * 3 + ["student"] * 3) * 3


def test_slow_networks_run_less_often():
    clock = Clock()
    time_networks([clock.call("slow", [1000] * 100)], clock, repeats=80, seconds=7.0)
    assert len(clock.calls) == 2 + 3 + 7
    clock.calls.clear()
    time_networks([clock.call("slower", [9000] * 100)], clock, repeats=80, seconds=7.0)
    assert len(clock.calls) == 2 + 3 + LEAST_REPEATS


def test_fast_networks_run_for_half_a_second_in_short_turns():
    clock = Clock()
    time_networks([clock.call("teacher", [3] * 200), clock.call("student", [2] * 200)], clock, repeats=6)
    assert clock.calls == (["teacher"] * 2 + ["student"] * 2) + (["teacher"] * 11 + ["student"] * 11) * 10
    clock.calls.clear()
    time_networks([clock.call("alone", [5] * 200)], clock, repeats=6, seconds=0.2)
    assert len(clock.calls) == 2 + 4 * (1 + 10)  # never longer than allowed


def test_a_network_that_takes_longer_is_found_slower():
    class Sleeping(nn.Module):
        def __init__(self, seconds):
            super().__init__()
            self.seconds = seconds

        def forward(self, images):
            assert not torch.is_grad_enabled()
            assert not self.training
            assert len(images) == OPTIONS.batch_size
            time.sleep(self.seconds)

    found = measure_latencies({"long": Sleeping(0.006), "short": Sleeping(0.001)}, example(1), OPTIONS)
    assert list(found) == ["long", "short"]
    assert found["short"].latency_ms < found["long"].latency_ms


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_real_network_is_timed_without_a_trace_of_it(backend):
    network, threads = inline_residual().train(), torch.get_num_threads()
    before = copy.deepcopy(network.state_dict())
    found = measure_latencies({"network": network}, example(2), LatencyOptions(backend=backend, repeats=3))["network"]
    assert 0 < found.lower_ms <= found.latency_ms <= found.upper_ms
    assert (found.runtime, found.threads, found.batch_size) == (backend, 1, 1)
    assert network.training
    assert torch.get_num_threads() == threads
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_graph_that_cannot_be_exported_is_not_printed(capfd):
    class Inverse(nn.Module):
        def forward(self, matrices):
            return torch.linalg.inv(matrices)

    with pytest.raises(LatencyError, match="torch cannot write it as ONNX"):
        network_onnx(Inverse(), (torch.eye(3)[None],))
    assert capfd.readouterr().out == ""
