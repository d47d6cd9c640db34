"""A machine on which time is computed, not measured: a clock, and a backend whose calls move it on.

Alone, an operator takes its kernel's time, and on top a call from outside and the reordering of its input and output;
in a network, its kernel's time and a little dispatch. Kernels have steps at multiples of 8.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from math import ceil, prod

import torch
from torch import nn

from transprune.latency.backends import BACKENDS, Backend
from transprune.latency.timed_operators import TimedOperator

CALL, REORDER, DISPATCH = 5000, 3, 1000
"""Nanoseconds: of a call from outside, for every element read or written alone, for every layer in a network."""


def kernel_time(weight: tuple[int, ...], groups: int, positions: int) -> int:
    """Nanoseconds, with steps at multiples of 8 of both widths."""
    outputs, inputs, *kernel = weight
    steps = ceil(outputs / 8) * (1 if groups > 1 else ceil(inputs / 8))
    return 20 * steps * prod(kernel) * positions


def alone(operator: TimedOperator, batch: int, inputs: int, outputs: int) -> int:
    """Time of an operator alone, nanoseconds."""
    positions = batch * (prod(operator.output_extent()) if operator.kind != "product" else operator.positions)
    own = kernel_time(operator.weight_shape(inputs, outputs), operator.groups_at(outputs), positions)
    return own + CALL + REORDER * operator.traffic(batch, inputs, outputs)


class FakeBackend(Backend):
    """Counts what it is asked to run, and computes how long it takes."""

    noise = 0.0
    """Share by which the time of a whole network may be off."""
    runs = 0
    machine = "an abacus"

    def __init__(self, options, device):
        super().__init__(options, device)
        self.now = 0
        self.drawing = random.Random(0)

    def clock(self):
        return self.now

    def surroundings(self):
        return {"cpu": self.machine}

    def operator(self, operator, inputs, outputs):
        return self._takes(alone(operator, self.options.batch_size, inputs, outputs))

    def network(self, network, inputs):
        return self._takes(network_time(network, inputs) * (1 + self.drawing.uniform(-self.noise, self.noise)))

    def _takes(self, nanoseconds):
        def run():
            type(self).runs += 1
            self.now += round(nanoseconds)

        return run


@torch.no_grad()
def network_time(network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> int:
    """Time of a whole network, nanoseconds: what it runs is watched."""
    total = 0

    def add(module, given, output):
        nonlocal total
        positions = output.numel() // module.weight.shape[0]
        total += kernel_time(tuple(module.weight.shape), getattr(module, "groups", 1), positions) + DISPATCH

    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                stack.callback(module.register_forward_hook(add).remove)
        network(*inputs)
    return total


def use_fake_backend(monkeypatch, folder, noise=0.0, machine="an abacus"):
    """Registers the backend under the name `fake`, new, with its cache in a folder."""
    fake = type("Fake", (FakeBackend,), {"noise": noise, "machine": machine, "runs": 0})
    monkeypatch.setitem(BACKENDS, "fake", fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return fake
