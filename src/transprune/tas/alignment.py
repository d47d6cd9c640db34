"""Bringing feature maps to one width, so that they can be mixed: channel-wise interpolation, or zeros."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from transprune.kernels.feature_maps import map_channels
from transprune.options import Alignment
from transprune.runtime.structures import on_device


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
