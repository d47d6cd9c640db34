"""Bringing feature maps of different widths to one width, so that they can be mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Alignment = Literal["interpolate", "pad"]
ALIGNMENTS: tuple[Alignment, ...] = ("interpolate", "pad")


@lru_cache(maxsize=4096)
def _interpolation_matrix(source: int, target: int) -> np.ndarray:
    rows, columns = np.arange(target)[:, None], np.arange(source)
    first, last = rows * source // target, -((rows + 1) * source // -target)
    covers: np.ndarray = (columns >= first) & (columns < last)
    means: np.ndarray = covers / covers.sum(1, keepdims=True)
    return means


def interpolation_matrix(source: int, target: int, *, like: Tensor) -> Tensor:
    """Channel-wise interpolation as a matrix [target, source], in the type and on the device of `like`.

    Output channel j is the mean of the input channels from ⌊j·source/target⌋ to ⌈(j+1)·source/target⌉ − 1, which is
    adaptive average pooling along the channels.

    Source: Dong & Yang, 2019, arXiv:1905.09717, section 3.1 (CWI).

    Example:
        >>> (interpolation_matrix(2, 3, like=torch.zeros(1)) @ torch.tensor([0.0, 1.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    return torch.tensor(_interpolation_matrix(source, target), dtype=like.dtype, device=like.device)


def align_channels(features: Tensor, width: int, alignment: Alignment) -> Tensor:
    """Widens a feature map [batch, channels, ...] to `width` channels.

    Args:
        features: At most `width` channels.
        width: Channels of the result.
        alignment: `interpolate` stretches the channels over the new width; `pad` keeps channel i as channel i and
            appends zeros.
    """
    channels = features.shape[1]
    if channels == width:
        return features
    if alignment == "pad":
        return pad_channels(features, width)
    return map_channels(features, interpolation_matrix(channels, width, like=features))


def map_channels(features: Tensor, matrix: Tensor, offset: Tensor | None = None) -> Tensor:
    """A linear map along the channels of a feature map of any rank: a convolution with a kernel of one position.

    Args:
        features: [batch, channels, ...].
        matrix: [outputs, channels].
        offset: Added to every output [outputs].

    Returns:
        [batch, outputs, ...].
    """
    if features.dim() == 2:
        return F.linear(features, matrix, offset)
    rank = features.dim() - 2
    ones, zeros = [1] * rank, [0] * rank
    return torch.convolution(features, matrix.view(*matrix.shape, *ones), offset, ones, zeros, ones, False, zeros, 1)


def pad_channels(features: Tensor, width: int) -> Tensor:
    """Appends channels of zeros to a feature map [batch, channels, ...] up to `width` channels."""
    missing = width - features.shape[1]
    return F.pad(features, [0, 0] * (features.dim() - 2) + [0, missing]) if missing else features


def add_padded(one: Tensor, other: Tensor) -> Tensor:
    """The sum of two feature maps [batch, channels, ...], the narrower one padded by channels of zeros."""
    if one.shape[1] == other.shape[1]:
        return one + other
    wide, narrow = (one, other) if one.shape[1] > other.shape[1] else (other, one)
    total: Tensor = _AddToFirstChannels.apply(wide, narrow)
    return total


class _AddToFirstChannels(torch.autograd.Function):
    """The sum as one copy and one addition in place, and no copy backward; padding would write the zeros and read them."""

    @staticmethod
    def forward(ctx: Any, wide: Tensor, narrow: Tensor) -> Tensor:
        ctx.narrow = narrow.shape[1]
        total = wide.clone()
        total[:, : ctx.narrow] += narrow
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient[:, : ctx.narrow]


def weighted_sum(features: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Σ_k weights_k · features_k of feature maps of one shape."""
    total: Tensor = _WeightedSum.apply(weights, *features)
    return total


class _WeightedSum(torch.autograd.Function):
    """Without the products that autograd would store and add up, and in the memory format of the features."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *features: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *features)
        total = weights[0] * features[0]
        for weight, each in zip(weights[1:], features[1:], strict=True):
            total.addcmul_(each, weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, *features = ctx.saved_tensors
        gradient = torch.empty_like(features[0]).copy_(gradient)
        of_weights = None
        if ctx.needs_input_grad[0]:
            of_weights = torch.stack([(gradient * each).sum() for each in features])
        return of_weights, *(gradient * weight for weight in weights)


def mixing_matrix(
    widths: Sequence[int],
    weights: Tensor,
    scales: Tensor | None,
    alignment: Alignment,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """The linear map that mixes prefixes of one feature map: Σ_k weights_k · align(scale_k ⊙ prefix of widths_k).

    Args:
        widths: Width of each prefix [samples]; the widest decides the size of the result.
        weights: Mixing weights [samples].
        scales: Rows of a factor for every channel [rows, at least the widest]; None: ones.
        alignment: How a narrower prefix reaches the widest.
        rows: Which row of the scales belongs to each prefix [samples]; None: the first to the first, and so on.

    Returns:
        For `interpolate` the matrix [widest, widest]; for `pad` its diagonal [widest], since channels stay apart.
    """
    if alignment == "pad":
        return mix_vectors(widths, weights, scales, alignment, rows)
    entries = _entries_for(widths, weights, scales, alignment, rows)
    widest = max(widths)
    return entries.sums(entries.places, weights, scales, widest * widest).view(widest, widest)


def mix_vectors(
    widths: Sequence[int],
    weights: Tensor,
    vectors: Tensor | None,
    alignment: Alignment,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """A number for each channel, mixed [widest]: Σ_k weights_k · align(prefix of vector_k); arguments as above."""
    entries = _entries_for(widths, weights, vectors, alignment, rows)
    return entries.sums(entries.targets, weights, vectors, max(widths))


@dataclass(frozen=True)
class _Entries:
    """The entries of the alignment of several prefixes that are not zero: at most two for every output channel."""

    samples: Tensor
    """The prefix that each belongs to."""
    sources: Tensor
    """Where the factor of the channel that is read stands in the flattened scales."""
    targets: Tensor
    """The channel that is written."""
    places: Tensor
    """Where they stand in the flattened matrix."""
    shares: Tensor

    def sums(self, places: Tensor, weights: Tensor, scales: Tensor | None, size: int) -> Tensor:
        """The entries, weighted and scaled, added up at their places."""
        values = self.shares * weights.index_select(0, self.samples)
        if scales is not None:
            values = values * scales.flatten().index_select(0, self.sources)
        return values.new_zeros(size).index_add(0, places, values)


def _entries_for(
    widths: Sequence[int],
    weights: Tensor,
    scales: Tensor | None,
    alignment: Alignment,
    rows: Sequence[int] | None,
) -> _Entries:
    columns = max(widths) if scales is None else scales.shape[1]
    rows = range(len(widths)) if rows is None else rows
    return _entries(tuple(widths), tuple(rows), columns, alignment, weights.dtype, weights.device)


@lru_cache(maxsize=4096)
def _entries(
    widths: tuple[int, ...],
    rows: tuple[int, ...],
    columns: int,
    alignment: Alignment,
    dtype: torch.dtype,
    device: torch.device,
) -> _Entries:
    widest, found = max(widths), []
    for sample, (width, row) in enumerate(zip(widths, rows, strict=True)):
        matrix = _interpolation_matrix(width, widest) if alignment == "interpolate" else np.eye(width)
        target, source = matrix.nonzero()
        found.append(
            (
                np.full_like(source, sample),
                row * columns + source,
                target,
                target * widest + source,
                matrix[target, source],
            )
        )
    *places, shares = (np.concatenate(each) for each in zip(*found, strict=True))
    with torch.inference_mode(False):  # they are used again in training
        return _Entries(*(torch.from_numpy(each).to(device) for each in places), torch.from_numpy(shares).to(device, dtype))
