"""Weights before any training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


def initialise(model: nn.Module) -> None:
    """Draws new weights for a network, in place.

    Convolutions: Kaiming normal over the fan-out; linear layers: N(0, 0.01) and zero biases; batch norms: one and
    zero; any other module with parameters by its own `reset_parameters` (`_reset_parameters` of attention).
    Parameters of modules that have none keep their values.
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
    """Draws a weight in place, through its parametrization if it has one."""
    if is_parametrized(module, "weight"):
        module.weight = draw(torch.empty_like(module.weight))
    else:
        draw(module.weight)
