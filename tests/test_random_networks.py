"""Networks put together at random keep every promise: costs, outputs, zeroing and training."""

import copy
from collections.abc import Callable

import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import oracles
from any_networks import (
    BlurPool,
    Branches,
    ChannelAttention,
    ChannelsLast,
    CrossStage,
    DenseLayer,
    Gated,
    Ghost,
    Positions,
    Res2Net,
    SelectiveKernels,
    Shuffled,
    SplitAttention,
    SqueezeExcitation,
    Standardised,
)
from hard_networks import SumInline
from small_networks import CLASSES, ConvNorm, CoupledBlock, FreeBlock, PlainBlock, example
from test_any_network import assert_close, outputs_of, zeroed
from transprune.architecture import Architecture
from transprune.reading.inspection import inspect
from transprune.reading.macs import count_macs
from transprune.shrinking.shrink import kept_entries, shrink
from transprune.shrinking.sort import sort_channels
from transprune.tas.sampling import Selection
from transprune.tas.supernet import Supernet

PARTS: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], int]]] = {
    "conv": (lambda width: ConvNorm(width, 12), lambda _: 12),
    "bare conv": (lambda width: nn.Conv2d(width, 8, 1), lambda _: 8),
    "depthwise": (lambda width: nn.Conv2d(width, width, 3, padding=1, groups=width), lambda width: width),
    "grouped": (lambda width: nn.Conv2d(width, width, 3, padding=1, groups=4, bias=False), lambda width: width),
    "merging": (lambda width: nn.Conv2d(width, width // 2, 1, groups=2), lambda width: width // 2),
    "coupled": (CoupledBlock, lambda width: width),
    "free": (lambda width: FreeBlock(width, width), lambda width: width),
    "stage": (lambda width: nn.Sequential(*(PlainBlock(width) for _ in range(2))), lambda width: width),
    "free stage": (lambda width: nn.Sequential(*(FreeBlock(width, width) for _ in range(2))), lambda width: width),
    "dense": (lambda width: DenseLayer(width, 4), lambda width: width + 4),
    "branches": (Branches, lambda _: 12),
    "shuffled": (Shuffled, lambda width: width),
    "cross stage": (CrossStage, lambda width: width),
    "slices": (Res2Net, lambda width: width),
    "ghost": (lambda width: Ghost(width, 8), lambda _: 8),
    "gate": (SqueezeExcitation, lambda width: width),
    "neighbours": (lambda _: ChannelAttention(), lambda width: width),
    "splits": (SplitAttention, lambda width: width),
    "kernels": (SelectiveKernels, lambda width: width),
    "half": (Gated, lambda width: width),
    "channels last": (ChannelsLast, lambda width: width),
    "one group": (lambda width: nn.GroupNorm(1, width), lambda width: width),
    "groups": (lambda width: nn.GroupNorm(4, width), lambda width: width),
    "batch norm": (nn.BatchNorm2d, lambda width: width),
    "slopes": (nn.PReLU, lambda width: width),
    "standardised": (lambda width: Standardised(width, 8, 1), lambda _: 8),
    "blur": (BlurPool, lambda width: width),
    "up": (lambda width: nn.ConvTranspose2d(width, 8, 2, stride=2), lambda _: 8),
    "grouped up": (lambda width: nn.ConvTranspose2d(width, width, 3, padding=1, groups=2), lambda width: width),
    "pixels": (lambda _: nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2)), lambda width: width),
    "shuffle": (lambda _: nn.ChannelShuffle(2), lambda width: width),
    "positions": (lambda _: Positions(), lambda width: width + 2),
}
"""By name: a part for so many channels, and the channels it gives. All take multiples of 4, which a
convolution brings them back to."""


RESIZING = ("blur", "up")
"""Parts that change rows and columns."""


class Beside(nn.Module):
    """What comes in and what is made of it, one after the other."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self.inside(features), features], dim=1)


class Assembled(nn.Module):
    """A stem, parts in a row, a convolution, and a head; a part may be added to what comes in, or set beside it."""

    def __init__(self, ways: list[tuple[str, str]], *, is_flattened: bool) -> None:
        super().__init__()
        self.stem, width = ConvNorm(3, 8, stride=2), 8
        parts: list[nn.Module] = []
        for name, way in ways:
            make, outputs = PARTS[name]
            part, after = make(width), outputs(width)
            if way == "added" and name not in RESIZING and after == width:
                part = SumInline(part)
            elif way == "beside" and name not in RESIZING:
                part, after = Beside(part), after + width
            parts.append(part)
            width = after
            if width % 4 or width > 24:
                parts.append(nn.Conv2d(width, 8, 1))
                width = 8
        self.parts = nn.ModuleList([*parts, nn.Conv2d(width, 6, 1)])
        self.pool = nn.AdaptiveAvgPool2d(2 if is_flattened else 1)
        self.head = nn.Linear(6 * (4 if is_flattened else 1), CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for part in self.parts:
            features = part(features)
        return self.head(self.pool(features).flatten(1))


def assembled(ways: list[tuple[str, str]], *, is_flattened: bool) -> nn.Module:
    torch.manual_seed(0)
    network = Assembled(ways, is_flattened=is_flattened).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight.data, module.bias.data, module.running_mean):
                value.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return network


@settings(
    max_examples=16,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    ways=st.lists(
        st.tuples(st.sampled_from(sorted(PARTS)), st.sampled_from(["alone", "added", "beside"])), min_size=1, max_size=5
    ),
    is_flattened=st.booleans(),
)
def test_a_network_of_random_parts_keeps_every_promise(ways, is_flattened):
    images = (example(2),)
    network = assembled(ways, is_flattened=is_flattened)
    space = inspect(network, example(), ratios=(0.3, 0.5, 0.75, 1.0))
    event(f"{min(6, len(space.groups))} groups or more")

    def cut(architecture: Architecture) -> nn.Module:
        return shrink(network, architecture, example(), reading=space.reading)

    assert torch.equal(cut(space.full_architecture())(example(3)), network(example(3)))
    ordered = sort_channels(network, example(), reading=space.reading)
    assert_close(outputs_of(ordered, images), outputs_of(network, images), 1e-3)

    for architecture in (space.smallest_architecture(), space.random_architecture(len(ways))):
        student = cut(architecture)
        assert count_macs(student, example()) == space.macs(architecture)
        assert oracles.count_parameters(student) == space.params(architecture)
        student.train()(example(3)).sum().backward()
        assert all(value.grad is not None and value.grad.isfinite().all() for value in student.parameters())
        assert student.eval()(example(1)).shape == (1, CLASSES)

    architecture = space.random_architecture(1)
    student = cut(architecture).train()
    if not any(".shortcut." in name for name in student.state_dict()):
        supernet = Supernet(network, space, example(), alignment="pad").train()
        found = supernet(Selection.of(space, architecture), example(4))
        assert_close([found], outputs_of(copy.deepcopy(student), (example(4),)), 1e-3)

    free_sums = [layer for layer in space.layers if layer.operator == "projection"]
    if not free_sums:
        exact = {group.name for group in space.reading.groups if not group.is_inexact}
        architecture = Architecture({name: width for name, width in architecture.widths.items() if name in exact})
        masked = zeroed(network, kept_entries(network, architecture, example(), reading=space.reading))
        assert_close(outputs_of(cut(architecture), images), outputs_of(masked, images), 1e-3)
