"""A small zoo of networks: one for each way in which layers are connected.

All take images [batch, 3, 8, 8] to logits [batch, 5], and their search spaces with the candidates 'half' and 'full'
are small enough to visit every architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from transprune.models.resnet import ResidualSum, resnet
from transprune.reading.inspection import inspect
from transprune.space import SearchSpace

CLASSES = 5
HALF_AND_FULL = (0.5, 1.0)


def example(batch: int = 2, *, seed: int = 0) -> Tensor:
    """Images that every network of the zoo accepts [batch, 3, 8, 8]."""
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class ConvNorm(nn.Module):
    """A 3×3 convolution without bias, its batch norm and a ReLU."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.conv(features)).relu()


class FreeBlock(nn.Module):
    """A residual block whose sum is a module: its two sides may have different widths."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, has_norm: bool = True) -> None:
        super().__init__()
        self.main = ConvNorm(inputs, outputs, stride=stride)
        is_changed = stride > 1 or inputs != outputs
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False)) if is_changed else None
        self.sum = ResidualSum(shortcut, has_norm=has_norm)

    def forward(self, features: Tensor) -> Tensor:
        return self.sum(self.main(features), features)


class CoupledBlock(nn.Module):
    """A residual block that writes its sum as `+`: its two sides share one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ConvNorm(width, width)
        self.second = ConvNorm(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.second(self.first(features)) + features


class SelfCoupledBlock(nn.Module):
    """A convolution and its own input, added by `+`: it reads and writes the same group of channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = ConvNorm(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(features) + features


class PlainBlock(nn.Module):
    """One convolution with a bias. A depthwise one (`groups=width`) hands on the channels that it reads."""

    def __init__(self, width: int, *, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.activation = nn.Sequential(nn.ReLU())

    def forward(self, features: Tensor) -> Tensor:
        return self.activation(self.conv(features))


class FlatBlock(nn.Module):
    """A ReLU on flattened features, behind a linear layer of its own if it has one."""

    def __init__(self, features: int, *, is_linear: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*([nn.Linear(features, features)] if is_linear else []), nn.ReLU())

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class Classifier(nn.Module):
    """A body, global average pooling and a linear layer."""

    def __init__(self, width: int, *parts: nn.Module) -> None:
        super().__init__()
        self.body = nn.ModuleList(parts)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        for part in self.body:
            images = part(images)
        return self.classifier(self.pool(images).flatten(1))


class SumAround(nn.Module):
    """A residual sum with free sides around whatever it is given."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside
        self.sum = ResidualSum()

    def forward(self, features: Tensor) -> Tensor:
        return self.sum(self.inside(features), features)


class UsedTwice(nn.Module):
    """One convolution, run twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(self.conv(features).relu()).relu()


def plain() -> nn.Module:
    """Two convolutions in a row, one with a bias and one with a batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
    )


def residual() -> nn.Module:
    """Residual sums with free sides: two that may come to need a projection and one that has one."""
    return Classifier(6, ConvNorm(3, 4), FreeBlock(4, 4), FreeBlock(4, 6, stride=2), FreeBlock(6, 6, has_norm=False))


def inline_residual() -> nn.Module:
    """A residual sum written as `+`."""
    return Classifier(6, ConvNorm(3, 6), CoupledBlock(6), ConvNorm(6, 6, stride=2))


def self_coupled() -> nn.Module:
    """A convolution that reads and writes the same group of channels."""
    return Classifier(6, ConvNorm(3, 4), SelfCoupledBlock(4), ConvNorm(4, 6), SelfCoupledBlock(6))


def depthwise() -> nn.Module:
    """Pointwise, depthwise and pointwise convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 1),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


def flattened() -> nn.Module:
    """A feature map flattened into a linear layer: 16 elements a channel."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.ReLU(),
        nn.Linear(6, CLASSES),
    )


def staged() -> nn.Module:
    """Two depth stages of residual blocks with free sides: what follows a stage sees its last kept block."""
    first = nn.Sequential(FreeBlock(4, 4), FreeBlock(4, 4), FreeBlock(4, 4, has_norm=False))
    second = nn.Sequential(FreeBlock(4, 6, stride=2), FreeBlock(6, 6))
    return Classifier(6, ConvNorm(3, 4), first, second)


def coupled_stage() -> nn.Module:
    """A depth stage whose blocks all hand on one group of channels."""
    return Classifier(6, ConvNorm(3, 6), nn.Sequential(*(CoupledBlock(6) for _ in range(3))))


def flattened_stage() -> nn.Module:
    """A depth stage whose end is flattened into a linear layer."""
    return nn.Sequential(
        ConvNorm(3, 4, stride=2),
        nn.Sequential(FreeBlock(4, 4), FreeBlock(4, 4)),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


def flattened_grouped() -> nn.Module:
    """A feature map of a fixed width flattened into a linear layer that is searched."""
    convolutions = [nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 2, groups=2)]
    return nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, CLASSES))


def stage_with_fixed_block() -> nn.Module:
    """A depth stage that ends in a fixed width at one depth and in a searched one at another."""
    stage = nn.Sequential(PlainBlock(4, groups=2), PlainBlock(4))
    return Classifier(6, ConvNorm(3, 4), stage, ConvNorm(4, 6))


def linear_stage() -> nn.Module:
    """A depth stage that ends in four elements of every channel, or in a linear layer."""
    stage = nn.Sequential(FlatBlock(16, is_linear=False), FlatBlock(16, is_linear=True))
    return nn.Sequential(ConvNorm(3, 4, stride=2), nn.MaxPool2d(2), nn.Flatten(), stage, nn.Linear(16, CLASSES))


def sum_around_stage() -> nn.Module:
    """A residual sum whose one side is the end of a depth stage."""
    return Classifier(4, ConvNorm(3, 4), SumAround(nn.Sequential(*(PlainBlock(4) for _ in range(3)))))


def depthwise_behind_stage() -> nn.Module:
    """A depthwise convolution that reads the end of a depth stage."""
    stage = nn.Sequential(*(PlainBlock(4) for _ in range(2)))
    return Classifier(6, ConvNorm(3, 4), stage, PlainBlock(4, groups=4), ConvNorm(4, 6))


def shared() -> nn.Module:
    """A convolution that is used twice: it keeps its width, and its parameters count once."""
    return Classifier(6, ConvNorm(3, 4), UsedTwice(4), ConvNorm(4, 6), ConvNorm(6, 6))


def grouped() -> nn.Module:
    """A grouped convolution keeps its widths."""
    return Classifier(6, ConvNorm(3, 8), nn.Conv2d(8, 8, 3, groups=2), ConvNorm(8, 6))


def bare_shortcut() -> nn.Module:
    """A residual sum whose shortcut is a convolution itself, not a container of one."""
    block = FreeBlock(4, 6, stride=2)
    block.sum = ResidualSum(nn.Conv2d(4, 6, 1, stride=2))
    return Classifier(6, ConvNorm(3, 4), block)


def merging_groups() -> nn.Module:
    """A grouped convolution of which every group has two inputs and one output."""
    return Classifier(6, ConvNorm(3, 8), nn.Conv2d(8, 4, 3, groups=4), ConvNorm(4, 6))


def linear_residual() -> nn.Module:
    """A residual sum with free sides between linear layers."""
    inside = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), SumAround(inside), nn.Linear(6, CLASSES))


def depthwise_stage_behind_stage() -> nn.Module:
    """A depth stage whose blocks all hand on what the depth stage before ends with."""
    first = nn.Sequential(*(PlainBlock(4) for _ in range(2)))
    second = nn.Sequential(*(PlainBlock(4, groups=4) for _ in range(2)))
    return Classifier(4, ConvNorm(3, 4), first, second)


def flat_stage_behind_stage() -> nn.Module:
    """The end of a depth stage, flattened, goes through a depth stage that hands its channels on."""
    first = nn.Sequential(FreeBlock(4, 4), FreeBlock(4, 4))
    second = nn.Sequential(*(FlatBlock(16, is_linear=False) for _ in range(2)))
    return nn.Sequential(ConvNorm(3, 4, stride=4), first, nn.Flatten(), second, nn.Linear(16, CLASSES))


def stage_that_starts_depthwise() -> nn.Module:
    """The end of the stage is either the other side of the sum around it or has a width of its own."""
    stage = nn.Sequential(PlainBlock(4, groups=4), PlainBlock(4))
    return Classifier(4, ConvNorm(3, 4), SumAround(stage))


Factory = Callable[[], nn.Module]


def _by_name(*networks: Factory) -> dict[str, Factory]:
    return {network.__name__: network for network in networks}


CASES = _by_name(
    *(plain, residual, inline_residual, self_coupled, depthwise, flattened, staged, coupled_stage, flattened_stage),
    *(sum_around_stage, depthwise_behind_stage, stage_with_fixed_block, linear_stage, shared, grouped),
    flattened_grouped,
)
"""The usual ways of connecting layers, by name."""

ODD_CASES = _by_name(
    *(bare_shortcut, merging_groups, linear_residual, depthwise_stage_behind_stage, flat_stage_behind_stage),
    stage_that_starts_depthwise,
)
"""Rarer ones, which an analysis gets wrong more easily."""


@cache
def space_of(network: Factory, ratios: tuple[float, ...] = HALF_AND_FULL) -> SearchSpace:
    """The search space of a network of the zoo."""
    return inspect(network(), example(), ratios=ratios)


@cache
def resnet_space(depth: int) -> SearchSpace:
    """The paper's search space of a CIFAR ResNet on 32×32 images."""
    return inspect(resnet(depth), torch.zeros(1, 3, 32, 32))
