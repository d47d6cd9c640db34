"""Bringing feature maps of different widths to one width, so that they can be mixed."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor
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
    matrix = interpolation_matrix(channels, width, like=features)
    return torch.einsum("tc,bc...->bt...", matrix, features)


def pad_channels(features: Tensor, width: int) -> Tensor:
    """Appends channels of zeros to a feature map [batch, channels, ...] up to `width` channels."""
    missing = width - features.shape[1]
    return F.pad(features, [0, 0] * (features.dim() - 2) + [0, missing]) if missing else features


def mixing_matrix(widths: list[int], weights: Tensor, scales: Tensor | None, alignment: Alignment) -> Tensor:
    """The linear map that mixes prefixes of one feature map: Σ_k weights_k · align(scale_k ⊙ prefix of widths_k).

    Args:
        widths: Width of each prefix [samples]; the widest decides the size of the result.
        weights: Mixing weights [samples].
        scales: A factor for every channel of every prefix [samples, at least the widest]; None: ones.
        alignment: How a narrower prefix reaches the widest.

    Returns:
        For `interpolate` the matrix [widest, widest]; for `pad` its diagonal [widest], since channels stay apart.
    """
    widest = max(widths)
    if scales is None:
        scales = weights.new_ones(len(widths), widest)
    if alignment == "pad":
        inside = torch.arange(widest, device=weights.device) < torch.tensor(widths, device=weights.device)[:, None]
        return (weights[:, None] * inside * scales[:, :widest]).sum(0)
    parts = [
        weight * pad_columns(interpolation_matrix(width, widest, like=weights) * scale[:width], widest)
        for width, weight, scale in zip(widths, weights, scales, strict=True)
    ]
    return torch.stack(parts).sum(0)


def pad_columns(matrix: Tensor, columns: int) -> Tensor:
    """Appends columns of zeros to a matrix."""
    return F.pad(matrix, [0, columns - matrix.shape[1]])
