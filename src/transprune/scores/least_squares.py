"""A layer's weights from the inputs that it gets and the outputs that are wanted.

Everything is in groups, as a grouped convolution is: each has inputs, outputs and weights of its own. Other layers have
one group.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

ROWS = 8192
"""Places (samples × positions) that a layer is fitted on, drawn at random where there are more."""


@lru_cache(maxsize=64)
def draw_places(count: int, most: int = ROWS) -> Tensor:
    """Which of so many places a layer is fitted on; the same for the same count."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(count))[:most].sort().values


def outputs_at(outputs: Tensor, axis: int, places: Tensor) -> Tensor:
    """Outputs at certain places [places, channels], from a tensor whose channels stand along an axis."""
    places, inner = places.to(outputs.device), prod(outputs.shape[axis + 1 :])
    # Picked out before channels are moved: moving them copies everything.
    apart = outputs.reshape(-1, outputs.shape[axis], inner)
    return apart[places // inner, :, places % inner]


def inputs_at(arguments: dict[str, Any], spatial: tuple[int, ...], places: Tensor) -> Tensor:
    """What a layer reads for its outputs at certain places [groups, places, inputs of a group × kernel].

    Args:
        arguments: Those of the call of a convolution or linear layer.
        spatial: Positions of a convolution's outputs.
        places: Which samples and positions, counted through.
    """
    inputs: Tensor = arguments["input"]
    places = places.to(inputs.device)
    if "groups" not in arguments:
        rows: Tensor = inputs.flatten(0, -2)[places][None]
        return rows
    kernel = arguments["weight"].shape[2:]
    stride, dilation = (_for_each(arguments[name], kernel) for name in ("stride", "dilation"))
    margins = _margins(arguments["padding"], kernel, dilation)
    extents = inputs.shape[2:]
    left, steps = places % prod(spatial), prod(spatial)
    at = torch.zeros_like(places)[:, None]
    is_inside = torch.ones_like(at, dtype=torch.bool)
    for size, length, step, apart, extent, margin in zip(
        spatial, kernel, stride, dilation, extents, margins, strict=True
    ):
        steps //= size
        here = (left // steps * step - margin)[:, None] + torch.arange(length, device=inputs.device) * apart
        left = left % steps
        at = (at[:, :, None] * extent + here.clamp(0, extent - 1)[:, None]).flatten(1)
        is_inside = (is_inside[:, :, None] & ((here >= 0) & (here < extent))[:, None]).flatten(1)
    samples = (places // prod(spatial))[:, None]
    read = inputs.flatten(2)[samples, :, at]  # [places, kernel, channels]
    read.masked_fill_(~is_inside[:, :, None], 0)
    groups: int = arguments["groups"]
    patches: Tensor = read.unflatten(2, (groups, -1)).permute(2, 0, 3, 1).flatten(2)
    return patches


def _for_each(value: Any, kernel: torch.Size) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * len(kernel) if len(values) == 1 else values


def _margins(padding: Any, kernel: torch.Size, dilation: list[int]) -> list[int]:
    """Zeros before the first row, column and so on."""
    if padding == "valid":
        return [0] * len(kernel)
    if padding == "same":
        return [apart * (length - 1) // 2 for length, apart in zip(kernel, dilation, strict=True)]
    return _for_each(padding, kernel)


@dataclass(frozen=True)
class Moments:
    """What least squares need to know of a layer's inputs and wanted outputs; in double precision."""

    inputs: Tensor
    """Means [groups, inputs]; zeros where the layer cannot add a constant to its outputs."""
    outputs: Tensor
    """Means of what is wanted [groups, outputs]; zeros as above."""
    gram: Tensor
    """Products of the inputs, means taken off, averaged over the places [groups, inputs, inputs]."""
    cross: Tensor
    """The same of inputs and wanted outputs [groups, inputs, outputs]."""

    @classmethod
    def of(cls, centred: Tensor, mean: Tensor, outputs: Tensor, *, has_shift: bool) -> Moments:
        """Those of inputs that `centre` has centred, and of wanted outputs [places, groups × outputs]."""
        gram = centred.mT @ centred / centred.shape[1]
        return cls._of(centred, mean.double(), gram.double(), outputs, has_shift=has_shift)

    def wanting(self, centred: Tensor, outputs: Tensor, *, has_shift: bool) -> Moments:
        """Those of the same inputs where other outputs are wanted."""
        return self._of(centred, self.inputs, self.gram, outputs, has_shift=has_shift)

    @classmethod
    def _of(cls, centred: Tensor, mean: Tensor, gram: Tensor, outputs: Tensor, *, has_shift: bool) -> Moments:
        wanted, wanted_mean = centre(outputs.unflatten(1, (len(centred), -1)).movedim(1, 0), has_shift=has_shift)
        cross = centred.mT @ wanted / centred.shape[1]
        return cls(mean, wanted_mean.double(), gram, cross.double())


def centre(values: Tensor, *, has_shift: bool) -> tuple[Tensor, Tensor]:
    """Values [groups, places, channels] with their means taken off, and these; as they are where nothing is added."""
    if not has_shift:
        return values, values.new_zeros(len(values), values.shape[2])
    mean = values.mean(1)
    return values - mean[:, None], mean


def fit(moments: Moments, weights: Tensor, *, columns: Tensor | None = None, ridge: float) -> Tensor:
    """The weights that come closest to the wanted outputs, in the mean square, from some of the inputs.

    Args:
        moments: Of inputs and wanted outputs.
        weights: What the weights are drawn towards [groups, inputs, outputs].
        columns: Which inputs there are; None: all. The weights of the others are zero.
        ridge: How strongly they are drawn, as a share of the inputs' mean square.

    Returns:
        [groups, inputs, outputs].
    """
    gram, cross, start = moments.gram, moments.cross, weights.double()
    if columns is not None:
        gram, cross, start = gram[:, columns][:, :, columns], cross[:, columns], start[:, columns]
    strength = ridge * gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    drawn = gram + torch.diag_embed(strength[:, None].expand(-1, gram.shape[1]))
    found: Tensor = start + torch.linalg.solve(drawn, cross - gram @ start)
    if columns is None:
        return found
    return torch.zeros_like(weights, dtype=found.dtype).index_copy(1, columns.to(found.device), found)


def shift_of(moments: Moments, weights: Tensor) -> Tensor:
    """The constant that brings the outputs of weights to the wanted mean [groups × outputs]."""
    return (moments.outputs - (moments.inputs[:, None] @ weights)[:, 0]).flatten()


def as_matrix(weight: Tensor, groups: int) -> Tensor:
    """A weight [outputs, inputs of a group, ...] as [groups, inputs × kernel, outputs of a group]."""
    matrix: Tensor = weight.flatten(1).unflatten(0, (groups, -1)).mT
    return matrix


def as_weight(matrix: Tensor, like: Tensor) -> Tensor:
    """`as_matrix`, the other way, in another's shape and type."""
    return matrix.mT.reshape(like.shape).to(like.dtype)
