"""What a network costs when it is run: MACs counted by running it, and its latency."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from transprune.analysis.trace import Example, as_inputs


@torch.no_grad()
def count_macs(model: nn.Module, example: Example) -> int:
    """Multiply-adds of one forward pass, for one sample, counted while the model runs.

    Convolutions and matrix products count as torch's `FlopCounterMode` sees them (halved: it counts a multiply-add as
    two operations); a bias of a convolution or linear layer adds one MAC an output element, as in the paper's tables.

    Args:
        model: The network; untouched.
        example: An input batch [batch, ...], or a tuple of the forward's positional arguments.
    """
    inputs = as_inputs(example)
    network = copy.deepcopy(model).eval()
    biases: list[int] = []

    def count_bias(module: nn.Module, _: object, output: Tensor) -> None:
        if getattr(module, "bias", None) is not None:
            biases.append(prod(output.shape))

    for module in network.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            module.register_forward_hook(count_bias)
    # The fused path of attention hides its matrix products from the counter.
    was_fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            network(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fused)
    return (int(counter.get_total_flops()) // 2 + sum(biases)) // inputs[0].shape[0]


@torch.no_grad()
def measure_latencies(
    networks: Mapping[str, nn.Module], example: Example, *, repeats: int = 30, warm_up: int = 5
) -> dict[str, float]:
    """Median time of a forward pass in milliseconds, by name.

    The networks take turns, so that a busy machine slows all of them alike. They run where they are, on the example.

    Args:
        networks: In evaluation mode.
        example: An input batch on the networks' device, or a tuple of the forward's positional arguments.
        repeats: Timed forward passes of each network.
        warm_up: Untimed ones before.
    """
    inputs = as_inputs(example)
    is_cuda = inputs[0].is_cuda
    times: dict[str, list[float]] = {name: [] for name in networks}
    for repeat in range(-warm_up, repeats):
        for name, network in networks.items():
            started = time.perf_counter()
            network(*inputs)
            if is_cuda:
                torch.cuda.synchronize()
            if repeat >= 0:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(measured) for name, measured in times.items()}
