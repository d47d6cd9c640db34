"""2-D convolutions, whichever module calls them, kept away from a fault of oneDNN's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

BLOCK = 16
"""Channels that oneDNN's widest convolutions take at once."""
CONV2D = (F.conv2d, torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)


class SoundConvolutions(TorchFunctionMode):
    """Inside the block strided 1×1 convolutions of few channels are computed without a stride, on the pixels they read.

    With features channels last and fewer channels than a block of its own (8 with AVX2, 16 with AVX-512), oneDNN writes
    past the end of its workspace while it computes the gradient of their weights: the heap breaks, gradients are wrong,
    or several threads wait for each other for ever. So do oneDNN 3.12.0 in torch 2.14.1, and its `main` in November
    2026: https://github.com/uxlfoundation/oneDNN/issues/6035.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in CONV2D:
            call = _Call(*args, **(kwargs or {}))
            if call.is_unsound:
                down, right = _pair(call.stride)
                return F.conv2d(call.input[..., ::down, ::right], call.weight, call.bias)
        return function(*args, **(kwargs or {}))


class _Call(NamedTuple):
    """The arguments of `torch.nn.functional.conv2d`."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1

    @property
    def is_unsound(self) -> bool:
        """Whether oneDNN might write past its workspace."""
        is_padded = self.padding != "valid" and (self.padding == "same" or max(_pair(self.padding)) > 0)
        return (
            self.weight.device.type == "cpu"
            and self.weight.shape[1] < BLOCK
            and self.weight.shape[2:] == (1, 1)
            and max(_pair(self.stride)) > 1
            and not is_padded
            and self.groups == 1
        )


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
