"""Repair without training: what can be made good is made good, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressible import CASES, made
from transprune import Architecture, inspect, shrink
from transprune.reading.execution import Program
from transprune.reading.reading import read
from transprune.scores.least_squares import (
    Moments,
    as_matrix,
    as_weight,
    centre,
    fit,
    inputs_at,
    outputs_at,
    shift_of,
)
from transprune.scores.refit import fitted_layers, repair


def error(network: nn.Module, other: nn.Module, samples: Tensor) -> float:
    with torch.no_grad():
        return float((network(samples) - other(samples)).square().mean())


@pytest.mark.parametrize("case", CASES)
def test_at_full_width_repair_changes_nothing(case: str) -> None:
    network, samples = made(case)
    repaired = repair(network, network, Architecture(), samples)
    assert error(repaired, network, samples) < 1e-8


@pytest.mark.parametrize("case", CASES)
def test_repair_makes_a_cut_network_more_like_the_unpruned_one(case: str) -> None:
    network, samples = made(case)
    space = inspect(network, samples[:2])
    smaller = Architecture(widths={group.name: group.candidates[len(group.candidates) // 2] for group in space.groups})
    student = shrink(network, smaller, samples[:2])
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    repaired = repair(student, network, smaller, samples)
    assert error(repaired, network, samples) < 0.7 * error(student, network, samples)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("case", CASES)
def test_a_channel_that_others_add_up_to_is_cut_without_loss(case: str) -> None:
    network, samples = made(case)
    layer, group = {
        "residual": ("first", "first"),
        "depthwise": ("right", "right"),
        "attention": ("up", "up"),
    }[case]
    weighted = network.get_submodule(layer)
    with torch.no_grad():  # behind a ReLU a positive multiple of one channel is still a multiple of it
        factor = 1.0 if case == "attention" else 2.5
        weighted.weight[-1] = factor * weighted.weight[0]
        weighted.bias[-1] = factor * weighted.bias[0]
    smaller = Architecture(widths={group: len(weighted.bias) - 1})
    student = shrink(network, smaller, samples[:2])
    assert error(student, network, samples) > 1e-5
    repaired = repair(student, network, smaller, samples, ridge=1e-9)
    assert error(repaired, network, samples) < 1e-8


def test_what_a_convolution_reads_is_what_it_multiplies() -> None:
    """The patches times the weights are the outputs, for every kind of convolution."""
    torch.manual_seed(0)
    cases = (
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (5, 4, 9, 7)),
        (nn.Conv2d(4, 6, (1, 3), padding=(0, 2), dilation=(1, 2), groups=2), (5, 4, 9, 7)),
        (nn.Conv2d(4, 8, 3, padding="same", dilation=2, groups=4), (5, 4, 6, 6)),
        (nn.Conv1d(4, 6, 3, stride=3), (5, 4, 11)),
        (nn.Conv3d(2, 4, 3, padding=1, stride=(1, 2, 1)), (2, 2, 4, 5, 6)),
    )
    for layer, size in cases:
        inputs = torch.randn(size)
        outputs = layer(inputs)
        arguments = {
            "input": inputs,
            "weight": layer.weight,
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "groups": layer.groups,
        }
        places = torch.randperm(outputs.numel() // outputs.shape[1])[:20]
        read_there = inputs_at(arguments, tuple(outputs.shape[2:]), places)
        found = (read_there @ as_matrix(layer.weight, layer.groups)).movedim(0, 1).flatten(1) + layer.bias
        torch.testing.assert_close(found, outputs_at(outputs, 1, places))
        assert torch.equal(as_weight(as_matrix(layer.weight, layer.groups), layer.weight), layer.weight)


def test_a_fit_is_the_least_squares_solution() -> None:
    torch.manual_seed(0)
    inputs, wanted = torch.randn(1, 50, 4).double(), torch.randn(50, 3).double()
    moments = Moments.of(*centre(inputs, has_shift=True), wanted, has_shift=True)
    found = fit(moments, torch.zeros(1, 4, 3), ridge=1e-12)
    solved = torch.linalg.lstsq(torch.cat([inputs[0], torch.ones(50, 1)], dim=1), wanted).solution
    torch.testing.assert_close(found[0], solved[:4])
    torch.testing.assert_close(shift_of(moments, found), solved[4])
    some = fit(moments, torch.zeros(1, 4, 3), columns=torch.tensor([1, 3]), ridge=1e-12)
    assert not some[0, [0, 2]].any()


def test_layers_that_are_called_twice_are_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once, self.twice, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.last(self.twice(self.twice(self.once(inputs))))
            return outputs

    layers = fitted_layers(read(Shared(), torch.randn(3, 4)))
    assert {layer.weight for layer in layers.values()} == {"once.weight", "last.weight"}


def test_blocks_that_are_left_out_are_made_good() -> None:
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs + 0.3 * F.relu(self.layer(inputs))

    network = nn.Sequential(nn.Linear(4, 8), nn.Sequential(Block(), Block(), Block()), nn.Linear(8, 2)).eval()
    samples = torch.randn(256, 4)
    smaller = Architecture(depths={"1": 1})
    student = shrink(network, smaller, samples[:2])
    repaired = repair(student, network, smaller, samples)
    assert error(repaired, network, samples) < 0.7 * error(student, network, samples)


def test_the_teacher_is_untouched() -> None:
    network, samples = made("residual")
    before = copy.deepcopy(network.state_dict())
    network.train()
    repair(
        shrink(network, Architecture(widths={"first": 4}), samples[:2]), network, Architecture({"first": 4}), samples
    )
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert Program(read(network, samples)).steps
