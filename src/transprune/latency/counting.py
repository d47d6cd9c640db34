"""What a network costs when it is run: MACs counted by running it, and its latency."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from transprune.reading.trace import Example, as_inputs, rebatched


@torch.no_grad()
def count_macs(model: nn.Module, example: Example) -> int:
    """Multiply-adds of one forward pass for one sample, counted while the model runs.

    Convolutions and products of matrices, those of attention among them, count as torch's `FlopCounterMode` sees them
    (halved: it counts a multiply-add as two operations); a bias of a convolution or linear layer adds one MAC an output
    element, as in the paper's tables.

    Args:
        model: The network; untouched.
        example: An input batch [batch, ...], or a tuple of the forward's positional arguments; its first sample is run.
    """
    inputs = as_inputs(example)
    inputs = rebatched(inputs, 1) or inputs
    network = copy.deepcopy(model).eval().requires_grad_(False)
    biases = _BiasCounter()
    # The fused path of attention hides its matrix products from the counter.
    was_fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False, custom_mapping=_ATTENTION_ON_CPU) as counter, biases:
            network(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fused)
    return (int(counter.get_total_flops()) // 2 + biases.elements) // inputs[0].shape[0]


def _attention_flops(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


_ATTENTION_ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
"""The one kernel of attention that torch's counter does not know."""


class _BiasCounter(TorchFunctionMode):
    """Counts the output elements of convolutions and linear layers that add a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        outcome = function(*args, **named)
        if function in _WITH_BIAS:
            bias = args[2] if len(args) > 2 else named.get("bias")
            self.elements += prod(outcome.shape) if bias is not None else 0
        elif function is F.multi_head_attention_forward:  # its linear layers run out of this counter's sight
            self.elements += _attention_biases(*args, **named)
        return outcome


def _attention_biases(*args: Any, **named: Any) -> int:
    """Biases that attention adds when it projects queries, keys, values and the result."""
    call = signature(F.multi_head_attention_forward).bind(*args, **named).arguments
    query = int(call["query"].numel())
    projected = query + prod(call["key"].shape[:-1]) * int(call["query"].shape[-1]) * 2
    elements = 0 if call["in_proj_bias"] is None else projected
    return elements if call["out_proj_bias"] is None else elements + query


_WITH_BIAS = {
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(torch.ops.aten.linear.default, torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default),
    *(torch.ops.aten.conv1d.padding, torch.ops.aten.conv2d.padding, torch.ops.aten.conv_transpose2d.input),
}


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
