"""MACs of a network, counted while it runs, and the share of them at widths that hardware runs badly."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from transprune.architecture import Architecture
from transprune.costs import Channels
from transprune.reading.trace import Example, as_inputs, rebatched
from transprune.space import SearchSpace

MULTIPLE = 8
"""Kernels process channels in multiples of this, or of half or twice it; other widths are padded or run slower code."""


@torch.no_grad()
def count_macs(model: nn.Module, example: Example) -> int:
    """Counts the multiply-adds of one forward for one sample, by running it.

    torch's `FlopCounterMode` counts convolutions and matrix products, including those of attention (halved, since it
    counts a multiply-add as two operations). A bias of a convolution or linear layer adds one MAC per output element,
    as in the paper's tables.

    Args:
        model: The network; untouched.
        example: An input batch [batch, ...], or a tuple of the forward's positional arguments; its first sample is run.
    """
    inputs = as_inputs(example)
    inputs = rebatched(inputs, 1) or inputs
    network = copy.deepcopy(model).eval().requires_grad_(False)
    biases = _BiasCounter()
    # The fused path of attention would hide its matrix products from the counter.
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
"""The one attention kernel that torch's counter does not know."""


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
        elif function is F.multi_head_attention_forward:  # its linear layers are hidden from this mode
            self.elements += _attention_biases(*args, **named)
        return outcome


def _attention_biases(*args: Any, **named: Any) -> int:
    """Output elements of attention's projections of queries, keys, values and the result that add a bias."""
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


@dataclass(frozen=True, kw_only=True)
class Friendliness:
    """The layers of an architecture whose chosen widths are not multiples of a number."""

    multiple_of: int
    layers: int
    """Number of kept layers with MACs."""
    unfriendly: tuple[str, ...]
    """Paths of those with a chosen input or output width that is not a multiple."""
    share_of_macs: float
    """The share of the unfriendly layers in all MACs."""


def friendliness(space: SearchSpace, architecture: Architecture, *, multiple: int = MULTIPLE) -> Friendliness:
    """Finds layers that read or write a chosen number of channels that is not a multiple of `multiple`.

    Widths that no choice decides, such as image channels or classes, do not count.
    """
    macs: dict[str, int] = {}
    unfriendly = set()
    for layer in space.layers:
        if not space.is_kept(layer.name, architecture):
            continue
        ends = layer.inputs, layer.outputs
        cost = layer.macs(*(space.resolve(end, architecture) for end in ends))
        if cost:
            macs[layer.name] = macs.get(layer.name, 0) + cost
            if any(_is_odd(space, end, architecture, multiple) for end in ends):
                unfriendly.add(layer.name)
    share = sum(macs[name] for name in unfriendly) / sum(macs.values()) if macs else 0.0
    named = tuple(name for name in macs if name in unfriendly)
    return Friendliness(multiple_of=multiple, layers=len(macs), unfriendly=named, share_of_macs=share)


def _is_odd(space: SearchSpace, channels: Channels, architecture: Architecture, multiple: int) -> bool:
    return bool(channels.sources) and space.resolve(channels, architecture) % multiple != 0
