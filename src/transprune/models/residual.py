"""Parts of our networks that torch lacks: a residual sum whose sides may differ in width, and initial weights."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


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


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Draws new weights for a network, in place.

    Convolutions: Kaiming normal over the fan-out. Linear layers: normal with standard deviation 0.01. Biases of both:
    zero. Other modules: their own `reset_parameters` (attention: `_reset_parameters`); parameters of modules without
    either keep their values. Weights that parametrizations or hooks compute are drawn as well: what they are computed
    from is set so that they come out as drawn, or as near to it as their form allows.
    """
    with parametrize.cached():  # so that a computed weight is one tensor, into which is drawn
        for module in model.modules():
            computed = {name: getattr(module, name) for name in _computed(module)}
            before = {name: tensor._version for name, tensor in computed.items()}
            _draw(module)
            for name, tensor in computed.items():
                if tensor._version != before[name]:
                    _put_behind(module, name, tensor)


def _draw(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    else:
        for name in ("reset_parameters", "_reset_parameters"):
            if callable(reset := getattr(module, name, None)):
                reset()
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _computed(module: nn.Module) -> list[str]:
    """The tensors of a module that are computed from parameters, by a parametrization or by a hook."""
    if parametrize.is_parametrized(module):
        return list(cast(nn.ModuleDict, module.parametrizations))
    names = [name.removesuffix("_orig").removesuffix("_v") for name in module._parameters]
    return [name for name in names if isinstance(vars(module).get(name), Tensor)]


def _put_behind(module: nn.Module, name: str, value: Tensor) -> None:
    """Sets what a tensor is computed from, so that it comes out as the value."""
    if parametrize.is_parametrized(module, name):
        try:
            setattr(module, name, value)
        except Exception:  # a parametrization of one's own need not have a `right_inverse`, or one for any value
            originals = cast(nn.ModuleDict, module.parametrizations)[name].parameters(recurse=False)
            for original in originals:
                if original.shape == value.shape:
                    original.copy_(value)
    elif isinstance(length := getattr(module, f"{name}_g", None), nn.Parameter):  # the old form of weight_norm
        cast(Tensor, getattr(module, f"{name}_v")).copy_(value)
        along = [axis for axis, size in enumerate(length.shape) if size == 1] or None
        length.copy_(torch.linalg.vector_norm(value, dim=along, keepdim=length.dim() > 0).view_as(length))
    else:  # the old form of spectral_norm, and masks
        cast(Tensor, getattr(module, f"{name}_orig")).copy_(value)
