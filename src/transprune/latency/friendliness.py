"""How much of a network's work is done at widths that suit the hardware."""

from __future__ import annotations

from dataclasses import dataclass

from transprune.architecture import Architecture
from transprune.layer_costs import Channels
from transprune.space import SearchSpace

MULTIPLE = 8
"""Kernels take this many channels at a time, or a multiple or half of it; others are filled up or run slower code."""


@dataclass(frozen=True, kw_only=True)
class Friendliness:
    """The layers of an architecture whose chosen widths are no multiples of a number."""

    multiple_of: int
    layers: int
    """How many layers there are: those kept that cost MACs."""
    unfriendly: tuple[str, ...]
    """Paths of those whose input or output was chosen and is no multiple."""
    share_of_macs: float
    """Their share of all MACs."""


def friendliness(space: SearchSpace, architecture: Architecture, *, multiple: int = MULTIPLE) -> Friendliness:
    """Which layers read or write a chosen number of channels that is no multiple of `multiple`.

    Numbers that no choice decides, such as the channels of an image or the classes, do not count.
    """
    macs: dict[str, int] = {}
    unfriendly = set()
    for layer in space.layers:
        if not space.is_kept(layer.name, architecture):
            continue
        ends = layer.inputs, layer.outputs
        cost = layer.macs(*(space.resolve(end, architecture) for end in ends))
        if cost:
            macs[layer.name] = macs.get(layer.name, 0) + cost
            if any(_is_odd(space, end, architecture, multiple) for end in ends):
                unfriendly.add(layer.name)
    share = sum(macs[name] for name in unfriendly) / sum(macs.values()) if macs else 0.0
    named = tuple(name for name in macs if name in unfriendly)
    return Friendliness(multiple_of=multiple, layers=len(macs), unfriendly=named, share_of_macs=share)


def _is_odd(space: SearchSpace, channels: Channels, architecture: Architecture, multiple: int) -> bool:
    return bool(channels.sources) and space.resolve(channels, architecture) % multiple != 0
