"""Mixing the candidates in use: the map that stands for aligning every candidate to the widest and adding them.

The candidates of a group are prefixes of one set of channels, so that mixing them is linear. Along an axis that is made
up of several groups, each group's part is mixed by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from transprune.options import Alignment
from transprune.reading.layouts import Concatenation, Group, Layout, Product, Sizes
from transprune.tas.mixtures import Mixture, mixed
from transprune.tas.selection import Choice, Selection


def mixing(layout: Layout, selection: Selection, sizes: Sizes, alignment: Alignment, like: Tensor) -> Tensor:
    """The map that mixes the candidates along an axis.

    Args:
        layout: What the axis is made up of.
        selection: The candidates in use.
        sizes: The widest of them.
        alignment: How narrower candidates reach the widest.
        like: Gives type and device.

    Returns:
        A matrix [entries, entries], or its diagonal [entries] where that is all.
    """
    match layout:
        case Group(name, _) if name in selection.widths:
            return mixed([mixture_of(selection.widths[name], alignment)])[0].to(like)
        case Concatenation(parts):
            return _joined([mixing(part, selection, sizes, alignment, like) for part in parts])
        case Product(factors):
            return _multiplied([mixing(factor, selection, sizes, alignment, like) for factor in factors])
    return torch.ones(layout.size(sizes), dtype=like.dtype, device=like.device)


def mixture_of(
    choice: Choice, alignment: Alignment, factors: Tensor | None = None, *, is_applied: bool = False
) -> Mixture:
    """The mixture of the candidates of one group.

    Args:
        choice: The candidates in use.
        alignment: How narrower candidates reach the widest.
        factors: A factor for every channel of every candidate [candidates, width], or the same for all [width].
        is_applied: Whether the factors themselves are mixed, rather than channels that they scale.
    """
    rows = None
    if factors is not None:
        rows = choice.indices if factors.dim() == 2 else (0,) * len(choice.sizes)
        factors = factors if factors.dim() == 2 else factors[None]
    return Mixture(
        widths=choice.sizes,
        weights=choice.weights,
        alignment="pad" if len(choice.sizes) == 1 else alignment,
        factors=factors,
        rows=rows,
        is_applied=is_applied,
    )


def _joined(maps: list[Tensor]) -> Tensor:
    if all(each.dim() == 1 for each in maps):
        return torch.cat(maps)
    joined: Tensor = torch.block_diag(*[torch.diag(each) if each.dim() == 1 else each for each in maps])
    return joined


def _multiplied(maps: list[Tensor]) -> Tensor:
    total = maps[0]
    for each in maps[1:]:
        if total.dim() == each.dim():
            total = torch.kron(total, each)
        else:
            pair = [torch.diag(one) if one.dim() == 1 else one for one in (total, each)]
            total = torch.kron(*pair)
    return total


def mix_along(tensor: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """A tensor whose entries along an axis are mixed."""
    if matrix.dim() == 1:
        return tensor * matrix.view(-1, *[1] * (tensor.dim() - 1 - axis))
    if axis == 1 and tensor.dim() == 4:
        return F.conv2d(tensor, matrix[:, :, None, None])
    if axis == 0:
        return (matrix @ tensor.flatten(1)).view_as(tensor) if tensor.dim() > 1 else matrix @ tensor
    moved: Tensor = F.linear(tensor.movedim(axis, -1), matrix).movedim(-1, axis)
    return moved
