"""Networks inside what prepares them for several devices or makes them faster."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

INNER = ("_orig_mod", "_forward_module")
"""Where `torch.compile` and Lightning Fabric keep the network that they were given."""

REPLACED = "_original_forward"
"""Where accelerate keeps the forward of a network that it gave another one."""


def unwrapped(network: nn.Module) -> nn.Module:
    """The plain network inside others; one that is plain as it is.

    Known are `DataParallel`, `DistributedDataParallel` (also as accelerate prepares it), and those of Lightning Fabric
    and `torch.compile`. Its parameters are the same tensors, under the names without a prefix such as `module.`. Where
    accelerate gave it another forward, for mixed precision, it is a shallow copy with its own.
    """
    while True:
        inner = network.module if isinstance(network, DataParallel | DistributedDataParallel) else None
        for name in INNER:
            inner = inner or network._modules.get(name)
        if not isinstance(inner, nn.Module):
            return _with_own_forward(network) if REPLACED in vars(network) else network
        network = inner


def _with_own_forward(network: nn.Module) -> nn.Module:
    own = copy.copy(network)
    for name in ("forward", REPLACED):
        vars(own).pop(name, None)
    return own
