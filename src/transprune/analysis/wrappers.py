"""Networks inside what prepares them for several devices or makes them faster."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

INNER = ("_orig_mod", "_forward_module")
"""Where `torch.compile` and Lightning Fabric keep the network that they were given."""


def unwrapped(network: nn.Module) -> nn.Module:
    """The plain network inside others; one that is plain as it is.

    Known are `DataParallel`, `DistributedDataParallel` (also as accelerate prepares it), and those of Lightning Fabric
    and `torch.compile`. Its parameters are the same tensors, under the names without a prefix such as `module.`.
    """
    while True:
        inner = network.module if isinstance(network, DataParallel | DistributedDataParallel) else None
        for name in INNER:
            inner = inner or network._modules.get(name)
        if not isinstance(inner, nn.Module):
            return network
        network = inner
