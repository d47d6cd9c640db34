"""Whether two networks compute the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from transprune.runtime.seeds import seeded

AGREEMENT = 1e-3
"""Largest difference between two networks' outputs, as a share of the largest output, that is taken for rounding."""
ROUNDING = 1e-7
"""Difference that is taken for rounding however small the outputs are: they may be what is left of larger numbers."""


def probes(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Inputs like these, at random where they are numbers with a point."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(tensor.shape, generator=generator).to(tensor)
        if tensor.is_floating_point() and not tensor.is_meta
        else tensor
        for tensor in inputs
    )


def outputs_of(network: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that a network returns; it writes over no input, and draws the same random numbers in each call."""
    with torch.no_grad(), seeded(0, "comparing"):
        returned = network(*(tensor.clone() for tensor in inputs))
    return [leaf for leaf in _pytree.tree_leaves(returned) if isinstance(leaf, Tensor)]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
    """How outputs differ by more than rounding, for a message; None: they do not."""
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        return "gives outputs of another shape"
    if any(tensor.is_meta for tensor in (*found, *expected)):
        return None
    for one, other in zip(found, expected, strict=True):
        finite = other[other.isfinite()]
        largest = float(finite.abs().max()) if finite.numel() else 0.0
        tolerance = max(AGREEMENT * largest, ROUNDING)
        if not torch.allclose(one.float(), other.float(), rtol=0.0, atol=tolerance, equal_nan=True):
            return "computes something else"
    return None
