"""Mixing the candidates in use: the map that stands for aligning every candidate to the widest and adding them.

The candidates of a group are prefixes of one set of channels, so that mixing them is linear. Along an axis that is made
up of several groups, each group's part is mixed by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from transprune.analysis.layouts import Concatenation, Group, Layout, Product, Sizes
from transprune.networks.selection import Choice, Selection
from transprune.numerics.alignment import Alignment, mix_vectors, mixing_matrix


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
            return mix_choice(selection.widths[name], alignment)
        case Concatenation(parts):
            return _joined([mixing(part, selection, sizes, alignment, like) for part in parts])
        case Product(factors):
            return _multiplied([mixing(factor, selection, sizes, alignment, like) for factor in factors])
    return torch.ones(layout.size(sizes), dtype=like.dtype, device=like.device)


def mix_choice(choice: Choice, alignment: Alignment, scales: Tensor | None = None) -> Tensor:
    """The map that mixes the candidates of one group, each scaled on its own if asked for.

    Args:
        choice: The candidates in use.
        alignment: How narrower candidates reach the widest.
        scales: A factor for every channel [candidates, width], or the same for all candidates [width].
    """
    is_diagonal = alignment == "pad" or len(choice.sizes) == 1
    return mixing_matrix(
        choice.sizes, choice.weights, *_of_candidates(choice, scales, "pad" if is_diagonal else "interpolate")
    )


def mix_shifts(choice: Choice, alignment: Alignment, shifts: Tensor) -> Tensor:
    """What is added to each channel when the candidates are mixed [widest]; arguments as above."""
    return mix_vectors(choice.sizes, choice.weights, *_of_candidates(choice, shifts, alignment))


def _of_candidates(
    choice: Choice, rows: Tensor | None, alignment: Alignment
) -> tuple[Tensor | None, Alignment, tuple[int, ...] | None]:
    if rows is None:
        return None, alignment, None
    return (rows, alignment, choice.indices) if rows.dim() == 2 else (rows[None], alignment, (0,) * len(choice.sizes))


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


def mix_along(tensor: Tensor, mixed: Tensor, axis: int) -> Tensor:
    """A tensor whose entries along an axis are mixed."""
    if mixed.dim() == 1:
        return tensor * mixed.view(-1, *[1] * (tensor.dim() - 1 - axis))
    if axis == 1 and tensor.dim() == 4:
        return F.conv2d(tensor, mixed[:, :, None, None])
    if axis == 0:
        return (mixed @ tensor.flatten(1)).view_as(tensor) if tensor.dim() > 1 else mixed @ tensor
    moved: Tensor = F.linear(tensor.movedim(axis, -1), mixed).movedim(-1, axis)
    return moved
