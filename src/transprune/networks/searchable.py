"""The layers of a supernet. Each computes once, on weights sliced to the widths in use.

They read the candidates of the step from a `Current` that the supernet sets before its forward, and the width of their
input from the input itself. Batch normalisation uses the statistics of the batch, in training and in evaluation:
running averages over a network that changes every step would describe none of its members.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transprune.layers import Channels
from transprune.networks.selection import Choice, Selection
from transprune.numerics.alignment import Alignment, align_channels, mixing_matrix, pad_channels
from transprune.residual import ResidualSum


@dataclass
class Current:
    """What the layers of one supernet use in the step at hand."""

    alignment: Alignment
    selection: Selection | None = None

    def width(self, source: str | None) -> Choice | None:
        """The candidate widths in use for a group; None where the width is fixed or follows the input."""
        return self.selection.widths.get(source) if self.selection and source else None

    def depth(self, stage: str) -> Choice | None:
        """The candidate depths in use for a stage."""
        return self.selection.depths.get(stage) if self.selection else None

    def mixing(self, choice: Choice, scales: Tensor | None = None) -> Tensor:
        """The map that mixes the candidates: a matrix [widest, widest], or its diagonal [widest] where that is all."""
        is_diagonal = self.alignment == "pad" or len(choice.sizes) == 1
        return mixing_matrix(list(choice.sizes), choice.weights, scales, "pad" if is_diagonal else "interpolate")


class SlicedConv2d(nn.Conv2d):
    """A convolution at the widths in use.

    Where no batch norm follows (`is_mixed`), mixing the candidates of its output is linear in its weights, and is done
    to them: it costs nothing per pixel.
    """

    def __init__(self, layer: nn.Conv2d, outputs: Channels, *, is_mixed: bool, current: Current) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
            device="meta",
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.source = outputs.source
        self.is_mixed = is_mixed
        self.current = current

    def forward(self, features: Tensor) -> Tensor:
        """[batch, input width, ...] → [batch, widest candidate in use, ...]."""
        inputs = features.shape[1]
        choice = self.current.width(self.source)
        if self.groups > 1:
            bias = None if self.bias is None else self.bias[:inputs]
            return F.conv2d(features, self.weight[:inputs], bias, self.stride, self.padding, self.dilation, inputs)
        outputs = max(choice.sizes) if choice else self.out_channels
        weight = self.weight[:outputs, :inputs]
        bias = None if self.bias is None else self.bias[:outputs]
        if choice and self.is_mixed:
            weight, bias = mix_outputs(self.current.mixing(choice), weight, bias)
        outcome: Tensor = self._conv_forward(features, weight, bias)
        return outcome


class SlicedLinear(nn.Linear):
    """A linear layer at the widths in use; the candidates of its output are mixed in its weights."""

    def __init__(self, layer: nn.Linear, outputs: Channels, *, current: Current) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.source = outputs.source
        self.current = current

    def forward(self, features: Tensor) -> Tensor:
        """[batch, ..., input width] → [batch, ..., widest candidate in use]."""
        choice = self.current.width(self.source)
        outputs = max(choice.sizes) if choice else self.out_features
        weight: Tensor = self.weight[:outputs, : features.shape[-1]]
        bias: Tensor | None = self.bias[:outputs] if self.bias is not None else None
        if choice:
            weight, bias = mix_outputs(self.current.mixing(choice), weight, bias)
        return F.linear(features, weight, bias)


def mix_outputs(mixing: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weights [outputs, ...] of a layer whose outputs are then mixed by a matrix, or by its diagonal."""
    if mixing.dim() == 1:
        weight = weight * mixing.view(-1, *[1] * (weight.dim() - 1))
        return weight, None if bias is None else bias * mixing
    mixed = (mixing @ weight.flatten(1)).view_as(weight)
    return mixed, None if bias is None else mixing @ bias


class SlicedBatchNorm2d(nn.Module):
    """A batch norm over however many channels arrive."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.eps = layer.eps

    def forward(self, features: Tensor) -> Tensor:
        """[batch, width, rows, columns], same shape out."""
        width = features.shape[1]
        weight = None if self.weight is None else self.weight[:width]
        bias = None if self.bias is None else self.bias[:width]
        return F.batch_norm(features, None, None, weight, bias, training=True, eps=self.eps)


class CandidateBatchNorm2d(nn.Module):
    """A batch norm for each candidate width of a group, mixed.

    The candidates are prefixes of one feature map, so on the channels they share their batch statistics are the same,
    and one normalisation serves all; only scale and shift belong to a candidate. What follows is linear: with `pad`
    the mixture of all candidates is one batch norm whose scale and shift are mixed, with `interpolate` it is one
    normalisation and one 1×1 convolution. Both equal normalising, aligning and adding each candidate on its own.
    """

    def __init__(self, layer: nn.BatchNorm2d, candidates: int, outputs: Channels, current: Current) -> None:
        super().__init__()
        weight, bias = (
            parameter.detach() if parameter is not None else torch.full((layer.num_features,), value)
            for parameter, value in ((layer.weight, 1.0), (layer.bias, 0.0))
        )
        self.weight = nn.Parameter(weight.repeat(candidates, 1), requires_grad=layer.affine)
        self.bias = nn.Parameter(bias.repeat(candidates, 1), requires_grad=layer.affine)
        self.eps = layer.eps
        self.source = outputs.source
        self.current = current

    def forward(self, features: Tensor) -> Tensor:
        """[batch, widest candidate in use, rows, columns], same shape out."""
        choice = self.current.width(self.source)
        if choice is None:
            raise RuntimeError("a searchable layer runs outside its supernet: call the supernet with a selection")
        indices = list(choice.indices)
        scale = self.current.mixing(choice, self.weight[indices])
        shift = self.current.mixing(choice, self.bias[indices])
        if scale.dim() == 1:
            return F.batch_norm(features, None, None, scale, shift, training=True, eps=self.eps)
        normalised = F.batch_norm(features, None, None, training=True, eps=self.eps)
        return F.conv2d(normalised, scale[:, :, None, None], shift.sum(1))


class MixedStage(nn.Sequential):
    """A stage that mixes the features behind its sampled depths; blocks beyond the deepest are not computed."""

    def __init__(self, blocks: nn.Sequential, name: str, current: Current) -> None:
        super().__init__(OrderedDict(blocks.named_children()))
        self.name = name
        self.current = current

    def forward(self, features: Tensor) -> Tensor:
        """[batch, width, rows, columns] → [batch, widest of the mixed, rows, columns]."""
        choice = self.current.depth(self.name)
        depths = choice.sizes if choice else (len(self),)
        handed_on: dict[int, Tensor] = {}
        for depth, block in enumerate(self, start=1):
            if depth > max(depths):
                break
            features = block(features)
            if depth in depths:
                handed_on[depth] = features
        if choice is None or len(depths) == 1:
            return features
        widest = max(kept.shape[1] for kept in handed_on.values())
        aligned = [align_channels(handed_on[depth], widest, self.current.alignment) for depth in depths]
        return torch.stack([weight * kept for weight, kept in zip(choice.weights, aligned, strict=True)]).sum(0)


class PaddedResidualSum(nn.Module):
    """A residual sum whose narrower side is padded by channels of zeros.

    Args:
        layer: The sum.
        keeps_main_width: Whether the sum is as wide as its main side, because other layers share that width; else it is
            as wide as the wider side, as in the paper.
    """

    def __init__(self, layer: ResidualSum, *, keeps_main_width: bool = False) -> None:
        super().__init__()
        self.shortcut = layer.shortcut
        self.keeps_main_width = keeps_main_width

    def forward(self, main: Tensor, inputs: Tensor) -> Tensor:
        """Two feature maps [batch, channels, ...] to one as wide as the wider."""
        shortcut: Tensor = self.shortcut(inputs)
        if self.keeps_main_width:
            shortcut = shortcut[:, : main.shape[1]]
        width = max(main.shape[1], shortcut.shape[1])
        return pad_channels(main, width) + pad_channels(shortcut, width)
