"""The paper's CIFAR ResNets (Dong & Yang, 2019, arXiv:1905.09717, section 4), at any widths and depths.

They are plain networks: nothing here knows of a search. Shapes are a separate value, so that the unpruned network and
every derived one are built by the same code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from transprune.errors import ModelError
from transprune.networks.initialisation import initialise
from transprune.residual import ResidualSum, projection

Block = Literal["basic", "bottleneck"]
CONVOLUTIONS: dict[Block, int] = {"basic": 2, "bottleneck": 3}
STAGE_WIDTHS = (16, 32, 64)
EXPANSION = 4


@dataclass(frozen=True)
class ResNetShape:
    """Widths and depths of a CIFAR ResNet."""

    block: Block
    stem: int
    """Width of the first convolution."""
    stages: tuple[tuple[tuple[int, ...], ...], ...]
    """Widths of the convolutions of every block of every stage: stages[stage][block][convolution]."""
    has_shortcut_norm: bool = True
    """Whether a shortcut that changes the width alone ends in a batch norm. In the paper's counts it does, except in
    derived networks of bottlenecks."""

    @classmethod
    def unpruned(cls, depth: int) -> ResNetShape:
        """The shape of the unpruned network with that many layers.

        Raises:
            ModelError: The depth is neither 6n + 2 (basic blocks) nor 164 (bottlenecks).
        """
        if depth == 164:
            bottlenecks = [((width, width, EXPANSION * width),) * ((depth - 2) // 9) for width in STAGE_WIDTHS]
            return cls(block="bottleneck", stem=STAGE_WIDTHS[0], stages=tuple(bottlenecks))
        if depth >= 8 and (depth - 2) % 6 == 0:
            basic = [((width, width),) * ((depth - 2) // 6) for width in STAGE_WIDTHS]
            return cls(block="basic", stem=STAGE_WIDTHS[0], stages=tuple(basic))
        raise ModelError(
            f"cannot build a CIFAR ResNet of {depth} layers; expected 6n + 2 (20, 32, 44, 56, 110: basic blocks) "
            f"or 164 (bottlenecks)"
        )

    @classmethod
    def from_paper(
        cls, block: Block, widths: Sequence[int], blocks: Sequence[int], depths: Sequence[int]
    ) -> ResNetShape:
        """Reads the paper's notation.

        Args:
            block: Kind of the blocks.
            widths: [image channels, stem, then every main-path convolution in order, those of dropped blocks included].
            blocks: Blocks of every stage before any is dropped.
            depths: Blocks kept of every stage.

        Raises:
            ModelError: The numbers do not fit together.
        """
        each = CONVOLUTIONS[block]
        if len(widths) != 2 + each * sum(blocks) or len(depths) != len(blocks):
            raise ModelError(
                f"cannot read a {block} ResNet from {len(widths)} widths and {len(depths)} depths; expected "
                f"{2 + each * sum(blocks)} widths and {len(blocks)} depths for stages of {list(blocks)} blocks"
            )
        rest = iter(widths[2:])
        stages = [[tuple(next(rest) for _ in range(each)) for _ in range(count)] for count in blocks]
        kept = tuple(tuple(stage[:depth]) for stage, depth in zip(stages, depths, strict=True))
        return cls(block=block, stem=widths[1], stages=kept, has_shortcut_norm=block == "basic")


class ResNet(nn.Module):
    """A CIFAR ResNet: a 3×3 stem, stages at full, half and quarter resolution, global average pooling, a classifier.

    Args:
        shape: Widths and depths.
        classes: Outputs of the classifier.
        image_channels: Channels of the images.
    """

    def __init__(self, shape: ResNetShape, *, classes: int = 10, image_channels: int = 3) -> None:
        super().__init__()
        self.stem = ConvNormReLU(image_channels, shape.stem, kernel_size=3)
        self.stages = nn.ModuleList(_stages(shape))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(_last_width(shape), classes)
        initialise(self)

    def features(self, images: Tensor) -> Tensor:
        """What the classifier reads [batch, width] of images [batch, channels, rows, columns]."""
        features: Tensor = self.stem(images)
        for stage in self.stages:
            features = stage(features)
        pooled: Tensor = self.pool(features)
        return pooled.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, rows, columns]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def _last_width(shape: ResNetShape) -> int:
    return shape.stages[-1][-1][-1]


def _stages(shape: ResNetShape) -> Iterator[nn.Sequential]:
    block = BasicBlock if shape.block == "basic" else Bottleneck
    inputs = shape.stem
    for index, stage in enumerate(shape.stages):
        blocks: list[nn.Module] = []
        for position, widths in enumerate(stage):
            stride = 2 if index > 0 and position == 0 else 1
            shortcut = _shortcut(inputs, widths[-1], stride, has_norm=shape.has_shortcut_norm)
            blocks.append(block(inputs, widths, stride, shortcut))
            inputs = widths[-1]
        yield nn.Sequential(*blocks)


def _shortcut(inputs: int, outputs: int, stride: int, *, has_norm: bool) -> nn.Module | None:
    """What takes a block's input to its output's shape; None where the shapes agree.

    As the paper counts it: average pooling and a bare 1×1 convolution where the resolution halves.
    """
    if stride > 1:
        return nn.Sequential(nn.AvgPool2d(stride), *projection(inputs, outputs, has_norm=False))
    return projection(inputs, outputs, has_norm=has_norm) if inputs != outputs else None


class ConvNormReLU(nn.Module):
    """A convolution without bias, its batch norm, and a ReLU unless told otherwise."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel_size: int, stride: int = 1, has_activation: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.activation = nn.ReLU() if has_activation else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """[batch, inputs, rows, columns] → [batch, outputs, rows / stride, columns / stride]."""
        outputs: Tensor = self.activation(self.norm(self.conv(features)))
        return outputs


class BasicBlock(nn.Module):
    """Two 3×3 convolutions inside a residual sum.

    Args:
        inputs: Channels read.
        widths: Width of each convolution.
        stride: Step of the first convolution.
        shortcut: What takes the inputs to the output's shape; None where they agree.
    """

    def __init__(self, inputs: int, widths: Sequence[int], stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        first, second = widths
        self.layer1 = ConvNormReLU(inputs, first, kernel_size=3, stride=stride)
        self.layer2 = ConvNormReLU(first, second, kernel_size=3, has_activation=False)
        self.sum = ResidualSum(shortcut)

    def forward(self, features: Tensor) -> Tensor:
        """[batch, inputs, rows, columns] → [batch, widths[-1], rows / stride, columns / stride]."""
        return F.relu(self.sum(self.layer2(self.layer1(features)), features))


class Bottleneck(nn.Module):
    """A 1×1, a 3×3 and a 1×1 convolution inside a residual sum.

    Args:
        inputs: Channels read.
        widths: Width of each convolution.
        stride: Step of the 3×3 convolution.
        shortcut: What takes the inputs to the output's shape; None where they agree.
    """

    def __init__(self, inputs: int, widths: Sequence[int], stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        first, second, third = widths
        self.layer1 = ConvNormReLU(inputs, first, kernel_size=1)
        self.layer2 = ConvNormReLU(first, second, kernel_size=3, stride=stride)
        self.layer3 = ConvNormReLU(second, third, kernel_size=1, has_activation=False)
        self.sum = ResidualSum(shortcut, has_norm=False)

    def forward(self, features: Tensor) -> Tensor:
        """[batch, inputs, rows, columns] → [batch, widths[-1], rows / stride, columns / stride]."""
        return F.relu(self.sum(self.layer3(self.layer2(self.layer1(features))), features))


def resnet(depth: int, *, classes: int = 10, image_channels: int = 3) -> ResNet:
    """The unpruned CIFAR ResNet with that many layers: 20, 32, 44, 56, 110 (basic blocks) or 164 (bottlenecks).

    Raises:
        ModelError: There is none of that depth.
    """
    return ResNet(ResNetShape.unpruned(depth), classes=classes, image_channels=image_channels)
