"""Layouts of weights in memory: channels last is faster for convolutions, but not every forward can read it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from transprune.runtime.structures import tensors_in


def use_channels_last(network: nn.Module) -> None:
    """Lays out the weights of 2-D convolutions channels last; the feature maps follow."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def use_channels_last_if_suited(network: nn.Module, example: tuple[Tensor, ...]) -> bool:
    """Lays out the weights channels last if the network runs faster then, and can.

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


def suits_channels_last(network: nn.Module, example: tuple[Tensor, ...]) -> bool:
    """Whether a network has 2-D convolutions, and runs channels last: its forward, and its backward if it learns.

    A forward with `view` may not: it wants neighbours in memory where there are none.

    Args:
        network: The network, in the mode that it is to run in; untouched.
        example: Its inputs, on the same device.
    """
    if not any(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in network.modules()):
        return False
    trial = copy.deepcopy(network)
    use_channels_last(trial)
    try:
        with torch.random.fork_rng(devices=[tensor.device for tensor in example if tensor.is_cuda]):
            outputs = trial(*(torch.cat([tensor, tensor]) for tensor in example))
            learned = [tensor.float().sum() for tensor in tensors_in(outputs) if tensor.requires_grad]
            if learned:
                torch.stack(learned).sum().backward()
    except (RuntimeError, ValueError):
        return False
    return True
