"""A zoo of the ways in which today's networks are put together: concatenations, attention, computed weights, and more.

Behind a few channels stands no ReLU, which might silence them all, and with them the gradients that tests look for.

Every case is a network and the inputs of its forward. Unless told otherwise these are images [batch, 3, 8, 8], and the
network gives logits [batch, 5].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapes import SmallUNet
from small_networks import CLASSES, ConvNorm, PlainBlock, example
from transprune.reading.inspection import inspect
from transprune.space import SearchSpace

Inputs = Callable[[int], tuple[Tensor, ...]]


class Around(nn.Module):
    """A stem, some parts one after the other, global average pooling and the classifier."""

    def __init__(self, width: int, *parts: nn.Module, stem: int = 8) -> None:
        super().__init__()
        self.stem, self.parts, self.head = ConvNorm(3, stem), nn.ModuleList(parts), nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for part in self.parts:
            features = part(features)
        return self.head(features.mean(dim=(2, 3)))


# Concatenations, slices and shuffles.


class DenseLayer(nn.Module):
    """What comes in and a few channels made of it, one after the other."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features, self.conv(self.norm(features).relu())], dim=1)


def dense() -> nn.Module:
    return Around(10, DenseLayer(6, 4), DenseLayer(10, 4), nn.Conv2d(14, 10, 1), stem=6)


class Branches(nn.Module):
    """Branches of other kernels, concatenated."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one, self.three = nn.Conv2d(inputs, 4, 1), ConvNorm(inputs, 6)
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), nn.Conv2d(inputs, 2, 1))

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self.one(features), self.three(features), self.pooled(features)], dim=1)


def inception() -> nn.Module:
    return Around(12, Branches(8), nn.GELU(), ConvNorm(12, 12))


class Shuffled(nn.Module):
    """Half of the channels go through convolutions, and the halves are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.inside = nn.Sequential(ConvNorm(half, half), nn.Conv2d(half, half, 3, padding=1, groups=half))

    def forward(self, features: Tensor) -> Tensor:
        first, second = features.chunk(2, dim=1)
        joined = torch.cat([first, self.inside(second)], dim=1)
        batch, channels, rows, columns = joined.shape
        return joined.view(batch, 2, channels // 2, rows, columns).transpose(1, 2).reshape(joined.shape)


def shuffled() -> nn.Module:
    return Around(8, Shuffled(8), ConvNorm(8, 8))


class CrossStage(nn.Module):
    """One part goes around the blocks that the other goes through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand, self.out = ConvNorm(width, width), nn.Conv2d(width, width, 1)
        self.blocks = nn.Sequential(PlainBlock(width // 2), PlainBlock(width // 2))

    def forward(self, features: Tensor) -> Tensor:
        features = self.expand(features)
        around, through = features.split(features.shape[1] // 2, dim=1)
        return self.out(torch.cat([self.blocks(through), around], dim=1))


def cross_stage() -> nn.Module:
    return Around(8, CrossStage(8))


class Res2Net(nn.Module):
    """Slices of channels, each convolved together with the one before."""

    def __init__(self, width: int, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        self.convs = nn.ModuleList(nn.Conv2d(width // scale, width // scale, 3, padding=1) for _ in range(scale - 1))

    def forward(self, features: Tensor) -> Tensor:
        first, *slices = features.chunk(self.scale, dim=1)
        handed_on = [first]
        for conv, each in zip(self.convs, slices, strict=True):
            handed_on.append(conv(each + handed_on[-1]).relu())
        return torch.cat(handed_on, dim=1)


def res2net() -> nn.Module:
    return Around(8, Res2Net(16), nn.Conv2d(16, 8, 1), stem=16)


class Ghost(nn.Module):
    """Channels and cheap versions of them, of which the last are cut off."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.primary = nn.Conv2d(inputs, outputs // 2 + 1, 1)
        self.cheap = nn.Conv2d(outputs // 2 + 1, outputs // 2 + 1, 3, padding=1, groups=outputs // 2 + 1)

    def forward(self, features: Tensor) -> Tensor:
        primary = self.primary(features)
        return torch.cat([primary, self.cheap(primary)], dim=1)[:, : self.outputs]


def ghost() -> nn.Module:
    return Around(8, Ghost(8, 8), ConvNorm(8, 8))


# Gates.


class SqueezeExcitation(nn.Module):
    """A gate for every channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 2, 1), nn.Conv2d(width // 2, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        return features * self.up(F.silu(self.down(features.mean((2, 3), keepdim=True)))).sigmoid()


def squeeze_excitation() -> nn.Module:
    return Around(8, ConvNorm(8, 8), SqueezeExcitation(8))


class ChannelAttention(nn.Module):
    """A gate for every channel, made of its neighbours by a convolution along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        gates = self.conv(features.mean((2, 3)).unsqueeze(1)).sigmoid()
        return features * gates.view(features.shape[0], -1, 1, 1)


def channel_attention() -> nn.Module:
    return Around(8, ConvNorm(8, 8), ChannelAttention())


class SplitAttention(nn.Module):
    """Two versions of the channels, weighted against each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.conv, self.norm = (
            nn.Conv2d(width, 2 * width, 3, padding=1, groups=2, bias=False),
            nn.BatchNorm2d(2 * width),
        )
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, 2 * width, 1)

    def forward(self, features: Tensor) -> Tensor:
        features = self.norm(self.conv(features)).relu()
        batch, channels, rows, columns = features.shape
        pair = features.view(batch, 2, channels // 2, rows, columns)
        gates = self.up(F.silu(self.down(pair.sum(1).mean((2, 3), keepdim=True))))
        gates = gates.view(batch, 2, channels // 2, 1, 1).softmax(1)
        return (pair * gates).sum(1)


def split_attention() -> nn.Module:
    return Around(8, SplitAttention(8), ConvNorm(8, 8))


class SelectiveKernels(nn.Module):
    """Two convolutions of other kernels, stacked and weighted against each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.three = nn.Conv2d(width, width, 3, padding=1)
        self.five = nn.Conv2d(width, width, 3, padding=2, dilation=2)
        self.gates = nn.Linear(width, 2)

    def forward(self, features: Tensor) -> Tensor:
        paths = torch.stack([self.three(features), self.five(features)], dim=1)
        gates = self.gates(paths.sum(1).mean((2, 3))).softmax(1)
        return (paths * gates[:, :, None, None, None]).sum(1)


def selective_kernels() -> nn.Module:
    return Around(8, SelectiveKernels(8), ConvNorm(8, 8))


class Gated(nn.Module):
    """Half of the channels gate the other half."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 1)

    def forward(self, features: Tensor) -> Tensor:
        return F.glu(self.conv(features), dim=1)


def gated() -> nn.Module:
    return Around(8, Gated(8), ConvNorm(8, 8))


class GatedByANumber(Gated):
    """Writes down how many channels gate."""

    def forward(self, features: Tensor) -> Tensor:
        features = self.conv(features)
        return features[:, :8] * features[:, 8:].sigmoid()


def gated_by_a_number() -> nn.Module:
    return Around(8, GatedByANumber(8), ConvNorm(8, 8))


# Norms and scales.


class ChannelsLast(nn.Module):
    """A ConvNeXt block: layer norm over channels, an expansion, a scale for every channel, and a sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.linspace(0.5, 1, width))

    def forward(self, features: Tensor) -> Tensor:
        inside = self.norm(self.mix(features).permute(0, 2, 3, 1))
        inside = self.down(F.gelu(self.up(inside))) * self.scale
        return features + inside.permute(0, 3, 1, 2)


def channels_last() -> nn.Module:
    return Around(8, nn.Sequential(ChannelsLast(8), ChannelsLast(8)), ConvNorm(8, 8))


def one_group_normed() -> nn.Module:
    return Around(8, nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(1, 8), nn.ReLU(), nn.Conv2d(8, 8, 1))


def group_normed() -> nn.Module:
    return Around(8, nn.Conv2d(8, 12, 3, padding=1), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 8, 1))


def instance_normed() -> nn.Module:
    norms = nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.InstanceNorm2d(8)
    return Around(8, nn.Conv2d(8, 8, 3, padding=1), norms[0], nn.PReLU(8), nn.Conv2d(8, 8, 1), norms[1])


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised for every output."""

    def forward(self, features: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        mean, spread = flat.mean(1, keepdim=True), flat.std(1, keepdim=True)
        weight = ((flat - mean) / (spread + 1e-5)).view_as(self.weight)
        return F.conv2d(features, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def weight_standardised() -> nn.Module:
    return Around(8, Standardised(8, 8, 3, padding=1), nn.GroupNorm(1, 8), nn.ReLU(), Standardised(8, 8, 1))


class BlurPool(nn.Module):
    """Every channel is blurred by a kernel that is a buffer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        kernel = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (kernel[:, None] * kernel / 16).repeat(width, 1, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(features, self.kernel, stride=2, padding=1, groups=features.shape[1])


def blurred() -> nn.Module:
    return Around(8, ConvNorm(8, 8), BlurPool(8), ConvNorm(8, 8))


# Convolutions of other kinds.


def next_blocks() -> nn.Module:
    return Around(
        8, ConvNorm(8, 16), nn.Conv2d(16, 16, 3, padding=1, groups=8), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1)
    )


def multiplied_depthwise() -> nn.Module:
    return Around(8, nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(16, 8, 1))


def pixels_shuffled() -> nn.Module:
    up = nn.Conv2d(8, 16, 3, padding=1), nn.PixelShuffle(2)
    return Around(6, *up, ConvNorm(4, 6), nn.PixelUnshuffle(2), nn.Conv2d(24, 6, 1))


def one_dimensional() -> nn.Module:
    convolutions = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 6, 3, stride=2)
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, CLASSES))


def three_dimensional() -> nn.Module:
    convolutions = nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 6, 3, groups=2)
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, CLASSES))


# Attention.


class FusedAttention(nn.Module):
    """Attention whose queries, keys and values are made together."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.features = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, -1, self.features).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        return self.proj(attended.transpose(1, 2).reshape(batch, count, -1))


class TorchAttention(nn.Module):
    """Attention of torch's own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inside = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inside(tokens, tokens, tokens, need_weights=False)[0]


class PositionedAttention(nn.Module):
    """Attention by products of matrices, with a table of what each head adds for each distance."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn(2 * tokens - 1, heads))
        places = torch.arange(tokens)
        self.register_buffer("distances", places[:, None] - places[None, :] + tokens - 1)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape

        def by_head(layer: nn.Linear) -> Tensor:
            return layer(tokens).view(batch, count, self.heads, width // self.heads).transpose(1, 2)

        scores = by_head(self.query) @ by_head(self.key).transpose(-2, -1) * (width // self.heads) ** -0.5
        scores = scores + self.table[self.distances.view(-1)].view(count, count, -1).permute(2, 0, 1)
        attended = scores.softmax(-1) @ by_head(self.value)
        return self.proj(attended.transpose(1, 2).reshape(batch, count, -1))


class NamedAttention(nn.Module):
    """Attention by sums over named axes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Parameter(torch.randn(width, heads, width // heads) / width**0.5) for _ in range(3)
        )
        self.proj = nn.Parameter(torch.randn(heads, width // heads, width) / width**0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (torch.einsum("btc,chf->bhtf", tokens, each) for each in (self.query, self.key, self.value))
        scores = torch.einsum("bhtf,bhsf->bhts", query, key).softmax(-1)
        return torch.einsum("bhtf,hfc->btc", torch.einsum("bhts,bhsf->bhtf", scores, value), self.proj)


class Encoder(nn.Module):
    """A block of a transformer: attention and an expansion, each normed before and added."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), attention
        self.expansion = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.first(tokens))
        return tokens + self.expansion(self.second(tokens))


class VisionTransformer(nn.Module):
    """Patches and a class token, which there is one of for every image of the batch."""

    def __init__(self, attention: Callable[[], nn.Module], width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.Sequential(*(Encoder(width, attention()) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(images.shape[0], -1, -1), patches], dim=1) + self.places
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def vision_transformer() -> nn.Module:
    return VisionTransformer(lambda: FusedAttention(8, 4))


def torchs_attention() -> nn.Module:
    return VisionTransformer(lambda: TorchAttention(8, 4))


def positioned_attention() -> nn.Module:
    return VisionTransformer(lambda: PositionedAttention(8, 4, tokens=5))


def named_attention() -> nn.Module:
    return VisionTransformer(lambda: NamedAttention(8, 4))


class TextNetwork(nn.Module):
    """Words by number to logits, with one table of words for the first layer and the last."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inside = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(F.relu(self.inside(self.words(words))))


class Mixer(nn.Module):
    """Linear layers along the tokens and along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.tokens = nn.Sequential(nn.Linear(16, 6), nn.GELU(), nn.Linear(6, 16))
        self.channels = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2)
        tokens = (tokens + self.tokens(tokens)).transpose(1, 2)
        return self.head((tokens + self.channels(tokens)).mean(1))


class ChannelsAmongThemselves(nn.Module):
    """Every channel reads all others, weighted by how alike they are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = ConvNorm(3, 8), ConvNorm(8, 8), nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body(self.stem(images)).flatten(2)
        alike = (maps @ maps.transpose(1, 2) / maps.shape[2]).softmax(-1)
        return self.head((alike @ maps).mean(2))


# Forwards with habits.


class TwoOutputs(nn.Module):
    """Logits, a smaller map of features, and a state that is the same for every image, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.map = ConvNorm(3, 8), ConvNorm(8, 8), nn.Conv2d(8, 2, 1)
        self.head, self.state = nn.Linear(8, CLASSES), nn.Parameter(torch.randn(1, 3))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(self.stem(images))
        state = self.state.expand(images.shape[0], -1).tanh()
        return {"logits": self.head(features.mean((2, 3))), "map": self.map(features), "state": state}


class TwoInputs(nn.Module):
    """Images and figures about them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.figures = ConvNorm(3, 8), ConvNorm(8, 6), nn.Linear(4, 6)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, images: Tensor, figures: Tensor) -> Tensor:
        features = self.body(self.stem(images)).mean((2, 3))
        return self.head(torch.cat([features, self.figures(figures).relu()], dim=1))


class AuxiliaryHead(nn.Module):
    """A second head that runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = ConvNorm(3, 8), ConvNorm(8, 8)
        self.head, self.auxiliary = nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.stem(images)
        logits = self.head(self.body(features).mean((2, 3)))
        return (logits, self.auxiliary(features.mean((2, 3)))) if self.training else logits


class Positions(nn.Module):
    """Adds maps of rows and columns that its forward makes, and a gate of ones."""

    def forward(self, features: Tensor) -> Tensor:
        batch, channels, rows, columns = features.shape
        down = torch.linspace(-1, 1, rows).view(1, 1, rows, 1).expand(batch, 1, rows, columns)
        across = torch.linspace(-1, 1, columns).view(1, 1, 1, columns).expand(batch, 1, rows, columns)
        gates = torch.ones(batch, channels, 1, 1) / 2
        return torch.cat([features * gates, down, across], dim=1)


def positions() -> nn.Module:
    return Around(8, Positions(), ConvNorm(10, 8))


class Autocast(nn.Module):
    """A region in which mixed precision is switched off."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside, self.after = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            inside = self.inside(features.float()).relu()
        return self.after(inside + 1)


def autocast() -> nn.Module:
    return Around(8, Autocast(8))


class SharedHead(nn.Module):
    """One convolution and its norm, run on maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.shared = ConvNorm(3, 8), ConvNorm(8, 8, stride=2), ConvNorm(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        large = self.stem(images)
        both = [self.shared(each).mean((2, 3)) for each in (large, self.down(large))]
        return self.head(both[0] + both[1])


@dataclass(frozen=True)
class Case:
    """A network of the zoo."""

    make: Callable[[], nn.Module]
    inputs: Inputs
    is_traced: bool = False
    """Whether its own forward cannot follow every cut."""


def _images(batch: int) -> tuple[Tensor, ...]:
    return (example(batch),)


def _random(*shape: int) -> Inputs:
    return lambda batch: (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)),)


def _words(batch: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 11, (batch, 6), generator=torch.Generator().manual_seed(0)),)


def _images_and_figures(batch: int) -> tuple[Tensor, ...]:
    return example(batch), torch.randn(batch, 4, generator=torch.Generator().manual_seed(1))


ANY: dict[str, Case] = {
    **{
        make.__name__: Case(make, _images)
        for make in (
            *(dense, inception, shuffled, cross_stage, res2net, squeeze_excitation, channel_attention),
            *(split_attention, selective_kernels, gated, channels_last, one_group_normed, group_normed),
            *(instance_normed, weight_standardised, blurred, next_blocks, multiplied_depthwise, pixels_shuffled),
            *(vision_transformer, named_attention, Mixer, ChannelsAmongThemselves),
            *(TwoOutputs, AuxiliaryHead, positions, autocast, SharedHead, ghost, torchs_attention),
            positioned_attention,
        )
    },
    "gated_by_a_number": Case(gated_by_a_number, _images, is_traced=True),
    "u_net": Case(SmallUNet, _random(1, 8, 8)),
    "one_dimensional": Case(one_dimensional, _random(3, 9)),
    "three_dimensional": Case(three_dimensional, _random(2, 4, 4, 4)),
    "TextNetwork": Case(TextNetwork, _words),
    "TwoInputs": Case(TwoInputs, _images_and_figures),
}


@cache
def any_network(name: str) -> nn.Module:
    """A network of the zoo, in evaluation mode, whose norms all differ. Not to be changed."""
    torch.manual_seed(0)
    network = ANY[name].make()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, value in network.state_dict().items():
            if "running_var" in path:
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif value.dim() == 1:
                value.copy_(torch.randn(value.shape, generator=generator))
    return network.eval()


@cache
def any_space(name: str, ratios: tuple[float, ...] = (0.5, 1.0)) -> SearchSpace:
    """The search space of a network of the zoo."""
    return inspect(any_network(name), ANY[name].inputs(2), ratios=ratios)


SEVERAL_PARTS = (
    "dense",
    "inception",
    "ghost",
    "cross_stage",
    "TwoInputs",
    "vision_transformer",
    "positioned_attention",
)
"""Networks of the zoo whose layers read several groups at once, or that multiply them, with few architectures."""
