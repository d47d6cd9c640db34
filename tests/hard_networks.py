"""Networks whose connections or habits invite an analysis to get them wrong.

Unless told otherwise they take images [batch, 3, 8, 8] to logits [batch, 5].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from small_networks import CLASSES, ConvNorm, FreeBlock, PlainBlock, SumAround
from transprune.models.resnet import ResidualSum


class Depthwise(nn.Module):
    """A depthwise convolution and its batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.conv(features)).relu()


class SumInline(nn.Module):
    """A sum written as `+` around whatever it is given."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, features: Tensor) -> Tensor:
        return features + self.inside(features)


class PreActivation(nn.Module):
    """Batch norm, ReLU and a convolution inside a residual sum with free sides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.sum = ResidualSum()

    def forward(self, features: Tensor) -> Tensor:
        return self.sum(self.conv(self.norm(features).relu()), features)


class CumulativeBlock(nn.Module):
    """A convolution and a cumulative sum over its channels, which needs all of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = PlainBlock(width)
        self.is_cumulative = True

    def forward(self, features: Tensor) -> Tensor:
        features = self.inside(features)
        return features.cumsum(1) if self.is_cumulative else features


def free_block(width: int) -> CumulativeBlock:
    """The same without the cumulative sum."""
    block = CumulativeBlock(width)
    block.is_cumulative = False
    return block


class Tail(nn.Module):
    """A convolution, global average pooling and the classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 4, 1)
        self.classifier = nn.Linear(4, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.conv(features).mean(dim=(2, 3)))


def pre_activation() -> nn.Module:
    stage = nn.Sequential(*(PreActivation(6) for _ in range(3)))
    return nn.Sequential(ConvNorm(3, 6), stage, nn.BatchNorm2d(6), nn.ReLU(), Tail(6))


def depthwise_reads_a_free_sum() -> nn.Module:
    return nn.Sequential(ConvNorm(3, 6), SumAround(ConvNorm(6, 6)), Depthwise(6), Tail(6))


def inline_sum_reads_a_free_sum() -> nn.Module:
    return nn.Sequential(ConvNorm(3, 6), SumAround(ConvNorm(6, 6)), SumInline(ConvNorm(6, 6)), Tail(6))


def normed_depthwise_behind_a_stage() -> nn.Module:
    return nn.Sequential(ConvNorm(3, 6), nn.Sequential(*(PlainBlock(6) for _ in range(3))), Depthwise(6), Tail(6))


class SharedSum(nn.Module):
    """One residual sum module for two sums."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = ConvNorm(3, 6), ConvNorm(6, 6), ConvNorm(6, 6)
        self.sum = ResidualSum()
        self.tail = Tail(6)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        features = self.sum(self.first(features), features)
        return self.tail(self.sum(self.second(features), features))


class SumOfTokens(nn.Module):
    """A residual sum with free sides over tokens [batch, tokens, channels]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.classifier = nn.Linear(8, 6), nn.Linear(6, CLASSES)
        self.inside = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6))
        self.sum = ResidualSum()

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embedding(images.mean(dim=1))
        return self.classifier(self.sum(self.inside(tokens), tokens).mean(dim=1))


def blocks_at_the_top() -> nn.Module:
    """A network that is a Sequential of blocks itself; images to images."""
    return nn.Sequential(FreeBlock(3, 3), FreeBlock(3, 3), FreeBlock(3, 3))


def stage_that_ends_fixed() -> nn.Module:
    """The last block's width is fixed and the first block's is not."""
    return nn.Sequential(ConvNorm(3, 6), nn.Sequential(free_block(6), CumulativeBlock(6)), Tail(6))


def stage_that_starts_fixed() -> nn.Module:
    """The first block's width is fixed and the last block's is not."""
    return nn.Sequential(ConvNorm(3, 6), nn.Sequential(CumulativeBlock(6), free_block(6)), Tail(6))


def repeated_block() -> nn.Module:
    """A run of blocks whose first block comes again at its end."""
    first, second = PlainBlock(6), PlainBlock(6)
    return nn.Sequential(ConvNorm(3, 6), nn.Sequential(first, second, first), Tail(6))


class IteratedStage(nn.Module):
    """Runs the blocks of a Sequential itself, in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 6)
        self.blocks = nn.Sequential(*(PlainBlock(6) for _ in range(3)))
        self.tail = Tail(6)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for block in self.blocks:
            features = block(features)
        return self.tail(features)


class IndexedStage(IteratedStage):
    """Runs the blocks of a Sequential itself, by number."""

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.blocks[2](self.blocks[1](self.blocks[0](self.stem(images)))))


class FlattenedToANumber(nn.Module):
    """Writes the number of flattened elements into its forward, as many old networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.hidden, self.classifier = nn.Linear(256, 6), nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.hidden(self.conv(images).view(-1, 256)).relu())


class ViewedToItsOwnShape(FlattenedToANumber):
    """Writes the number of channels into a view that changes nothing."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images).view(-1, 4, 8, 8)
        return self.classifier(self.hidden(features.flatten(1)).relu())


class ColumnsThenConvolution(nn.Module):
    """A linear layer over the columns of the images, then a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = nn.Linear(8, 6)
        self.tail = nn.Sequential(ConvNorm(3, 4), Tail(4))

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.columns(images))


class ColumnsThenPool(nn.Module):
    """A linear layer over the columns of the images, pooling, then another linear layer over columns."""

    def __init__(self) -> None:
        super().__init__()
        self.columns, self.again = nn.Linear(8, 6), nn.Linear(3, 4)
        self.tail = nn.Sequential(ConvNorm(3, 4), Tail(4))

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.again(F.max_pool2d(self.columns(images), 2)))


class Scaled(nn.Module):
    """Multiplies its features by a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 6)
        self.scale = nn.Parameter(torch.full((1, 6, 1, 1), 0.5))
        self.tail = Tail(6)

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.stem(images) * self.scale)


class Aliased(nn.Module):
    """One module under two names, used under both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = ConvNorm(3, 6), ConvNorm(6, 6)
        self.second = self.first
        self.tail = nn.Sequential(ConvNorm(6, 6), Tail(6))

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.second(self.first(self.stem(images))))


class NamedTwice(nn.Module):
    """A norm under two names, used under one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 6)
        self.last_norm = self.stem.norm
        self.tail = Tail(6)

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.stem(images))


class TiedWeights(nn.Module):
    """Two convolutions with one weight between them, and biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 6)
        self.first, self.second = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.second.weight = self.first.weight
        self.tail = nn.Sequential(ConvNorm(6, 6), Tail(6))

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.second(self.first(self.stem(images)).relu()))


HARD_FOR_A_SUPERNET: dict[str, Callable[[], nn.Module]] = {
    make.__name__: make
    for make in (
        *(pre_activation, depthwise_reads_a_free_sum, inline_sum_reads_a_free_sum, normed_depthwise_behind_a_stage),
        *(SharedSum, SumOfTokens, stage_that_ends_fixed, stage_that_starts_fixed, IteratedStage, IndexedStage),
        *(Scaled, Aliased, NamedTwice, TiedWeights),
    )
}
HARD: dict[str, Callable[[], nn.Module]] = HARD_FOR_A_SUPERNET | {
    make.__name__: make
    for make in (
        *(blocks_at_the_top, repeated_block, FlattenedToANumber, ViewedToItsOwnShape),
        *(ColumnsThenConvolution, ColumnsThenPool),
    )
}


class Probed(nn.Module):
    """An operation between convolutions."""

    def __init__(self, operation: Callable[[Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.before = ConvNorm(3, 6)
        self.operation = operation
        self.after, self.last = ConvNorm(width, 6), ConvNorm(6, 6)
        self.classifier = nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.operation(self.before(images))
        return self.classifier(self.last(self.after(features)).mean(dim=(2, 3)))


def accumulated(features: Tensor) -> Tensor:
    return features.cumsum(1)


def flipped(features: Tensor) -> Tensor:
    return features.flip(1)


def transformed(features: Tensor) -> Tensor:
    return torch.fft.fft(features, dim=1).real


def added_to_its_shuffle(features: Tensor) -> Tensor:
    batch, channels, rows, columns = features.shape
    shuffled = features.view(batch, 2, channels // 2, rows, columns).transpose(1, 2)
    return features + shuffled.reshape(features.shape)


def read_in_steps(features: Tensor) -> Tensor:
    return features[:, ::2]


def read_by_number(features: Tensor) -> Tensor:
    return features[:, [0, 2, 1, 3]]


def taken_apart(features: Tensor) -> Tensor:
    return torch.stack(features.unbind(1), dim=1).exp()


def resized_along_channels(features: Tensor) -> Tensor:
    return F.interpolate(features.flatten(2).transpose(1, 2), 3).transpose(1, 2).unflatten(2, (8, 8))


def summed_in_pairs(features: Tensor) -> Tensor:
    batch, _, rows, columns = features.shape
    return features.view(batch, 2, 3, rows, columns).sum(dim=1)


def concatenated(features: Tensor) -> Tensor:
    return torch.cat([features, features], dim=1)


def sliced(features: Tensor) -> Tensor:
    return features[:, :4]


def gated_by_its_half(features: Tensor) -> Tensor:
    first, second = features.chunk(2, dim=1)
    return first * second.sigmoid()


def padded(features: Tensor) -> Tensor:
    return F.pad(features, (0, 0, 0, 0, 1, 2))


def transposed(features: Tensor) -> Tensor:
    return features.transpose(1, 2).cos().transpose(1, 2)


def scaled_by_a_constant_map(features: Tensor) -> Tensor:
    return features * torch.ones(1, 6, 1, 1)


def normed_over_channels(features: Tensor) -> Tensor:
    return features.softmax(1)


def convolved_by_computed_weights(features: Tensor) -> Tensor:
    return F.conv2d(features, torch.ones(6, 6, 1, 1) / 6)


UNSUPPORTED: dict[str, tuple[Callable[[Tensor], Tensor], int, str]] = {
    function.__name__: (function, width, operator)
    for function, width, operator in (
        (accumulated, 6, "cumsum"),
        (transformed, 6, "fft_fft"),
        (added_to_its_shuffle, 6, "add"),
        (flipped, 6, "flip"),
        (read_in_steps, 3, "slice"),
        (read_by_number, 4, "index"),
        (taken_apart, 6, "unbind"),
        (resized_along_channels, 3, "upsample_nearest1d"),
    )
}
"""Functions that need all channels: the function, the width after it and its operator."""

SUPPORTED: dict[str, tuple[Callable[[Tensor], Tensor], int, tuple[tuple[int, int], ...]]] = {
    function.__name__: (function, width, units)
    for function, width, units in (
        (summed_in_pairs, 3, ((3, 2),)),
        (gated_by_its_half, 3, ((3, 2),)),
        (concatenated, 12, ((6, 1),)),
        (sliced, 4, ((4, 1), (2, 1))),
        (padded, 9, ((6, 1),)),
        (transposed, 6, ((6, 1),)),
        (scaled_by_a_constant_map, 6, ((6, 1),)),
        (normed_over_channels, 6, ((6, 1),)),
        (convolved_by_computed_weights, 6, ((6, 1),)),
    )
}
"""Functions that channels can be left out of: the function, the width after it, and what is cut of the 6 channels
before it: groups of so many units of so many channels."""

UNSUPPORTED_MODULES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "local response norm": (lambda: nn.LocalResponseNorm(3), "avg_pool3d"),
}
"""Modules that need all channels, and their operators."""

MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], bool]] = {
    "transposed convolution": (lambda: nn.ConvTranspose2d(6, 6, 3, padding=1), (6, 1), True),
    "grouped transposed convolution": (lambda: nn.ConvTranspose2d(6, 6, 3, padding=1, groups=3), (3, 2), True),
    "group norm": (lambda: nn.GroupNorm(2, 6), (2, 3), False),
    "group norm of one group": (lambda: nn.GroupNorm(1, 6), (6, 1), False),
    "layer norm": (lambda: nn.LayerNorm([6, 8, 8]), (6, 1), False),
    "instance norm": (lambda: nn.InstanceNorm2d(6, affine=True), (6, 1), False),
    "batch norm without parameters": (lambda: nn.BatchNorm2d(6, affine=False), (6, 1), False),
    "PReLU": (lambda: nn.PReLU(6), (6, 1), False),
    "PReLU of one slope": (nn.PReLU, (6, 1), False),
    "pixel shuffle": (lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2)), (6, 1), False),
    "channel shuffle": (lambda: nn.ChannelShuffle(2), (3, 2), False),
    "circular padding": (lambda: nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular"), (6, 1), True),
}
"""Modules that channels can be left out of, what is cut of the 6 channels before them (units, channels a unit), and
whether they have outputs of their own."""
