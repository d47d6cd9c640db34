"""The maps that mix prefixes of one set of channels, each aligned to the widest and scaled on its own.

They are sparse, and a network needs many small ones at every step: all of them are made by the same few operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
import torch
from torch import Tensor

from transprune.options import Alignment
from transprune.runtime.structures import on_device
from transprune.tas.alignment import interpolation_entries


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Σ_k weights_k · align(factor_k ⊙ prefix of widths_k)."""

    widths: tuple[int, ...]
    """Width of each prefix [samples]; the widest decides the size of the result."""
    weights: Tensor
    """Mixing weights [samples]."""
    alignment: Alignment
    """How a narrower prefix reaches the widest."""
    factors: Tensor | None = None
    """A factor for every channel [rows, at least the widest]; None: ones."""
    rows: tuple[int, ...] | None = None
    """Which row belongs to each prefix [samples]; None: the first to the first, and so on."""
    is_applied: bool = False
    """Whether the prefixes are all ones, so that the result is a number for each channel [widest]. Otherwise it is the
    linear map: for `interpolate` a matrix [widest, widest], for `pad` its diagonal [widest], since channels stay apart.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        widest = max(self.widths)
        return (widest,) if self.is_applied or self.alignment == "pad" else (widest, widest)

    @property
    def entries(self) -> _Entries:
        """What it is made of."""
        rows = tuple(range(len(self.widths))) if self.rows is None else self.rows
        columns = max(self.widths) if self.factors is None else self.factors.shape[1]
        return _entries(self.widths, rows, columns, self.alignment, len(self.shape))


@dataclass(frozen=True)
class _Entries:
    """The entries that are not zero, at most two for every prefix and output channel."""

    samples: np.ndarray
    """The prefix that each belongs to."""
    sources: np.ndarray
    """Where the factor of the channel that is read stands in the flattened factors."""
    places: np.ndarray
    """Where they stand in the flattened result."""
    shares: np.ndarray
    """Their value, weights and factors apart."""


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
    """The results of several mixtures."""
    weights = torch.cat([each.weights for each in mixtures])
    factors = [each.factors if each.factors is not None else _ones_for(each) for each in mixtures]
    entries, sizes = [each.entries for each in mixtures], [prod(each.shape) for each in mixtures]
    constants = (
        _joined([each.samples for each in entries], [len(each.widths) for each in mixtures]),
        _joined([each.sources for each in entries], [each.numel() for each in factors]),
        _joined([each.places for each in entries], sizes),
        torch.from_numpy(np.concatenate([each.shares for each in entries])).to(weights.dtype),
    )
    # From other memory than pinned a copy of more than 64 KiB would wait for the device.
    ready = (each.pin_memory() if weights.is_cuda else each for each in constants)
    samples, sources, places, shares = (on_device(each, weights.device) for each in ready)
    values = shares * weights.index_select(0, samples)
    values = values * torch.cat([each.flatten() for each in factors]).index_select(0, sources)
    sums = values.new_zeros(sum(sizes)).index_add(0, places, values)
    return [part.view(each.shape) for part, each in zip(sums.split(sizes), mixtures, strict=True)]


def _ones_for(mixture: Mixture) -> Tensor:
    rows = len(mixture.widths) if mixture.rows is None else max(mixture.rows) + 1
    return mixture.weights.new_ones(rows, max(mixture.widths))


def _joined(indices: list[np.ndarray], sizes: list[int]) -> Tensor:
    """Indices into several arrays of the given sizes as indices into one array of all of them."""
    starts = np.cumsum([0, *sizes[:-1]])
    return torch.from_numpy(np.concatenate([each + start for each, start in zip(indices, starts, strict=True)]))
