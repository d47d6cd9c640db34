"""Parts of our networks that torch lacks: a residual sum whose sides may differ in width, and initial weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


class ResidualSum(nn.Module):
    """Adds a block's output to its input, through a shortcut.

    In the paper, every convolution of a residual block has its own width, even the last. The sides of a plain `a + b`
    must have equal widths. The sides of this module may differ: shrinking then puts a 1×1 projection into `shortcut`.
    Use it in your own networks to give their residual blocks the same freedom.

    Source: Dong & Yang, 2019, arXiv:1905.09717, section 3.2.

    Args:
        shortcut: The module on the shortcut; None: the identity.
        has_norm: Whether a projection that shrinking adds ends in a batch norm.
    """

    def __init__(self, shortcut: nn.Module | None = None, *, has_norm: bool = True) -> None:
        super().__init__()
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.has_norm = has_norm

    def forward(self, main: Tensor, inputs: Tensor) -> Tensor:
        """The sum of the block's output and, after the shortcut, its input, both [batch, channels, ...]."""
        total: Tensor = main + self.shortcut(inputs)
        return total


def projection(inputs: int, outputs: int, *, has_norm: bool, stride: int = 1) -> nn.Sequential:
    """A 1×1 convolution that brings a shortcut to another width, with an optional batch norm."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)]
    if has_norm:
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers)


def initialise(model: nn.Module) -> None:
    """Draws new weights for a network, in place.

    Convolutions: Kaiming normal over the fan-out. Linear layers: normal with standard deviation 0.01. Biases of both:
    zero. Other modules: their own `reset_parameters` (attention: `_reset_parameters`); parameters of modules without
    either keep their values.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _draw(module, partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"))
        elif isinstance(module, nn.Linear):
            _draw(module, partial(nn.init.normal_, std=0.01))
        else:
            for name in ("reset_parameters", "_reset_parameters"):
                if callable(reset := getattr(module, name, None)):
                    reset()
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def _draw(module: nn.Conv2d | nn.Linear, draw: Callable[[Tensor], Tensor]) -> None:
    """Draws a weight in place, through what it is computed from if a parametrization or a hook computes it."""
    if is_parametrized(module, "weight"):
        module.weight = draw(torch.empty_like(module.weight))
    elif isinstance(module.weight, nn.Parameter):
        draw(module.weight)
    elif isinstance(length := getattr(module, "weight_g", None), nn.Parameter):  # the old form of weight_norm
        direction = draw(cast(Tensor, module.weight_v))
        along = [axis for axis, size in enumerate(length.shape) if size == 1] or None
        length.copy_(torch.linalg.vector_norm(direction, dim=along, keepdim=length.dim() > 0).view_as(length))
    elif isinstance(module.weight_orig, nn.Parameter):  # the old form of spectral_norm, and masks
        draw(module.weight_orig)
