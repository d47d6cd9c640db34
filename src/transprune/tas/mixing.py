"""Mixing the candidates in use (align each to the widest, weight, add) as one linear map.

The candidates of a group are prefixes of one set of channels, and alignment is linear: channel-wise interpolation, or
zeros. So instead of mixing feature maps, as `reference.SlowSupernet.mix` does, a supernet mixes the *maps* that would
be applied to them: small matrices, or vectors where alignment leaves channels in place. For example, with `pad` and
widths 2 and 4 at weights 0.3 and 0.7, channels 0 and 1 are multiplied by 0.3 + 0.7, channels 2 and 3 by 0.7.

A network needs many such maps at every step, all sparse; `mixed` builds them all with the same few operations. Along an
axis made up of several groups, `map_along` mixes each group's part separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from transprune.kernels.feature_maps import map_channels
from transprune.options import Alignment
from transprune.reading.axes import Concatenation, Product
from transprune.reading.layouts import Group, Layout, Sizes, size_of
from transprune.runtime.structures import on_device
from transprune.tas.sampling import Drawn, Selection


@lru_cache(maxsize=4096)
def _interpolation_matrix(source: int, target: int) -> np.ndarray:
    rows, columns = np.arange(target)[:, None], np.arange(source)
    first, last = rows * source // target, -((rows + 1) * source // -target)
    covers: np.ndarray = (columns >= first) & (columns < last)
    means: np.ndarray = covers / covers.sum(1, keepdims=True)
    return means


def interpolation_entries(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nonzero entries of `interpolation_matrix`: rows, columns and values."""
    matrix = _interpolation_matrix(source, target)
    rows, columns = matrix.nonzero()
    return rows, columns, matrix[rows, columns]


def interpolation_matrix(source: int, target: int, *, like: Tensor) -> Tensor:
    """Channel-wise interpolation as a matrix [target, source], in the type and on the device of `like`.

    Output channel j is the mean of the input channels from ⌊j·source/target⌋ to ⌈(j+1)·source/target⌉ − 1: adaptive
    average pooling along the channels.

    Source: Dong & Yang, 2019, arXiv:1905.09717, section 3.1 (CWI).

    Example:
        >>> (interpolation_matrix(2, 3, like=torch.zeros(1)) @ torch.tensor([0.0, 1.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    shared = torch.from_numpy(_interpolation_matrix(source, target))
    matrix: Tensor = on_device(shared.to(like.dtype, copy=True), like.device)
    return matrix


def align_channels(features: Tensor, width: int, alignment: Alignment) -> Tensor:
    """Widens a feature map [batch, channels, ...] to `width` channels.

    Args:
        features: At most `width` channels.
        width: Channels of the result.
        alignment: `interpolate` stretches the channels over the new width; `pad` keeps every channel where it is
            and appends zeros.
    """
    channels = features.shape[1]
    if channels == width:
        return features
    if alignment == "pad":
        return pad_channels(features, width)
    return map_channels(features, interpolation_matrix(channels, width, like=features))


def pad_channels(features: Tensor, width: int) -> Tensor:
    """Appends channels of zeros to a feature map [batch, channels, ...] up to `width` channels."""
    missing = width - features.shape[1]
    return F.pad(features, [0, 0] * (features.dim() - 2) + [0, missing]) if missing else features


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The map x ↦ Σ_k weights_k · align(factors_k ⊙ first widths_k channels of x)."""

    widths: tuple[int, ...]
    """Width of each prefix [samples]; the result has the widest."""
    weights: Tensor
    """Mixing weights [samples]."""
    alignment: Alignment
    """How narrower prefixes are aligned to the widest."""
    factors: Tensor | None = None
    """A factor for each channel [rows, at least the widest], such as the scales of a batch norm; None: ones."""
    rows: tuple[int, ...] | None = None
    """The row of `factors` for each prefix [samples]; None: row k for prefix k."""
    is_applied: bool = False
    """True for the shifts of a batch norm: the result is the mixed vector of factors [widest], which is the map applied
    to ones. Otherwise the result is the map: a matrix [widest, widest] for `interpolate`, its diagonal [widest] for
    `pad`, where channels never mix."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        widest = max(self.widths)
        return (widest,) if self.is_applied or self.alignment == "pad" else (widest, widest)

    @property
    def entries(self) -> _Entries:
        """The nonzero entries of the result."""
        rows = tuple(range(len(self.widths))) if self.rows is None else self.rows
        columns = max(self.widths) if self.factors is None else self.factors.shape[1]
        return _entries(self.widths, rows, columns, self.alignment, len(self.shape))


@dataclass(frozen=True)
class _Entries:
    """The nonzero entries of a mixture [entries]; entries at the same place add up."""

    samples: np.ndarray
    """The prefix that each entry comes from."""
    sources: np.ndarray
    """The index of its factor in the flattened factors."""
    places: np.ndarray
    """Its index in the flattened result."""
    shares: np.ndarray
    """Its value before multiplication by the weight and the factor."""


@lru_cache(maxsize=4096)
def _entries(widths: tuple[int, ...], rows: tuple[int, ...], columns: int, alignment: Alignment, rank: int) -> _Entries:
    widest, found = max(widths), []
    for sample, (width, row) in enumerate(zip(widths, rows, strict=True)):
        own = np.arange(width)
        targets, sources, shares = (
            interpolation_entries(width, widest) if alignment == "interpolate" else (own, own, np.ones(width))
        )
        places = targets if rank == 1 else targets * widest + sources
        found.append((np.full_like(sources, sample), row * columns + sources, places, shares))
    return _Entries(*map(np.concatenate, zip(*found, strict=True)))


def mixed(mixtures: Sequence[Mixture]) -> list[Tensor]:
    """The results of several mixtures, computed together."""
    weights = torch.cat([each.weights for each in mixtures])
    factors = [each.factors if each.factors is not None else _ones_for(each) for each in mixtures]
    entries, sizes = [each.entries for each in mixtures], [prod(each.shape) for each in mixtures]
    constants = (
        _indices_into_all([each.samples for each in entries], [len(each.widths) for each in mixtures]),
        _indices_into_all([each.sources for each in entries], [each.numel() for each in factors]),
        _indices_into_all([each.places for each in entries], sizes),
        torch.from_numpy(np.concatenate([each.shares for each in entries])).to(weights.dtype),
    )
    # From pageable memory, CUDA copies more than 64 KiB synchronously.
    ready = (each.pin_memory() if weights.is_cuda else each for each in constants)
    samples, sources, places, shares = (on_device(each, weights.device) for each in ready)
    values = shares * weights.index_select(0, samples)
    values = values * torch.cat([each.flatten() for each in factors]).index_select(0, sources)
    sums = values.new_zeros(sum(sizes)).index_add(0, places, values)
    return [part.view(each.shape) for part, each in zip(sums.split(sizes), mixtures, strict=True)]


def _ones_for(mixture: Mixture) -> Tensor:
    rows = len(mixture.widths) if mixture.rows is None else max(mixture.rows) + 1
    return mixture.weights.new_ones(rows, max(mixture.widths))


def _indices_into_all(indices: list[np.ndarray], sizes: list[int]) -> Tensor:
    """Indices into arrays of the given sizes, shifted to index their concatenation."""
    starts = np.cumsum([0, *sizes[:-1]])
    return torch.from_numpy(np.concatenate([each + start for each, start in zip(indices, starts, strict=True)]))


def map_along(layout: Layout, selection: Selection, sizes: Sizes, alignment: Alignment, like: Tensor) -> Tensor:
    """The map that mixes the candidates in use along an axis.

    Args:
        layout: Which groups make up the axis.
        selection: The candidates in use.
        sizes: The widest of them.
        alignment: How narrower candidates are aligned to the widest.
        like: Gives the dtype and device of the result.

    Returns:
        A matrix [entries, entries], or its diagonal [entries] if the map is diagonal.
    """
    match layout:
        case Group(name, _) if name in selection.widths:
            return mixed([mixture_of(selection.widths[name], alignment)])[0].to(like)
        case Concatenation(parts):
            return _joined([map_along(part, selection, sizes, alignment, like) for part in parts])
        case Product(factors):
            return _multiplied([map_along(factor, selection, sizes, alignment, like) for factor in factors])
    return torch.ones(size_of(layout, sizes), dtype=like.dtype, device=like.device)


def mixture_of(
    choice: Drawn, alignment: Alignment, factors: Tensor | None = None, *, is_applied: bool = False
) -> Mixture:
    """The mixture of the candidates of one group.

    Args:
        choice: The candidates in use.
        alignment: How narrower candidates are aligned to the widest.
        factors: A factor for each channel, per candidate [candidates, width] or shared by all [width].
        is_applied: As `Mixture.is_applied`.
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
    """Applies a map, given as a matrix or its diagonal, along one axis of a tensor."""
    if matrix.dim() == 1:
        return tensor * matrix.view(-1, *[1] * (tensor.dim() - 1 - axis))
    if axis == 1 and tensor.dim() == 4:
        return F.conv2d(tensor, matrix[:, :, None, None])
    if axis == 0:
        return (matrix @ tensor.flatten(1)).view_as(tensor) if tensor.dim() > 1 else matrix @ tensor
    moved: Tensor = F.linear(tensor.movedim(axis, -1), matrix).movedim(-1, axis)
    return moved
