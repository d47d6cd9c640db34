"""Exchanging modules of a network by path."""

from __future__ import annotations

from torch import nn


def put_module(network: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module in the place of the one at a path; the path keeps its order among its siblings."""
    parent, _, name = path.rpartition(".")
    network.get_submodule(parent).register_module(name, module)
