"""Feature maps on CPUs: gradients in few passes, channels last where it pays, and a way around a fault of oneDNN's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from transprune.runtime.structures import called, copied, joined, tensors_in


def add_padded(one: Tensor, other: Tensor) -> Tensor:
    """The sum of two feature maps [batch, channels, ...], the narrower one padded by channels of zeros."""
    if one.shape[1] == other.shape[1]:
        return one + other
    wide, narrow = (one, other) if one.shape[1] > other.shape[1] else (other, one)
    total: Tensor = _AddToFirstChannels.apply(wide, narrow)
    return total


class _AddToFirstChannels(torch.autograd.Function):
    """One copy and one in-place addition, and no copy backward; padding would write zeros and read them again."""

    @staticmethod
    def forward(ctx: Any, wide: Tensor, narrow: Tensor) -> Tensor:
        ctx.narrow = narrow.shape[1]
        total = wide.clone()
        total[:, : ctx.narrow] += narrow
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient[:, : ctx.narrow]


def weighted_sum(features: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Σ_k weights_k · features_k of feature maps of one shape."""
    total: Tensor = _WeightedSum.apply(weights, *(each.to(features[0].dtype) for each in features))
    return total


class _WeightedSum(torch.autograd.Function):
    """Stores no products, unlike autograd, and keeps the memory format of the features."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *features: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *features)
        total = weights[0] * features[0]
        for weight, each in zip(weights[1:], features[1:], strict=True):
            total.addcmul_(each, weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, *features = ctx.saved_tensors
        if gradient.stride() != features[0].stride():
            gradient = torch.empty_like(features[0]).copy_(gradient)
        of_weights = None
        if ctx.needs_input_grad[0]:
            of_weights = torch.stack([(gradient * each).sum() for each in features])
        return of_weights, *(gradient * weight for weight in weights)


def first_entries(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    """The first entries along every axis, as a dense copy in the memory format of the whole."""
    corner: Tensor = _FirstEntries.apply(tensor, tuple(sizes))
    return corner


class _FirstEntries(torch.autograd.Function):
    """Cuts all axes at once and writes the gradient once; autograd would pad it axis by axis."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(tensor)
        return _corner(tensor, sizes).clone(memory_format=_format(tensor))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (tensor,) = ctx.saved_tensors
        whole = torch.zeros_like(tensor)
        _corner(whole, gradient.shape).copy_(gradient)
        return whole, None


def _corner(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    for axis, size in enumerate(sizes):
        if size < tensor.shape[axis]:
            tensor = tensor.narrow(axis, 0, size)
    return tensor


def _format(tensor: Tensor) -> torch.memory_format:
    is_channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_channels_last else torch.contiguous_format


def map_channels(features: Tensor, matrix: Tensor, offset: Tensor | None = None) -> Tensor:
    """A linear map along the channels of a feature map of any rank: a convolution with a kernel of one position.

    Args:
        features: [batch, channels, ...].
        matrix: [outputs, channels].
        offset: Added to every output [outputs].

    Returns:
        [batch, outputs, ...].
    """
    if features.dim() == 2:
        return F.linear(features, matrix, offset)
    rank = features.dim() - 2
    ones, zeros = [1] * rank, [0] * rank
    return torch.convolution(features, matrix.view(*matrix.shape, *ones), offset, ones, zeros, ones, False, zeros, 1)


def use_channels_last(network: nn.Module) -> None:
    """Lays out the weights of 2-D convolutions channels last; the feature maps follow."""
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def use_channels_last_if_suited(network: nn.Module, example: Any) -> bool:
    """Lays out the weights channels last if that suits the network.

    Args:
        network: The network, in the mode that it is to run in.
        example: Its inputs, on the same device.

    Returns:
        Whether it did.
    """
    is_suited = suits_channels_last(network, example)
    if is_suited:
        use_channels_last(network)
    return is_suited


def suits_channels_last(network: nn.Module, example: Any) -> bool:
    """Whether a network has 2-D convolutions, and its forward and backward run with channels last.

    A forward with `view` may fail, since its entries are no longer neighbours in memory.

    Args:
        network: The network, in the mode that it is to run in; untouched.
        example: Its inputs, on the same device.
    """
    if not any(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in network.modules()):
        return False
    trial = copied(network)
    use_channels_last(trial)
    try:
        devices = [tensor.device for tensor in tensors_in(example) if tensor.is_cuda]
        with torch.random.fork_rng(devices=devices), SoundConvolutions():
            outputs = called(trial, joined([example, example]))
            learned = [tensor.float().sum() for tensor in tensors_in(outputs) if tensor.requires_grad]
            if learned:
                torch.stack(learned).sum().backward()
    except (RuntimeError, ValueError):
        return False
    return True


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
