"""The paper's ResNets (Dong & Yang, 2019, arXiv:1905.09717, section 4), at any widths and depths.

They are plain networks, independent of the search. Their shape is a value (`ResNetShape`), so that the same code builds
the unpruned network and every derived one. torchvision's trained ResNets can be converted to the same form.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from transprune.errors import ModelError
from transprune.options import at_least


class ResNet(nn.Module):
    """A stem, stages of residual blocks, each at half the resolution of the one before, global pooling, a classifier.

    Args:
        shape: Widths and depths.
        classes: Outputs of the classifier.
        image_channels: Channels of the images.
    """

    def __init__(self, shape: ResNetShape, *, classes: int = 10, image_channels: int = 3) -> None:
        super().__init__()
        if shape.style == "imagenet":
            self.stem = ConvNormReLU(image_channels, shape.stem, kernel_size=7, stride=2)
            self.stem_pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.stem = ConvNormReLU(image_channels, shape.stem, kernel_size=3)
            self.stem_pool = nn.Identity()
        self.stages = nn.ModuleList(_stages(shape))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(shape.last_width, classes)
        initialise(self)

    def features(self, images: Tensor) -> Tensor:
        """The classifier's inputs [batch, width] for images [batch, channels, rows, columns]."""
        features: Tensor = self.stem_pool(self.stem(images))
        for stage in self.stages:
            features = stage(features)
        pooled: Tensor = self.pool(features)
        return pooled.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] for images [batch, channels, rows, columns]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def _stages(shape: ResNetShape) -> Iterator[nn.Sequential]:
    block = BasicBlock if shape.block == "basic" else Bottleneck
    inputs = shape.stem
    for index, stage in enumerate(shape.stages):
        blocks: list[nn.Module] = []
        for position, widths in enumerate(stage):
            stride = 2 if index > 0 and position == 0 else 1
            shortcut = _shortcut(shape, inputs, widths[-1], stride)
            has_norm = shape.block == "basic" or shape.style == "imagenet"
            blocks.append(block(inputs, widths, stride, ResidualSum(shortcut, has_norm=has_norm)))
            inputs = widths[-1]
        yield nn.Sequential(*blocks)


def _shortcut(shape: ResNetShape, inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """The module that brings a block's input to the shape of its output; None if the shapes agree."""
    if stride > 1:
        has_norm = shape.style == "imagenet"
        if shape.halved_by == "stride":
            return projection(inputs, outputs, has_norm=has_norm, stride=stride)
        return nn.Sequential(nn.AvgPool2d(stride), *projection(inputs, outputs, has_norm=has_norm))
    return projection(inputs, outputs, has_norm=shape.has_shortcut_norm) if inputs != outputs else None


class ConvNormReLU(nn.Module):
    """A convolution without bias, a batch norm, and an optional ReLU."""

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
        inputs: Input channels.
        widths: Width of each convolution.
        stride: Stride of the first convolution.
        residual_sum: Adds the inputs, through a shortcut if the shapes differ.
    """

    def __init__(self, inputs: int, widths: Sequence[int], stride: int, residual_sum: ResidualSum) -> None:
        super().__init__()
        first, second = widths
        self.layer1 = ConvNormReLU(inputs, first, kernel_size=3, stride=stride)
        self.layer2 = ConvNormReLU(first, second, kernel_size=3, has_activation=False)
        self.sum = residual_sum

    def forward(self, features: Tensor) -> Tensor:
        """[batch, inputs, rows, columns] → [batch, widths[-1], rows / stride, columns / stride]."""
        return F.relu(self.sum(self.layer2(self.layer1(features)), features))


class Bottleneck(nn.Module):
    """A 1×1, a 3×3 and a 1×1 convolution inside a residual sum.

    Args:
        inputs: Input channels.
        widths: Width of each convolution.
        stride: Stride of the 3×3 convolution.
        residual_sum: Adds the inputs, through a shortcut if the shapes differ.
    """

    def __init__(self, inputs: int, widths: Sequence[int], stride: int, residual_sum: ResidualSum) -> None:
        super().__init__()
        first, second, third = widths
        self.layer1 = ConvNormReLU(inputs, first, kernel_size=1)
        self.layer2 = ConvNormReLU(first, second, kernel_size=3, stride=stride)
        self.layer3 = ConvNormReLU(second, third, kernel_size=1, has_activation=False)
        self.sum = residual_sum

    def forward(self, features: Tensor) -> Tensor:
        """[batch, inputs, rows, columns] → [batch, widths[-1], rows / stride, columns / stride]."""
        return F.relu(self.sum(self.layer3(self.layer2(self.layer1(features))), features))


def resnet(depth: int, *, classes: int | None = None, image_channels: int = 3, halved_by: Halving = "pool") -> ResNet:
    """The unpruned ResNet with this many layers.

    Args:
        depth: 20, 32, 44, 56, 110 or 164 for small images such as CIFAR's; 18, 34 or 50 for images such as ImageNet's.
        classes: Outputs of the classifier; None: 10 for CIFAR's networks, 1000 for ImageNet's.
        image_channels: Channels of the images.
        halved_by: As in `ResNetShape.halved_by`.

    Raises:
        ModelError: No ResNet has this depth.
    """
    shape = ResNetShape.unpruned(depth, halved_by=halved_by)
    if classes is None:
        classes = 10 if shape.style == "cifar" else 1000
    at_least("classes", classes, 1)
    at_least("image_channels", image_channels, 1)
    return ResNet(shape, classes=classes, image_channels=image_channels)


Style = Literal["cifar", "imagenet"]
Block = Literal["basic", "bottleneck"]
Halving = Literal["pool", "stride"]
STAGE_WIDTHS: dict[Style, tuple[int, ...]] = {"cifar": (16, 32, 64), "imagenet": (64, 128, 256, 512)}
CONVOLUTIONS: dict[Block, int] = {"basic": 2, "bottleneck": 3}
EXPANSION = 4
IMAGENET_BLOCKS: dict[int, tuple[Block, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
}


@dataclass(frozen=True)
class ResNetShape:
    """Widths and depths of a ResNet."""

    block: Block
    """`basic`: two 3×3 convolutions; `bottleneck`: 1×1, 3×3 and 1×1."""
    stem: int
    """Width of the first convolution."""
    stages: tuple[tuple[tuple[int, ...], ...], ...]
    """Width of every convolution: `stages[stage][block][convolution]`."""
    style: Style = "cifar"
    """`cifar`: a 3×3 stem, and no batch norm on shortcuts that halve the resolution; `imagenet`: a 7×7 stem of stride 2
    with max pooling, and a batch norm on every shortcut that changes the shape."""
    has_shortcut_norm: bool = True
    """Whether a shortcut that only changes the width ends in a batch norm. In the paper's counts it does, except in
    derived CIFAR networks of bottlenecks."""
    halved_by: Halving = "pool"
    """How shortcuts halve the resolution: `pool`, average pooling (the paper), or `stride`, the stride of their 1×1
    convolution (torchvision). The costs are equal."""

    @classmethod
    def unpruned(cls, depth: int, *, halved_by: Halving = "pool") -> ResNetShape:
        """The shape of the unpruned network with this many layers.

        Args:
            depth: 18, 34 or 50 (ImageNet); 164 (CIFAR, bottlenecks); 20, 32, 44, 56, 110 and others of the form 6n + 2
                (CIFAR, basic blocks).
            halved_by: As the field.

        Raises:
            ModelError: No ResNet has this depth.
        """
        if depth in IMAGENET_BLOCKS:
            block, blocks = IMAGENET_BLOCKS[depth]
            return cls.uniform("imagenet", block, blocks, halved_by=halved_by)
        if depth == 164:
            return cls.uniform("cifar", "bottleneck", (18, 18, 18), halved_by=halved_by)
        if depth >= 8 and (depth - 2) % 6 == 0:
            return cls.uniform("cifar", "basic", ((depth - 2) // 6,) * 3, halved_by=halved_by)
        raise ModelError(
            f"cannot build a ResNet of {depth} layers; expected 18, 34 or 50 (ImageNet), 6n + 2 such as 20, 32, 44, "
            f"56, 110 (CIFAR, basic blocks) or 164 (CIFAR, bottlenecks)"
        )

    @classmethod
    def uniform(cls, style: Style, block: Block, blocks: Sequence[int], *, halved_by: Halving = "pool") -> ResNetShape:
        """The shape with this many blocks in each stage, at the full widths of the style."""
        widths = STAGE_WIDTHS[style]
        inner = [(width, width) if block == "basic" else (width, width, EXPANSION * width) for width in widths]
        stages = tuple((each,) * count for each, count in zip(inner, blocks, strict=True))
        return cls(block=block, stem=widths[0], stages=stages, style=style, halved_by=halved_by)

    @classmethod
    def from_paper(
        cls,
        block: Block,
        widths: Sequence[int],
        blocks: Sequence[int],
        depths: Sequence[int] | None = None,
        *,
        style: Style = "cifar",
    ) -> ResNetShape:
        """The shape from the paper's notation; widths need not be candidates of a search.

        Args:
            block: Kind of the blocks.
            widths: [image channels, stem, then every main-path convolution in order, also those of dropped blocks].
            blocks: Number of blocks in each stage before any is dropped.
            depths: Number of blocks kept in each stage; None: all.
            style: As the field.

        Raises:
            ModelError: The numbers do not fit together.
        """
        if block not in CONVOLUTIONS:
            raise ModelError(f"cannot read a ResNet of {block!r} blocks: expected {' or '.join(CONVOLUTIONS)}")
        each = CONVOLUTIONS[block]
        depths = blocks if depths is None else depths
        if len(widths) != 2 + each * sum(blocks) or len(depths) != len(blocks):
            raise ModelError(
                f"cannot read a {block} ResNet from {len(widths)} widths and {len(depths)} depths; expected "
                f"{2 + each * sum(blocks)} widths and {len(blocks)} depths for stages of {list(blocks)} blocks"
            )
        if min(widths) < 1 or not all(1 <= kept <= count for kept, count in zip(depths, blocks, strict=True)):
            raise ModelError(
                f"cannot read a {block} ResNet that keeps {list(depths)} blocks and whose narrowest width is "
                f"{min(widths)}; expected widths of at least 1, and 1 to {list(blocks)} blocks"
            )
        rest = iter(widths[2:])
        stages = [[tuple(next(rest) for _ in range(each)) for _ in range(count)] for count in blocks]
        kept_stages = tuple(tuple(stage[:kept]) for stage, kept in zip(stages, depths, strict=True))
        has_norm = style == "imagenet" or block == "basic"
        return cls(block=block, stem=widths[1], stages=kept_stages, style=style, has_shortcut_norm=has_norm)

    @property
    def last_width(self) -> int:
        """Input channels of the classifier."""
        return self.stages[-1][-1][-1]


OUTSIDE_STAGES = {"conv1": "stem.conv", "bn1": "stem.norm", "fc": "classifier"}
"""torchvision's names of the layers outside the stages, with ours."""
IN_STAGE = re.compile(r"layer(\d+)\.(\d+)\.(conv|bn|downsample\.)(\d+)\.(\w+)")
"""torchvision's names of weights in a stage: stage (from 1), block, kind of layer, its number, parameter or buffer."""


def is_torchvision_resnet(names: Iterable[str]) -> bool:
    """Whether these are the names of the weights of one of torchvision's ResNets."""
    return {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight"} <= set(names)


def renamed(weights: Mapping[str, Tensor], *, halved_by: Halving) -> dict[str, Tensor]:
    """Renames torchvision's weights to our names.

    Args:
        weights: A state dict of one of torchvision's ResNets.
        halved_by: How our network's shortcuts halve the resolution.
    """
    return {_renamed(name, halved_by): value for name, value in weights.items()}


def _renamed(name: str, halved_by: Halving) -> str:
    found = IN_STAGE.fullmatch(name)
    if found is None:
        layer, _, parameter = name.partition(".")
        return f"{OUTSIDE_STAGES.get(layer, layer)}.{parameter}"
    stage, block, kind, number, parameter = int(found[1]) - 1, *found.groups()[1:]
    if kind == "downsample.":
        # A shortcut that pools does so first, which shifts its layers by one; the first stage halves nothing.
        place = int(number) + (halved_by == "pool" and stage > 0)
        return f"stages.{stage}.{block}.sum.shortcut.{place}.{parameter}"
    return f"stages.{stage}.{block}.layer{number}.{'conv' if kind == 'conv' else 'norm'}.{parameter}"


def pooled_shortcuts(network: ResNet) -> tuple[str, ...]:
    """Names of the weights on shortcuts that pool here, but were trained with a stride in torchvision."""
    return tuple(
        f"{name}.1.weight"
        for name, module in network.named_modules()
        if isinstance(module, nn.Sequential) and isinstance(module[0], nn.AvgPool2d)
    )


def resnet_from_torchvision(model: nn.Module) -> ResNet:
    """Converts a ResNet of torchvision to our form, which gives it the paper's search space.

    Args:
        model: A `torchvision.models.ResNet` of basic blocks or bottlenecks, with any number of blocks; untouched.

    Returns:
        A network that computes the same.

    Raises:
        ModelError: It is another network, or a variant with other convolutions (ResNeXt, wide, dilated).

    Example:
        >>> from torchvision import models
        >>> network = resnet_from_torchvision(models.resnet18())
    """
    weights = model.state_dict()
    if not is_torchvision_resnet(weights):
        raise _other_network(model, "it does not have their layers")
    network = ResNet(
        _shape_of(weights), classes=len(weights["fc.weight"]), image_channels=weights["conv1.weight"].shape[1]
    )
    try:
        network.load_state_dict(renamed(weights, halved_by="stride"))
    except RuntimeError as error:
        raise _other_network(model, str(error).splitlines()[1].strip()) from error
    if not _compute_the_same(model, network):
        raise _other_network(model, "with the same weights it computes something else")
    return network.train(model.training)


def _shape_of(weights: Mapping[str, Tensor]) -> ResNetShape:
    places = {(int(found[1]), int(found[2])) for found in map(IN_STAGE.fullmatch, weights) if found is not None}
    blocks = [sum(stage == each for stage, _ in places) for each in sorted({stage for stage, _ in places})]
    block: Block = "bottleneck" if "layer1.0.conv3.weight" in weights else "basic"
    return ResNetShape.uniform("imagenet", block, blocks, halved_by="stride")


@torch.no_grad()
def _compute_the_same(model: nn.Module, network: ResNet) -> bool:
    images = torch.randn(1, network.stem.conv.in_channels, 64, 64, generator=torch.Generator().manual_seed(0))
    expected, found = (copy.deepcopy(each).cpu().eval()(images) for each in (model, network))
    return torch.allclose(expected, found, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def _other_network(model: nn.Module, why: str) -> ModelError:
    return ModelError(
        f"cannot take over this {type(model).__name__} as one of the paper's ResNets: {why}; expected torchvision's "
        "resnet18, resnet34, resnet50, resnet101 or resnet152 (`inspect` reads other networks as they are)"
    )


class ResidualSum(nn.Module):
    """Adds a block's output to its input, through a shortcut.

    In the paper, every convolution of a residual block has its own width, even the last. The sides of a plain `a + b`
    must have equal widths. The sides of this module may differ: shrinking then puts a 1×1 projection into `shortcut`.
    Use it in your own networks to give their residual blocks the same freedom.

    Source: Dong & Yang, 2019, arXiv:1905.09717, section 3.2.

    Args:
        shortcut: The module on the shortcut; None: the identity.
        has_norm: Whether a projection that shrinking adds ends in a batch norm.
    """

    def __init__(self, shortcut: nn.Module | None = None, *, has_norm: bool = True) -> None:
        super().__init__()
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.has_norm = has_norm

    def forward(self, main: Tensor, inputs: Tensor) -> Tensor:
        """The sum of the block's output and, after the shortcut, its input, both [batch, channels, ...]."""
        total: Tensor = main + self.shortcut(inputs)
        return total


def projection(inputs: int, outputs: int, *, has_norm: bool, stride: int = 1) -> nn.Sequential:
    """A 1×1 convolution that brings a shortcut to another width, with an optional batch norm."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)]
    if has_norm:
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers)


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Draws new weights for a network, in place.

    Convolutions: Kaiming normal over the fan-out. Linear layers: normal with standard deviation 0.01. Biases of both:
    zero. Other modules: their own `reset_parameters` (attention: `_reset_parameters`); parameters of modules without
    either keep their values. Weights that parametrizations or hooks compute are drawn as well: what they are computed
    from is set so that they come out as drawn, or as near to it as their form allows.
    """
    with parametrize.cached():  # so that a computed weight is one tensor, into which is drawn
        for module in model.modules():
            computed = {name: getattr(module, name) for name in _computed(module)}
            before = {name: tensor._version for name, tensor in computed.items()}
            _draw(module)
            for name, tensor in computed.items():
                if tensor._version != before[name]:
                    _put_behind(module, name, tensor)


def _draw(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    else:
        for name in ("reset_parameters", "_reset_parameters"):
            if callable(reset := getattr(module, name, None)):
                reset()
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _computed(module: nn.Module) -> list[str]:
    """The tensors of a module that are computed from parameters, by a parametrization or by a hook."""
    if parametrize.is_parametrized(module):
        return list(cast(nn.ModuleDict, module.parametrizations))
    names = [name.removesuffix("_orig").removesuffix("_v") for name in module._parameters]
    return [name for name in names if isinstance(vars(module).get(name), Tensor)]


def _put_behind(module: nn.Module, name: str, value: Tensor) -> None:
    """Sets what a tensor is computed from, so that it comes out as the value."""
    if parametrize.is_parametrized(module, name):
        try:
            setattr(module, name, value)
        except Exception:  # a parametrization of one's own need not have a `right_inverse`, or one for any value
            originals = cast(nn.ModuleDict, module.parametrizations)[name].parameters(recurse=False)
            for original in originals:
                if original.shape == value.shape:
                    original.copy_(value)
    elif isinstance(length := getattr(module, f"{name}_g", None), nn.Parameter):  # the old form of weight_norm
        cast(Tensor, getattr(module, f"{name}_v")).copy_(value)
        along = [axis for axis, size in enumerate(length.shape) if size == 1] or None
        length.copy_(torch.linalg.vector_norm(value, dim=along, keepdim=length.dim() > 0).view_as(length))
    else:  # the old form of spectral_norm, and masks
        cast(Tensor, getattr(module, f"{name}_orig")).copy_(value)
