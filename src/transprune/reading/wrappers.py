"""Networks inside what prepares them for several devices or makes them faster."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from transprune.errors import ModelError

INNER = ("_orig_mod", "_forward_module")
"""Where `torch.compile` and Lightning Fabric keep the network that they were given."""

REPLACED = "_original_forward"
"""Where accelerate keeps the forward of a network that it gave another one."""


def unwrapped(network: nn.Module) -> nn.Module:
    """The plain network inside others; one that is plain as it is.

    Known are `DataParallel`, `DistributedDataParallel` (also as accelerate prepares it), and those of Lightning Fabric
    and `torch.compile`. Its parameters are the same tensors, under the names without a prefix such as `module.`. Where
    accelerate gave it another forward, for mixed precision, it is a shallow copy with its own.

    Raises:
        ModelError: It cannot be copied.
    """
    _check_copyable(network)
    while True:
        inner = network.module if isinstance(network, DataParallel | DistributedDataParallel) else None
        for name in INNER:
            inner = inner or network._modules.get(name)
        if not isinstance(inner, nn.Module):
            return _with_own_forward(network) if REPLACED in vars(network) else network
        network = inner


def _check_copyable(network: nn.Module) -> None:
    """Checks that nothing in a network keeps it from being copied.

    Raises:
        ModelError: It was compiled by `torch.jit`, or keeps tensors that were computed from others.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise ModelError(
            f"cannot use the {type(network).__name__}: torch.jit has compiled it, so it cannot be read or cut; "
            "expected the nn.Module that it was made from"
        )
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                raise ModelError(
                    f"cannot copy the network: '{f'{path}.{name}'.removeprefix('.')}' is no parameter but a tensor "
                    "with a history, computed from others; expected a network without: take old forms of weight_norm "
                    "and spectral_norm off (torch.nn.utils.remove_weight_norm) or use those of "
                    "torch.nn.utils.parametrizations, take masks off (torch.nn.utils.prune.remove), and detach what a "
                    "forward keeps"
                )


def _with_own_forward(network: nn.Module) -> nn.Module:
    own = copy.copy(network)
    for name in ("forward", REPLACED):
        vars(own).pop(name, None)
    return own
