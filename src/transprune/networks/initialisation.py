"""Weights before any training."""

from __future__ import annotations

from torch import nn


def initialise(model: nn.Module) -> None:
    """Draws new weights for a network of our own making, in place.

    Convolutions: Kaiming normal over the fan-out; linear layers: N(0, 0.01) and zero biases; batch norms: one and
    zero; any other module with parameters by its own `reset_parameters`. Parameters of modules that have none keep
    their values.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
