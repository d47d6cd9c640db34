"""Exchanging modules of a network by path."""

from __future__ import annotations

from torch import nn

from transprune.errors import SpaceError


def get_module(network: nn.Module, path: str) -> nn.Module:
    """The module at a path.

    Raises:
        SpaceError: There is none.
    """
    try:
        return network.get_submodule(path)
    except AttributeError as error:
        raise SpaceError(
            f"cannot use this search space for {type(network).__name__}: it has no module {path!r}; "
            f"expected the space that `inspect` reads from this very network"
        ) from error


def put_module(network: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module in the place of the one at a path; the path keeps its order among its siblings."""
    parent, _, name = path.rpartition(".")
    network.get_submodule(parent).register_module(name, module)
