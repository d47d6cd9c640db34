"""The networks of `make coverage` that are no classifiers of torchvision or timm: small forms of known architectures.

Detection, segmentation, volumes, video, flow, transformers (also of the transformers library, from configurations),
audio, recurrent, graph and generative networks, recommenders, reinforcement learning, and modules with every kind of
input and wrapper. Each is a function of no arguments that gives a network and its inputs.

    python benchmarks/other_networks.py        # prints the list
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from math import sqrt
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import transprune
from transformer_depth import CASES, Case
from transprune import Inputs
from transprune.reading.networks import switched
from transprune.training.detection import inputs_of_part

Build = Callable[[], tuple[nn.Module, Any]]


@dataclass(frozen=True)
class OtherNetwork:
    """One network of the list."""

    name: str
    family: str
    make: Build
    elsewhere: Callable[[], tuple[Any, ...]] | None = None
    """Inputs of other batch sizes and lengths, for networks whose students have to take them; None: not tried."""

    @property
    def size(self) -> str:
        """What the page says beside the name."""
        return self.family

    def build(self, seed: int = 0) -> tuple[nn.Module, Any]:
        """The network in evaluation mode, and its inputs; the same for the same seed."""
        torch.manual_seed(seed)
        network, inputs = self.make()
        return switched(network, training=False), inputs


FOUND: list[OtherNetwork] = []


def listed(family: str) -> Callable[[Build], Build]:
    """Adds a function that makes a network to the list."""

    def add(make: Build) -> Build:
        FOUND.append(OtherNetwork(f"{family}/{make.__name__.strip('_')}", family, make))
        return make

    return add


def images(channels: int = 3, size: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size)


def conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def mlp(*widths: int, last: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*(layers if last else layers[:-1]))


class Do(nn.Module):
    """Modules by name, and what a function makes of them and the inputs."""

    def __init__(self, forward: Callable[..., Any], **modules: Any) -> None:
        super().__init__()
        self.__dict__["function"] = forward
        for name, module in modules.items():
            if isinstance(module, Tensor) and not isinstance(module, nn.Parameter):
                self.register_buffer(name, module)
            else:
                setattr(self, name, module)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


# Detection.


class Backbone(nn.Module):
    """Features of an image at three sizes."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 24)) -> None:
        super().__init__()
        self.stem = conv(3, widths[0], 2)
        self.stages = nn.ModuleList(conv(a, b, 2) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [self.stem(x)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found


class Pyramid(nn.Module):
    """Feature pyramid (Lin et al., 2017)."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 24), out: int = 12) -> None:
        super().__init__()
        self.body = Backbone(widths)
        self.lateral = nn.ModuleList(nn.Conv2d(width, out, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(out, out, 3, padding=1) for _ in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [layer(each) for layer, each in zip(self.lateral, self.body(x), strict=True)]
        for place in range(len(found) - 1, 0, -1):
            found[place - 1] = found[place - 1] + F.interpolate(found[place], scale_factor=2.0, mode="nearest")
        return [layer(each) for layer, each in zip(self.smooth, found, strict=True)]


@listed("detection")
def feature_pyramid() -> tuple[nn.Module, Any]:
    return Pyramid(), images()


@listed("detection")
def retina_head() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> dict[str, Tensor]:
        found = self.pyramid(x)
        classes = [self.classes(each).permute(0, 2, 3, 1).reshape(len(x), -1, 4) for each in found]
        boxes = [self.boxes(each).permute(0, 2, 3, 1).reshape(len(x), -1, 4) for each in found]
        return {"classes": torch.cat(classes, 1), "boxes": torch.cat(boxes, 1)}

    tower = partial(nn.Sequential, nn.Conv2d(12, 12, 3, padding=1), nn.ReLU())
    return Do(
        forward, pyramid=Pyramid(), classes=tower(nn.Conv2d(12, 8, 1)), boxes=tower(nn.Conv2d(12, 8, 1))
    ), images()


@listed("detection")
def anchor_free_head() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> list[tuple[Tensor, ...]]:
        found = [(each, self.tower(each)) for each in self.pyramid(x)]
        return [(self.heat(each), self.size(each).exp(), self.centre(whole)) for whole, each in found]

    heads = {"heat": nn.Conv2d(12, 3, 1), "size": nn.Conv2d(12, 4, 1), "centre": nn.Conv2d(12, 1, 1)}
    return Do(forward, pyramid=Pyramid(), tower=conv(12, 12), **heads), images()


@listed("detection")
def yolo_like() -> tuple[nn.Module, Any]:
    """CSP blocks with chunks, pooling pyramid and a head of grids."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.enter, self.leave = conv(width, width, kernel=1), conv(width * 3 // 2, width, kernel=1)
            self.inner = nn.Sequential(conv(width // 2, width // 2), conv(width // 2, width // 2))

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.enter(x).chunk(2, 1)
            return self.leave(torch.cat([first, second, second + self.inner(second)], 1))

    class Pooled(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.enter, self.leave = conv(width, width // 2, kernel=1), conv(width * 2, width, kernel=1)
            self.pool = nn.MaxPool2d(5, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            found = [self.enter(x)]
            for _ in range(3):
                found.append(self.pool(found[-1]))
            return self.leave(torch.cat(found, 1))

    body = nn.Sequential(conv(3, 8, 2), conv(8, 16, 2), Block(16), conv(16, 24, 2), Block(24), Pooled(24))
    return nn.Sequential(body, nn.Conv2d(24, 3 * 9, 1), nn.Unflatten(1, (3, 9))), images()


@listed("detection")
def centre_net() -> tuple[nn.Module, Any]:
    up = nn.Sequential(nn.ConvTranspose2d(24, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
    heads = nn.ModuleDict({"heat": nn.Conv2d(16, 3, 1), "size": nn.Conv2d(16, 2, 1)})
    forward = lambda self, x: {name: head(self.up(self.body(x)[-1])) for name, head in self.heads.items()}  # noqa: E731
    return Do(forward, body=Backbone(), up=up, heads=heads), images()


@listed("detection")
def detr_like() -> tuple[nn.Module, Any]:
    class Detr(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.project = Backbone((8, 16)), nn.Conv2d(16, 16, 1)
            self.transformer = nn.Transformer(16, 2, 1, 1, 24, batch_first=True)
            self.queries, self.rows = nn.Parameter(torch.randn(5, 16)), nn.Parameter(torch.randn(64, 16))
            self.classes, self.boxes = nn.Linear(16, 4), mlp(16, 12, 4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            tokens = self.project(self.body(x)[-1]).flatten(2).transpose(1, 2) + self.rows
            found = self.transformer(tokens, self.queries.expand(len(x), -1, -1))
            return {"classes": self.classes(found), "boxes": self.boxes(found).sigmoid()}

    return Detr(), images()


@listed("detection")
def roi_head() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        found = torchvision.ops.roi_align(self.body(x)[-1], boxes, 4, spatial_scale=1 / 8)
        found = self.hidden(found.flatten(1))
        return self.classes(found), self.boxes(found)

    boxes = torch.tensor([[0.0, 0, 0, 16, 16], [1.0, 4, 4, 30, 30], [1.0, 0, 8, 20, 24]])
    modules = {"hidden": mlp(24 * 16, 32, 24, last=True), "classes": nn.Linear(24, 4), "boxes": nn.Linear(24, 16)}
    return Do(forward, body=Backbone(), **modules), (images(), boxes)


@listed("detection")
def region_proposals() -> tuple[nn.Module, Any]:
    head = torchvision.models.detection.rpn.RPNHead(24, 3)
    return Do(lambda self, x: self.head([self.body(x)[-1]]), body=Backbone(), head=head), images()


@listed("detection")
def list_of_images() -> tuple[nn.Module, Any]:
    forward = lambda self, given: [self.head(self.body(each[None])[-1]) for each in given]  # noqa: E731
    return Do(forward, body=Backbone(), head=nn.Conv2d(24, 5, 1)), [torch.randn(3, 32, 32), torch.randn(3, 32, 32)]


@listed("detection")
def torchvision_ssdlite() -> tuple[nn.Module, Any]:
    make = torchvision.models.detection.ssdlite320_mobilenet_v3_large
    return make(weights=None, weights_backbone=None, num_classes=4), [torch.rand(3, 96, 96)]


@listed("detection")
def torchvision_retina_backbone() -> tuple[nn.Module, Any]:
    make = torchvision.models.detection.backbone_utils.resnet_fpn_backbone
    return make(backbone_name="resnet18", weights=None, trainable_layers=5), images(size=64)


def whole_detector(make: Callable[[], nn.Module]) -> Build:
    """The part that is searched of a detector that takes lists of images, and what it is given."""

    def build() -> tuple[nn.Module, Any]:
        pictures = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
        part = transprune.part_of(make(), (pictures,))
        return part, inputs_of_part(part, pictures)

    return build


for kind in ("retinanet_resnet50_fpn", "fcos_resnet50_fpn", "fasterrcnn_resnet50_fpn"):
    made = partial(
        torchvision.models.get_model, kind, weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=64
    )
    FOUND.append(OtherNetwork(f"detection/torchvision_{kind}", "detection", whole_detector(made)))


def yolo(version: str) -> nn.Module:
    """A YOLO of ultralytics for three classes, with new weights."""
    from ultralytics.nn.tasks import DetectionModel

    network: nn.Module = DetectionModel(f"{version}.yaml", nc=3, verbose=False)
    return network


if find_spec("ultralytics") is not None:
    FOUND.extend(
        OtherNetwork(f"detection/{version}", "detection", whole_detector(partial(yolo, version)))
        for version in ("yolov8n", "yolo11n", "yolo12n", "yolo26n")
    )


@listed("detection")
def detr() -> tuple[nn.Module, Any]:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    stages = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 32, 48],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    of_both = {"layers": 2, "ffn_dim": 64, "attention_heads": 4}
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in of_both.items()}
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=stages,
        d_model=32,
        **sizes,
    )
    return DetrForObjectDetection(config), {"pixel_values": images(size=64)}


# Segmentation.


class UNet(nn.Module):
    """Two steps down and up again (Ronneberger et al., 2015)."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        block = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, padding=1), norm(b), nn.ReLU())  # noqa: E731
        self.first, self.second, self.third = block(3, 8), block(8, 16), block(16, 24)
        self.up, self.merge = nn.ConvTranspose2d(24, 16, 2, 2), block(32, 16)
        self.up2, self.merge2, self.last = nn.ConvTranspose2d(16, 8, 2, 2), block(16, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(F.max_pool2d(first, 2))
        third = self.third(F.max_pool2d(second, 2))
        found = self.merge(torch.cat([self.up(third), second], 1))
        return self.last(self.merge2(torch.cat([self.up2(found), first], 1)))


@listed("segmentation")
def u_net() -> tuple[nn.Module, Any]:
    return UNet(), images()


@listed("segmentation")
def u_net_group_norm() -> tuple[nn.Module, Any]:
    return UNet(lambda width: nn.GroupNorm(4, width)), images()


@listed("segmentation")
def u_net_instance_norm() -> tuple[nn.Module, Any]:
    return UNet(lambda width: nn.InstanceNorm2d(width, affine=True)), images()


@listed("segmentation")
def attention_u_net() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        first = self.first(x)
        second = F.interpolate(self.second(F.max_pool2d(first, 2)), scale_factor=2.0, mode="bilinear")
        gate = self.gate((self.of_first(first) + self.of_second(second)).relu()).sigmoid()
        return self.last(torch.cat([first * gate, second], 1))

    modules = {
        "first": conv(3, 8),
        "second": conv(8, 16),
        "of_first": nn.Conv2d(8, 6, 1),
        "of_second": nn.Conv2d(16, 6, 1),
    }
    return Do(forward, gate=nn.Conv2d(6, 1, 1), last=nn.Conv2d(24, 4, 1), **modules), images()


@listed("segmentation")
def seg_net() -> tuple[nn.Module, Any]:
    """Unpools where it pooled."""

    def forward(self: Any, x: Tensor) -> Tensor:
        found, places = F.max_pool2d(self.down(x), 2, return_indices=True)
        return self.last(F.max_unpool2d(self.middle(found), places, 2))

    return Do(forward, down=conv(3, 8), middle=conv(8, 8), last=nn.Conv2d(8, 4, 1)), images()


@listed("segmentation")
def link_net() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.last(self.up(self.second(first)) + first)

    return Do(
        forward, first=conv(3, 8), second=conv(8, 16, 2), up=nn.ConvTranspose2d(16, 8, 2, 2), last=nn.Conv2d(8, 4, 1)
    ), images()


@listed("segmentation")
def pyramid_pooling() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        found = self.body(x)[-1]
        pooled = [
            F.interpolate(part(F.adaptive_avg_pool2d(found, size)), found.shape[2:])
            for size, part in zip((1, 2), self.parts, strict=True)
        ]
        return F.interpolate(self.last(torch.cat([found, *pooled], 1)), x.shape[2:], mode="bilinear")

    parts = nn.ModuleList(nn.Conv2d(24, 8, 1) for _ in range(2))
    return Do(forward, body=Backbone(), parts=parts, last=nn.Conv2d(40, 4, 1)), images()


@listed("segmentation")
def object_context() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.body(x)[-1]
        coarse = self.coarse(found)
        share = coarse.flatten(2).softmax(-1)
        regions = share @ found.flatten(2).transpose(1, 2)
        weights = (found.flatten(2).transpose(1, 2) @ regions.transpose(1, 2)).softmax(-1)
        context = (weights @ regions).transpose(1, 2).reshape(found.shape)
        return self.last(torch.cat([found, context], 1)), coarse

    return Do(forward, body=Backbone(), coarse=nn.Conv2d(24, 5, 1), last=nn.Conv2d(48, 5, 1)), images()


@listed("segmentation")
def seg_former_like() -> tuple[nn.Module, Any]:
    class Mix(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
            self.grow, self.mix, self.shrink = (
                nn.Linear(width, 2 * width),
                nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width),
                nn.Linear(2 * width, width),
            )

        def forward(self, x: Tensor) -> Tensor:
            batch, width, rows, columns = x.shape
            tokens = x.flatten(2).transpose(1, 2)
            normed = self.norm(tokens)
            tokens = tokens + self.attention(normed, normed, normed)[0]
            grown = self.grow(tokens).transpose(1, 2).unflatten(2, (rows, columns))
            tokens = tokens + self.shrink(F.gelu(self.mix(grown)).flatten(2).transpose(1, 2))
            return tokens.transpose(1, 2).reshape(batch, width, rows, columns)

    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 4, 3), Mix(16), nn.Conv2d(16, 24, 3, 2, 1), Mix(24), nn.Conv2d(24, 4, 1)
    ), images()


@listed("segmentation")
def torchvision_fcn() -> tuple[nn.Module, Any]:
    return torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=3), images()


@listed("segmentation")
def torchvision_lraspp() -> tuple[nn.Module, Any]:
    return torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    ), images()


@listed("segmentation")
def torchvision_deeplab_mobile() -> tuple[nn.Module, Any]:
    make = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large
    return make(weights=None, weights_backbone=None, num_classes=3), images()


# Restoration and flow.


@listed("restoration")
def dn_cnn() -> tuple[nn.Module, Any]:
    return Do(
        lambda self, x: x - self.noise(x),
        noise=nn.Sequential(conv(3, 12), conv(12, 12), nn.Conv2d(12, 3, 3, padding=1)),
    ), images()


@listed("restoration")
def pixel_shuffle_upscaler() -> tuple[nn.Module, Any]:
    return nn.Sequential(conv(3, 12), conv(12, 16), nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2)), images(
        size=16
    )


@listed("restoration")
def edsr_like() -> tuple[nn.Module, Any]:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 12, 3, padding=1))

        def forward(self, x: Tensor) -> Tensor:
            return x + 0.1 * self.body(x)

    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        Block(),
        Block(),
        nn.Conv2d(12, 48, 3, padding=1),
        nn.PixelShuffle(2),
        nn.Conv2d(12, 3, 3, padding=1),
    ), images(size=16)


@listed("restoration")
def residual_dense() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)).relu())
        return self.last(self.fuse(torch.cat(found, 1)) + found[0])

    layers = nn.ModuleList(nn.Conv2d(8 + 6 * place, 6, 3, padding=1) for place in range(3))
    return Do(
        forward,
        stem=nn.Conv2d(3, 8, 3, padding=1),
        layers=layers,
        fuse=nn.Conv2d(26, 8, 1),
        last=nn.Conv2d(8, 3, 3, padding=1),
    ), images(size=16)


@listed("restoration")
def gated_simple() -> tuple[nn.Module, Any]:
    """Products of two halves of the channels instead of activations, as NAFNet has them."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.enter, self.leave = (
                nn.GroupNorm(1, width),
                nn.Conv2d(width, 2 * width, 1),
                nn.Conv2d(width, width, 1),
            )
            self.scale = nn.Parameter(torch.full((1, width, 1, 1), 0.5))

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.enter(self.norm(x)).chunk(2, 1)
            return x + self.leave(first * second) * self.scale

    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), Block(12), Block(12), nn.Conv2d(12, 3, 3, padding=1)), images(
        size=16
    )


@listed("flow")
def flow_net() -> tuple[nn.Module, Any]:
    forward = lambda self, first, second: self.net(torch.cat([first, second], 1))  # noqa: E731
    return Do(forward, net=nn.Sequential(conv(6, 12, 2), conv(12, 16, 2), nn.Conv2d(16, 2, 3, padding=1))), (
        images(),
        images(),
    )


@listed("flow")
def correlation() -> tuple[nn.Module, Any]:
    def forward(self: Any, first: Tensor, second: Tensor) -> Tensor:
        one, other = (self.body(each).flatten(2) for each in (first, second))
        volume = (one.transpose(1, 2) @ other) / sqrt(12)
        return self.head(volume.unflatten(2, (8, 8)).flatten(0, 1)[:, None]).flatten(1).unflatten(0, (len(first), -1))

    return Do(
        forward,
        body=nn.Sequential(conv(3, 12, 4)),
        head=nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 8)),
    ), (images(), images())


@listed("flow")
def warping() -> tuple[nn.Module, Any]:
    def forward(self: Any, first: Tensor, second: Tensor) -> Tensor:
        flow = self.flow(torch.cat([first, second], 1))
        line = torch.linspace(-1, 1, 32)
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
        return self.last(F.grid_sample(self.body(second), grid + flow.permute(0, 2, 3, 1), align_corners=False))

    modules = {
        "flow": nn.Sequential(conv(6, 8), nn.Conv2d(8, 2, 3, padding=1)),
        "body": conv(3, 12),
        "last": nn.Conv2d(12, 3, 1),
    }
    return Do(forward, **modules), (images(), images())


@listed("flow")
def stereo_volume() -> tuple[nn.Module, Any]:
    def forward(self: Any, left: Tensor, right: Tensor) -> Tensor:
        left, right = self.body(left), self.body(right)
        volume = torch.stack([torch.cat([left, torch.roll(right, shift, 3)], 1) for shift in range(3)], 2)
        return (self.cost(volume).squeeze(1).softmax(1) * torch.arange(3.0).view(1, 3, 1, 1)).sum(1)

    cost = nn.Sequential(nn.Conv3d(16, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 1, 3, padding=1))
    return Do(forward, body=conv(3, 8, 2), cost=cost), (images(), images())


@listed("flow")
def deformable() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        found = self.first(x)
        return self.last(self.deform(found, self.offsets(found)).relu())

    deform = torchvision.ops.DeformConv2d(8, 12, 3, padding=1)
    return Do(
        forward, first=conv(3, 8), offsets=nn.Conv2d(8, 18, 3, padding=1), deform=deform, last=nn.Conv2d(12, 4, 1)
    ), images(size=16)


# Volumes, points and video.


@listed("volumes")
def u_net_3d() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.last(torch.cat([first, self.up(self.second(F.max_pool3d(first, 2)))], 1))

    block = lambda a, b: nn.Sequential(nn.Conv3d(a, b, 3, padding=1), nn.BatchNorm3d(b), nn.ReLU())  # noqa: E731
    return Do(
        forward, first=block(1, 6), second=block(6, 12), up=nn.ConvTranspose3d(12, 6, 2, 2), last=nn.Conv3d(12, 3, 1)
    ), torch.randn(2, 1, 8, 8, 8)


@listed("volumes")
def v_net_block() -> tuple[nn.Module, Any]:
    forward = lambda self, x: self.last(F.elu(self.body(x) + x.expand(-1, 8, -1, -1, -1)))  # noqa: E731
    return Do(forward, body=nn.Conv3d(1, 8, 5, padding=2), last=nn.Conv3d(8, 2, 1)), torch.randn(2, 1, 8, 8, 8)


@listed("volumes")
def point_net() -> tuple[nn.Module, Any]:
    def forward(self: Any, points: Tensor) -> Tensor:
        turn = self.turn(points.transpose(1, 2)).max(2).values
        found = points @ self.matrix(turn).view(-1, 3, 3)
        return self.head(self.body(found.transpose(1, 2)).max(2).values)

    def layers(*w):
        return nn.Sequential(nn.Conv1d(w[0], w[1], 1), nn.BatchNorm1d(w[1]), nn.ReLU(), nn.Conv1d(w[1], w[2], 1))

    return Do(
        forward, turn=layers(3, 8, 12), matrix=nn.Linear(12, 9), body=layers(3, 16, 24), head=mlp(24, 16, 5)
    ), torch.randn(2, 20, 3)


@listed("volumes")
def edge_convolution() -> tuple[nn.Module, Any]:
    def forward(self: Any, points: Tensor) -> Tensor:
        near = torch.cdist(points, points).topk(4, largest=False).indices
        place = near.flatten(1)[..., None].expand(-1, -1, 3)
        others = points.gather(1, place).unflatten(1, (20, 4))
        edges = torch.cat([others - points[:, :, None], points[:, :, None].expand_as(others)], -1)
        return self.head(self.edge(edges).max(2).values.max(1).values)

    return Do(forward, edge=mlp(6, 16, 16, last=True), head=mlp(16, 12, 5)), torch.randn(2, 20, 3)


@listed("volumes")
def point_transformer() -> tuple[nn.Module, Any]:
    def forward(self: Any, points: Tensor) -> Tensor:
        found = self.enter(points)
        query, key, value = self.qkv(found).chunk(3, -1)
        apart = query[:, :, None] - key[:, None] + self.place(points[:, :, None] - points[:, None])
        return self.leave((apart.softmax(2) * value[:, None]).sum(2))

    return Do(
        forward, enter=nn.Linear(3, 12), qkv=nn.Linear(12, 36), place=mlp(3, 12, 12), leave=nn.Linear(12, 4)
    ), torch.randn(2, 10, 3)


@listed("volumes")
def radiance_field() -> tuple[nn.Module, Any]:
    def forward(self: Any, points: Tensor) -> tuple[Tensor, Tensor]:
        angles = points[..., None] * 2.0 ** torch.arange(3)
        encoded = torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)
        found = self.first(encoded)
        found = self.second(torch.cat([found, encoded], -1))
        return self.colour(found).sigmoid(), self.density(found).relu()

    return Do(
        forward,
        first=mlp(18, 24, 24, last=True),
        second=mlp(42, 24, last=True),
        colour=nn.Linear(24, 3),
        density=nn.Linear(24, 1),
    ), torch.randn(8, 3)


@listed("volumes")
def sine_layers() -> tuple[nn.Module, Any]:
    return Do(
        lambda self, x: self.last(torch.sin(30 * self.second(torch.sin(30 * self.first(x))))),
        first=nn.Linear(2, 16),
        second=nn.Linear(16, 16),
        last=nn.Linear(16, 3),
    ), torch.rand(8, 2)


@listed("video")
def convolution_3d() -> tuple[nn.Module, Any]:
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    ), torch.randn(2, 3, 4, 16, 16)


@listed("video")
def convolution_2_plus_1() -> tuple[nn.Module, Any]:
    return nn.Sequential(
        nn.Conv3d(3, 10, (1, 3, 3), padding=(0, 1, 1)),
        nn.ReLU(),
        nn.Conv3d(10, 8, (3, 1, 1), padding=(1, 0, 0)),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ), torch.randn(2, 3, 4, 16, 16)


@listed("video")
def frames_in_the_batch() -> tuple[nn.Module, Any]:
    def forward(self: Any, video: Tensor) -> Tensor:
        found = self.body(video.flatten(0, 1)).mean((2, 3)).unflatten(0, (video.shape[0], video.shape[1]))
        return self.head(self.time(found)[0][:, -1])

    return Do(
        forward,
        body=nn.Sequential(conv(3, 8, 2), conv(8, 12, 2)),
        time=nn.GRU(12, 10, batch_first=True),
        head=nn.Linear(10, 5),
    ), torch.randn(2, 4, 3, 16, 16)


@listed("video")
def temporal_shift() -> tuple[nn.Module, Any]:
    def forward(self: Any, video: Tensor) -> Tensor:
        found = self.first(video.flatten(0, 1)).unflatten(0, (-1, 4))
        moved = torch.cat([torch.roll(found[:, :, :2], 1, 1), found[:, :, 2:]], 2)
        return self.head(self.second(moved.flatten(0, 1)).mean((2, 3))).unflatten(0, (-1, 4)).mean(1)

    return Do(forward, first=conv(3, 8, 2), second=conv(8, 12, 2), head=nn.Linear(12, 5)), torch.randn(2, 4, 3, 16, 16)


@listed("video")
def convolutional_lstm() -> tuple[nn.Module, Any]:
    def forward(self: Any, video: Tensor) -> Tensor:
        hidden = cell = video.new_zeros(len(video), 8, 16, 16)
        for frame in video.unbind(1):
            enter, forget, leave, new = self.gates(torch.cat([frame, hidden], 1)).chunk(4, 1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = leave.sigmoid() * cell.tanh()
        return self.head(hidden)

    return Do(forward, gates=nn.Conv2d(11, 32, 3, padding=1), head=nn.Conv2d(8, 3, 1)), torch.randn(2, 3, 3, 16, 16)


@listed("video")
def torchvision_r3d() -> tuple[nn.Module, Any]:
    return torchvision.models.video.r3d_18(weights=None, num_classes=5), torch.randn(2, 3, 4, 16, 16)


@listed("quantisation")
def torchvision_quantizable() -> tuple[nn.Module, Any]:
    return torchvision.models.quantization.resnet18(weights=None, num_classes=5, quantize=False), images()


@listed("quantisation")
def fake_quantised() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        weight = torch.fake_quantize_per_tensor_affine(self.second.weight, 0.02, 0, -128, 127)
        return self.last(F.conv2d(self.first(x), weight, padding=1).relu().mean((2, 3)))

    return Do(forward, first=conv(3, 8), second=nn.Conv2d(8, 12, 3, bias=False), last=nn.Linear(12, 5)), images(size=16)


@listed("quantisation")
def fake_quantised_features() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        found = torch.fake_quantize_per_tensor_affine(self.first(x), 0.05, 0, 0, 255)
        return self.last(self.second(found).mean((2, 3)))

    return Do(forward, first=conv(3, 8), second=conv(8, 12), last=nn.Linear(12, 5)), images(size=16)


@listed("quantisation")
def binary_weights() -> tuple[nn.Module, Any]:
    forward = lambda self, x: self.last(F.linear(self.first(x).relu(), self.second.weight.sign()))  # noqa: E731
    return Do(forward, first=nn.Linear(6, 12), second=nn.Linear(12, 10), last=nn.Linear(10, 3)), torch.randn(4, 6)


# Transformers.


def attention(tokens: Tensor, layers: Any, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention with layers `query`, `key`, `value` and `out`."""
    parts = (
        layer(tokens).unflatten(-1, (heads, -1)).transpose(1, 2) for layer in (layers.query, layers.key, layers.value)
    )
    return layers.out(F.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A layer before whose halves it is normalised."""

    def __init__(
        self, width: int = 16, heads: int = 2, hidden: int = 24, norm: Callable[[int], nn.Module] = nn.LayerNorm
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.before, self.between, self.hidden = norm(width), norm(width), mlp(width, hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + attention(self.before(tokens), self, self.heads)
        return tokens + self.hidden(self.between(tokens))


def words(length: int = 7, batch: int = 2, vocabulary: int = 30) -> Tensor:
    return torch.randint(1, vocabulary, (batch, length))


@listed("transformers")
def language_encoder() -> tuple[nn.Module, Any]:
    return nn.Sequential(nn.Embedding(30, 16), Layer(), Layer(), nn.LayerNorm(16), nn.Linear(16, 30)), words()


@listed("transformers")
def tied_embeddings() -> tuple[nn.Module, Any]:
    forward = lambda self, ids: F.linear(self.layers(self.embedding(ids)), self.embedding.weight)  # noqa: E731
    return Do(forward, embedding=nn.Embedding(30, 16), layers=nn.Sequential(Layer(), Layer())), words()


@listed("transformers")
def torch_encoder() -> tuple[nn.Module, Any]:
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    return nn.Sequential(nn.Linear(6, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 4)), torch.randn(2, 5, 6)


@listed("transformers")
def torch_encoder_time_first() -> tuple[nn.Module, Any]:
    layer = nn.TransformerEncoderLayer(16, 2, 24)
    return nn.Sequential(nn.Linear(6, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 4)), torch.randn(5, 2, 6)


@listed("transformers")
def torch_translation_time_first() -> tuple[nn.Module, Any]:
    return nn.Transformer(16, 2, 1, 1, 24), (torch.randn(5, 2, 16), torch.randn(4, 2, 16))


@listed("transformers")
def padded_encoder() -> tuple[nn.Module, Any]:
    layer = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 1, enable_nested_tensor=False
    )
    forward = lambda self, ids: self.last(self.layer(self.embedding(ids), src_key_padding_mask=ids == 0))  # noqa: E731
    return Do(forward, embedding=nn.Embedding(30, 16), layer=layer, last=nn.Linear(16, 4)), words()


@listed("transformers")
def gated_rotary() -> tuple[nn.Module, Any]:
    """As Llama: root mean square norms, rotated queries, grouped keys, gated hidden layers."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (
                nn.Linear(16, 16, False),
                nn.Linear(16, 8, False),
                nn.Linear(16, 8, False),
                nn.Linear(16, 16, False),
            )
            self.gate, self.up, self.down = nn.Linear(16, 24, False), nn.Linear(16, 24, False), nn.Linear(24, 16, False)
            self.before, self.between = nn.RMSNorm(16), nn.RMSNorm(16)

        def forward(self, x: Tensor) -> Tensor:
            angles = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.1])

            def turn(each):
                return torch.cat(
                    [
                        each[..., :2] * angles.cos() - each[..., 2:] * angles.sin(),
                        each[..., 2:] * angles.cos() + each[..., :2] * angles.sin(),
                    ],
                    -1,
                )

            normed = self.before(x)
            query = turn(self.query(normed).unflatten(-1, (4, 4)).transpose(1, 2))
            key = turn(self.key(normed).unflatten(-1, (2, 4)).transpose(1, 2)).repeat_interleave(2, 1)
            value = self.value(normed).unflatten(-1, (2, 4)).transpose(1, 2).repeat_interleave(2, 1)
            x = x + self.out(
                F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
            )
            normed = self.between(x)
            return x + self.down(F.silu(self.gate(normed)) * self.up(normed))

    return nn.Sequential(nn.Embedding(30, 16), Block(), Block(), nn.RMSNorm(16), nn.Linear(16, 30, False)), words()


@listed("transformers")
def relative_places() -> tuple[nn.Module, Any]:
    class Block(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(13, 2)

        def forward(self, x: Tensor) -> Tensor:
            places = torch.arange(x.shape[1])
            mask = self.table(places[:, None] - places + 6).permute(2, 0, 1)
            x = x + attention(self.before(x), self, 2, mask)
            return x + self.hidden(self.between(x))

    return nn.Sequential(nn.Embedding(30, 16), Block(), nn.Linear(16, 4)), words()


@listed("transformers")
def fused_projection() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).reshape(len(x), -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        share = (query @ key.transpose(-2, -1) * 8**-0.5).softmax(-1)
        return self.out((share @ value).transpose(1, 2).reshape(len(x), -1, 16))

    return Do(forward, qkv=nn.Linear(16, 48), out=nn.Linear(16, 16)), torch.randn(2, 5, 16)


@listed("transformers")
def heads_in_the_batch() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        parts = (
            layer(x).view(2, -1, 2, 8).transpose(1, 2).reshape(-1, x.shape[1], 8)
            if False
            else layer(x).unflatten(-1, (2, 8)).transpose(1, 2).flatten(0, 1)
            for layer in (self.query, self.key, self.value)
        )
        query, key, value = parts
        found = torch.bmm(torch.bmm(query, key.mT).softmax(-1), value)
        return self.out(found.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2))

    return Do(
        forward, query=nn.Linear(12, 16), key=nn.Linear(12, 16), value=nn.Linear(12, 16), out=nn.Linear(16, 12)
    ), torch.randn(2, 5, 12)


@listed("transformers")
def linear_attention() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        query, key, value = F.elu(self.query(x)) + 1, F.elu(self.key(x)) + 1, self.value(x)
        context = torch.einsum("bnd,bne->bde", key, value)
        return self.out(torch.einsum("bnd,bde->bne", query, context) / (query @ key.sum(1)[..., None]))

    return Do(
        forward, query=nn.Linear(12, 16), key=nn.Linear(12, 16), value=nn.Linear(12, 10), out=nn.Linear(10, 4)
    ), torch.randn(2, 5, 12)


@listed("transformers")
def perceiver() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        latents = self.latents.expand(len(x), -1, -1)
        latents = latents + self.cross(latents, self.enter(x), self.enter(x))[0]
        return self.out(self.inside(latents).mean(1))

    return Do(
        forward,
        latents=nn.Parameter(torch.randn(4, 16)),
        enter=nn.Linear(6, 16),
        cross=nn.MultiheadAttention(16, 2, batch_first=True),
        inside=Layer(),
        out=nn.Linear(16, 3),
    ), torch.randn(2, 9, 6)


@listed("transformers")
def mixture_of_experts() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        share = self.gate(x).softmax(-1)
        return self.out(sum(share[..., place, None] * expert(x) for place, expert in enumerate(self.experts)))

    return Do(
        forward, gate=nn.Linear(12, 3), experts=nn.ModuleList(mlp(12, 20, 12) for _ in range(3)), out=nn.Linear(12, 4)
    ), torch.randn(4, 12)


@listed("transformers")
def stacked_experts() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = torch.einsum("bd,edh->beh", x, self.first).relu()
        return self.out(
            (torch.einsum("beh,ehd->bed", hidden, self.second) * self.gate(x).softmax(-1)[..., None]).sum(1)
        )

    return Do(
        forward,
        gate=nn.Linear(12, 3),
        first=nn.Parameter(torch.randn(3, 12, 16) * 0.1),
        second=nn.Parameter(torch.randn(3, 16, 12) * 0.1),
        out=nn.Linear(12, 4),
    ), torch.randn(4, 12)


@listed("transformers")
def chosen_experts() -> tuple[nn.Module, Any]:
    """The best expert alone, chosen by value: no fixed operators."""

    def forward(self: Any, x: Tensor) -> Tensor:
        chosen, found = self.gate(x).argmax(-1), torch.zeros_like(x)
        for place, expert in enumerate(self.experts):
            rows = (chosen == place).nonzero()[:, 0]
            found = found.index_add(0, rows, expert(x[rows]))
        return self.out(found)

    return Do(
        forward, gate=nn.Linear(12, 3), experts=nn.ModuleList(mlp(12, 20, 12) for _ in range(3)), out=nn.Linear(12, 4)
    ), torch.randn(4, 12)


@listed("generative")
def fourier_operator() -> tuple[nn.Module, Any]:
    """The lowest frequencies, each with a matrix of its own, written into a spectrum of zeros."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.lifted(x)
        for weight, pointwise in zip(self.weights, self.pointwise, strict=True):
            spectrum = torch.fft.rfft(x.transpose(1, 2))
            kept = torch.zeros(x.shape[0], 16, spectrum.shape[-1], dtype=spectrum.dtype)
            kept[:, :, :4] = torch.einsum("bif,iof->bof", spectrum[:, :, :4], weight)
            x = torch.fft.irfft(kept, n=x.shape[1]).transpose(1, 2) + pointwise(x)
        return self.out(x)

    weights = nn.ParameterList(nn.Parameter(0.1 * torch.randn(16, 16, 4, dtype=torch.complex64)) for _ in range(2))
    return Do(
        forward,
        lifted=nn.Linear(2, 16),
        weights=weights,
        pointwise=nn.ModuleList(nn.Linear(16, 16) for _ in range(2)),
        out=mlp(16, 24, 1),
    ), torch.randn(4, 12, 2)


@listed("generative")
def written_side_by_side() -> tuple[nn.Module, Any]:
    """Two layers that write their channels into zeros, which is a concatenation, and one that writes into some rows."""

    def forward(self: Any, x: Tensor) -> Tensor:
        found = x.new_zeros(x.shape[0], x.shape[1], 20)
        found[..., :12], found[..., 12:] = self.first(x), self.second(x)
        changed = found.clone()
        changed[:, 1:3] = self.middle(found[:, :2])
        return self.out(changed + found)

    return Do(
        forward, first=nn.Linear(6, 12), second=nn.Linear(6, 8), middle=nn.Linear(20, 20), out=nn.Linear(20, 4)
    ), torch.randn(4, 5, 6)


@listed("generative")
def written_in_blocks() -> tuple[nn.Module, Any]:
    """Blocks that write over some columns of a copy of what they read."""

    class Edge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(12, 12, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            found = x.clone()
            found[..., :2] = self.conv(x)[..., :2]
            return found

    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.Sequential(*(Edge() for _ in range(3))), nn.Conv2d(12, 4, 1)
    ), torch.randn(2, 3, 8, 8)


@listed("transformers")
def fourier_mixing() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.out(self.hidden(x + torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real))

    return Do(forward, hidden=mlp(12, 20, 16), out=nn.Linear(16, 4)), torch.randn(2, 5, 12)


@listed("transformers")
def mlp_mixer() -> tuple[nn.Module, Any]:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.channels, self.norm = mlp(9, 12, 9), mlp(16, 24, 16), nn.LayerNorm(16)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
            return x + self.channels(self.norm(x))

    return nn.Sequential(Mixer(), Mixer(), nn.Linear(16, 4)), torch.randn(2, 9, 16)


@listed("transformers")
def multi_query() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (4, 4)).transpose(1, 2)
        share = (query @ self.key(x)[:, None].transpose(-1, -2)).softmax(-1)
        return self.out((share @ self.value(x)[:, None]).transpose(1, 2).flatten(2))

    return Do(
        forward, query=nn.Linear(12, 16), key=nn.Linear(12, 4), value=nn.Linear(12, 4), out=nn.Linear(16, 12)
    ), torch.randn(2, 5, 12)


@listed("transformers")
def contrastive_pair() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor, ids: Tensor) -> Tensor:
        one, other = self.seen(x), self.read(ids).mean(1)
        return F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T * self.scale.exp()

    seen = nn.Sequential(conv(3, 8, 2), conv(8, 12, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 16))
    read = nn.Sequential(nn.Embedding(30, 16), Layer())
    return Do(forward, seen=seen, read=read, scale=nn.Parameter(torch.tensor(1.0))), (images(batch=3), words(batch=3))


@listed("transformers")
def cached_decoder() -> tuple[nn.Module, Any]:
    def forward(self: Any, ids: Tensor, past: Any) -> tuple[Tensor, Any]:
        x = self.embedding(ids)
        key, value = (
            torch.cat([before, layer(x)], 1) for before, layer in zip(past, (self.key, self.value), strict=True)
        )
        return self.out(F.scaled_dot_product_attention(self.query(x), key, value)), (key, value)

    modules = {name: nn.Linear(12, 12) for name in ("query", "key", "value")}
    return Do(forward, embedding=nn.Embedding(30, 12), out=mlp(12, 16, 30), **modules), (
        words(1),
        (torch.randn(2, 4, 12), torch.randn(2, 4, 12)),
    )


@listed("transformers")
def vision_windows() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        found = self.enter(x)
        windows = found.unflatten(2, (4, 2)).unflatten(4, (4, 2)).permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)
        return self.out(self.layer(windows).unflatten(0, (-1, 16)).mean((1, 2)))

    return Do(forward, enter=nn.Conv2d(3, 16, 4, 4), layer=Layer(), out=nn.Linear(16, 4)), images()


def hugging_face(name: str, network: str, config: str, inputs: Callable[[Any], Any], **options: Any) -> None:
    """Adds a network of the transformers library, made from a configuration without weights."""

    def make() -> tuple[nn.Module, Any]:
        library = import_module("transformers")
        made = getattr(library, network)(getattr(library, config)(**options))
        return made, inputs(library)

    FOUND.append(OtherNetwork(f"huggingface/{name}", "huggingface", make))


def encoded(library: Any) -> Any:
    return library.BatchEncoding({"input_ids": words(), "attention_mask": torch.ones(2, 7, dtype=torch.int64)})


def pixels(library: Any) -> Any:
    return library.BatchFeature({"pixel_values": images()})


TEXT: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
SEEN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
hugging_face("bert", "BertForSequenceClassification", "BertConfig", encoded, **TEXT)
hugging_face("bert_masked", "BertForMaskedLM", "BertConfig", encoded, **TEXT)
hugging_face("roberta", "RobertaForSequenceClassification", "RobertaConfig", encoded, **TEXT)
hugging_face("electra", "ElectraForPreTraining", "ElectraConfig", encoded, embedding_size=12, **TEXT)
hugging_face(
    "distilbert",
    "DistilBertForSequenceClassification",
    "DistilBertConfig",
    encoded,
    vocab_size=30,
    dim=16,
    n_layers=2,
    n_heads=2,
    hidden_dim=24,
)
hugging_face("albert", "AlbertForSequenceClassification", "AlbertConfig", encoded, embedding_size=8, **TEXT)
hugging_face(
    "gpt2", "GPT2LMHeadModel", "GPT2Config", encoded, vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=32
)
hugging_face(
    "opt",
    "OPTForCausalLM",
    "OPTConfig",
    encoded,
    vocab_size=30,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    ffn_dim=24,
    max_position_embeddings=32,
    word_embed_proj_dim=16,
)
hugging_face("llama", "LlamaForCausalLM", "LlamaConfig", encoded, **TEXT)
hugging_face("mistral", "MistralForCausalLM", "MistralConfig", encoded, num_key_value_heads=1, **TEXT)
hugging_face("qwen2", "Qwen2ForCausalLM", "Qwen2Config", encoded, num_key_value_heads=1, **TEXT)
hugging_face(
    "t5", "T5EncoderModel", "T5Config", encoded, vocab_size=30, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2
)
hugging_face(
    "bart",
    "BartForSequenceClassification",
    "BartConfig",
    lambda library: {"input_ids": torch.cat([words(6), torch.full((2, 1), 2)], 1)},
    vocab_size=30,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    max_position_embeddings=32,
)
hugging_face("vit", "ViTForImageClassification", "ViTConfig", pixels, **SEEN)
hugging_face("deit", "DeiTForImageClassification", "DeiTConfig", pixels, **SEEN)
hugging_face("beit", "BeitForImageClassification", "BeitConfig", pixels, **SEEN)
hugging_face(
    "dinov2",
    "Dinov2Model",
    "Dinov2Config",
    pixels,
    image_size=32,
    patch_size=8,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
)
hugging_face("convnext", "ConvNextModel", "ConvNextConfig", pixels, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1])
hugging_face(
    "segformer",
    "SegformerForSemanticSegmentation",
    "SegformerConfig",
    pixels,
    hidden_sizes=[8, 8, 16, 16],
    depths=[1, 1, 1, 1],
    num_attention_heads=[1, 1, 2, 2],
    decoder_hidden_size=16,
)
hugging_face(
    "wav2vec2",
    "Wav2Vec2Model",
    "Wav2Vec2Config",
    lambda library: {"input_values": torch.randn(2, 800)},
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    conv_dim=(8, 8),
    conv_stride=(5, 4),
    conv_kernel=(10, 8),
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
)
hugging_face(
    "mamba",
    "MambaForCausalLM",
    "MambaConfig",
    lambda library: {"input_ids": words()},
    vocab_size=30,
    hidden_size=16,
    num_hidden_layers=1,
    state_size=4,
)
hugging_face(
    "clip",
    "CLIPModel",
    "CLIPConfig",
    lambda library: {"input_ids": words(), "pixel_values": images()},
    text_config=TEXT | {"projection_dim": 12},
    vision_config=SEEN | {"projection_dim": 12},
    projection_dim=12,
)


# Audio and other sequences.


@listed("audio")
def wave_net() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        found, kept = self.enter(x), 0
        for filters, gates, out in zip(self.filters, self.gates, self.outs, strict=True):
            new = out(filters(found).tanh() * gates(found).sigmoid())
            found, kept = found + new, kept + new
        return self.leave(kept.relu())

    layers = lambda: nn.ModuleList(nn.Conv1d(10, 10, 3, padding=2**place, dilation=2**place) for place in range(3))  # noqa: E731
    return Do(
        forward,
        enter=nn.Conv1d(1, 10, 1),
        filters=layers(),
        gates=layers(),
        outs=nn.ModuleList(nn.Conv1d(10, 10, 1) for _ in range(3)),
        leave=nn.Conv1d(10, 6, 1),
    ), torch.randn(2, 1, 64)


@listed("audio")
def temporal_convolutions() -> tuple[nn.Module, Any]:
    class Causal(nn.Module):
        def __init__(self, inputs: int, outputs: int, step: int) -> None:
            super().__init__()
            self.step, self.conv = step, nn.Conv1d(inputs, outputs, 3, dilation=step)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.pad(x, (2 * self.step, 0))).relu()

    return nn.Sequential(
        Causal(3, 8, 1), Causal(8, 12, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, 4)
    ), torch.randn(2, 3, 32)


@listed("audio")
def old_weight_norm() -> tuple[nn.Module, Any]:
    norm = nn.utils.weight_norm
    return nn.Sequential(
        norm(nn.Conv1d(3, 8, 3, padding=1)),
        nn.ReLU(),
        norm(nn.Conv1d(8, 12, 3, padding=1)),
        nn.ReLU(),
        nn.Conv1d(12, 4, 1),
    ), torch.randn(2, 3, 32)


@listed("audio")
def new_weight_norm() -> tuple[nn.Module, Any]:
    norm = parametrizations.weight_norm
    return nn.Sequential(
        norm(nn.Conv1d(3, 8, 3, padding=1)),
        nn.ReLU(),
        norm(nn.Conv1d(8, 12, 3, padding=1)),
        nn.ReLU(),
        nn.Conv1d(12, 4, 1),
    ), torch.randn(2, 3, 32)


@listed("audio")
def conformer() -> tuple[nn.Module, Any]:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.begin, self.layer, self.norm = mlp(16, 24, 16), Layer(), nn.LayerNorm(16)
            self.gate, self.conv, self.batch, self.out = (
                nn.Conv1d(16, 32, 1),
                nn.Conv1d(16, 16, 5, padding=2, groups=16),
                nn.BatchNorm1d(16),
                nn.Conv1d(16, 16, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x + 0.5 * self.begin(x))
            found = F.glu(self.gate(self.norm(x).transpose(1, 2)), 1)
            return x + self.out(F.silu(self.batch(self.conv(found)))).transpose(1, 2)

    return nn.Sequential(nn.Linear(8, 16), Block(), nn.Linear(16, 5)), torch.randn(2, 12, 8)


@listed("audio")
def spectrogram_network() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 32, 16, window=self.window, return_complex=True).abs()
        return self.last(self.body(spectrum[:, None]).mean((2, 3)))

    return Do(
        forward, window=torch.hann_window(32), body=nn.Sequential(conv(1, 8), conv(8, 12)), last=nn.Linear(12, 4)
    ), torch.randn(2, 256)


@listed("audio")
def depthwise_keyword() -> tuple[nn.Module, Any]:
    return nn.Sequential(
        conv(1, 8),
        conv(8, 8, groups=8),
        conv(8, 12, kernel=1),
        conv(12, 12, groups=12),
        conv(12, 12, kernel=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    ), images(1, 20)


@listed("audio")
def separation_masks() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        coded = self.encoder(x).relu()
        masks = self.masks(coded).sigmoid().unflatten(1, (2, 12))
        return self.decoder((coded[:, None] * masks).flatten(0, 1)).unflatten(0, (-1, 2))

    return Do(
        forward,
        encoder=nn.Conv1d(1, 12, 8, 4),
        masks=nn.Sequential(nn.Conv1d(12, 16, 1), nn.PReLU(), nn.Conv1d(16, 24, 1)),
        decoder=nn.ConvTranspose1d(12, 1, 8, 4),
    ), torch.randn(2, 1, 64)


@listed("audio")
def speech_to_text() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        found = self.body(x[:, None]).permute(0, 3, 1, 2).flatten(2)
        return self.last(self.time(found)[0]).log_softmax(-1)

    return Do(
        forward,
        body=nn.Sequential(conv(1, 8, 2)),
        time=nn.GRU(8 * 10, 12, batch_first=True, bidirectional=True),
        last=nn.Linear(24, 9),
    ), torch.randn(2, 20, 16)


@listed("audio")
def vocoder() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        found = self.enter(x)
        found = self.up(F.leaky_relu(found, 0.1))
        found = sum(block(found) for block in self.blocks) / 2
        return self.leave(F.leaky_relu(found)).tanh()

    return Do(
        forward,
        enter=nn.Conv1d(8, 16, 7, padding=3),
        up=nn.ConvTranspose1d(16, 12, 4, 2, 1),
        blocks=nn.ModuleList(nn.Conv1d(12, 12, size, padding=size // 2) for size in (3, 5)),
        leave=nn.Conv1d(12, 1, 7, padding=3),
    ), torch.randn(2, 8, 16)


def recurrent(name: str, make: Callable[[], nn.Module], inputs: Callable[[], Any], width: int = 10) -> None:
    """Adds a recurrent layer between two linear ones."""

    def build() -> tuple[nn.Module, Any]:
        forward = lambda self, x: self.last(self.layer(self.first(x))[0])  # noqa: E731
        return Do(forward, first=nn.Linear(6, 8), layer=make(), last=nn.Linear(width, 4)), inputs()

    FOUND.append(OtherNetwork(f"recurrent/{name}", "recurrent", build))


recurrent("lstm", lambda: nn.LSTM(8, 10, batch_first=True), lambda: torch.randn(2, 5, 6))
recurrent("lstm_time_first", lambda: nn.LSTM(8, 10), lambda: torch.randn(5, 2, 6))
recurrent("gru", lambda: nn.GRU(8, 10, 2, batch_first=True), lambda: torch.randn(2, 5, 6))
recurrent("gru_time_first", lambda: nn.GRU(8, 10), lambda: torch.randn(5, 2, 6))
recurrent(
    "rnn_both_ways", lambda: nn.RNN(8, 10, bidirectional=True, batch_first=True), lambda: torch.randn(2, 5, 6), 20
)
recurrent("lstm_projected", lambda: nn.LSTM(8, 12, proj_size=10, batch_first=True), lambda: torch.randn(2, 5, 6))


@listed("recurrent")
def cells() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden, cell = x.new_zeros(len(x), 10), x.new_zeros(len(x), 10)
        for step in x.unbind(1):
            hidden, cell = self.cell(step, (hidden, cell))
        return self.last(hidden)

    return Do(forward, cell=nn.LSTMCell(6, 10), last=nn.Linear(10, 4)), torch.randn(2, 4, 6)


@listed("recurrent")
def gru_cells() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        for step in x.unbind(1):
            hidden = self.cell(step, hidden)
        return self.last(hidden), hidden

    return Do(forward, cell=nn.GRUCell(6, 10), last=nn.Linear(10, 4)), (torch.randn(2, 4, 6), torch.randn(2, 10))


@listed("recurrent")
def given_states() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor, states: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        found, states = self.layer(x, states)
        return self.last(found), states

    return Do(forward, layer=nn.LSTM(6, 10, batch_first=True), last=nn.Linear(10, 4)), (
        torch.randn(2, 5, 6),
        (torch.randn(1, 2, 10), torch.randn(1, 2, 10)),
    )


@listed("recurrent")
def packed_sequences() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.last(self.layer(packed)[1][0][-1])

    return Do(forward, layer=nn.LSTM(6, 10, batch_first=True), last=nn.Linear(10, 4)), (
        torch.randn(2, 5, 6),
        torch.tensor([5, 3]),
    )


@listed("recurrent")
def translation() -> tuple[nn.Module, Any]:
    def forward(self: Any, source: Tensor, target: Tensor) -> Tensor:
        found, state = self.encoder(self.words(source))
        hidden = self.decoder(self.words(target), state)[0]
        share = (hidden @ found.transpose(1, 2)).softmax(-1)
        return self.last(torch.cat([hidden, share @ found], -1))

    return Do(
        forward,
        words=nn.Embedding(30, 8),
        encoder=nn.GRU(8, 10, batch_first=True),
        decoder=nn.GRU(8, 10, batch_first=True),
        last=nn.Linear(20, 30),
    ), (words(), words(5))


@listed("recurrent")
def characters() -> tuple[nn.Module, Any]:
    def forward(self: Any, ids: Tensor, letters: Tensor) -> Tensor:
        found = (
            self.conv(self.letters(letters).flatten(0, 1).transpose(1, 2)).max(2).values.unflatten(0, letters.shape[:2])
        )
        return self.last(self.layer(torch.cat([self.words(ids), found], -1))[0])

    return Do(
        forward,
        words=nn.Embedding(30, 8),
        letters=nn.Embedding(20, 6),
        conv=nn.Conv1d(6, 7, 3, padding=1),
        layer=nn.LSTM(15, 10, bidirectional=True, batch_first=True),
        last=nn.Linear(20, 4),
    ), (words(), torch.randint(0, 20, (2, 7, 5)))


@listed("recurrent")
def state_space() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        found = self.enter(x)
        decay, state, kept = self.decay.sigmoid(), found.new_zeros(len(x), 12), []
        for step in found.unbind(1):
            state = decay * state + step
            kept.append(state)
        return self.leave(torch.stack(kept, 1))

    return Do(
        forward, enter=nn.Linear(6, 12), decay=nn.Parameter(torch.zeros(12)), leave=nn.Linear(12, 4)
    ), torch.randn(2, 5, 6)


@listed("recurrent")
def forecasting() -> tuple[nn.Module, Any]:
    """Residual blocks that forecast what the ones before left over, as N-BEATS has them."""

    def forward(self: Any, x: Tensor) -> Tensor:
        forecast = 0
        for hidden, back, ahead in zip(self.hidden, self.back, self.ahead, strict=True):
            found = hidden(x)
            x, forecast = x - back(found), forecast + ahead(found)
        return forecast

    lists = {
        "hidden": nn.ModuleList(mlp(12, 20, 16, last=True) for _ in range(2)),
        "back": nn.ModuleList(nn.Linear(16, 12) for _ in range(2)),
        "ahead": nn.ModuleList(nn.Linear(16, 4) for _ in range(2)),
    }
    return Do(forward, **lists), torch.randn(4, 12)


# Graphs.


def edges() -> Tensor:
    return torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 3, 5]])


@listed("graphs")
def message_passing() -> tuple[nn.Module, Any]:
    def forward(self: Any, nodes: Tensor, edge: Tensor) -> Tensor:
        sent = self.message(torch.cat([nodes[edge[0]], nodes[edge[1]]], -1))
        found = torch.zeros(len(nodes), 12).index_add(0, edge[1], sent)
        return self.last(self.update(torch.cat([nodes, found], -1)))

    return Do(forward, message=mlp(16, 16, 12), update=mlp(20, 14, last=True), last=nn.Linear(14, 3)), (
        torch.randn(6, 8),
        edges(),
    )


@listed("graphs")
def graph_convolution() -> tuple[nn.Module, Any]:
    forward = lambda self, nodes, near: near @ self.second((near @ self.first(nodes)).relu())  # noqa: E731
    return Do(forward, first=nn.Linear(8, 12), second=nn.Linear(12, 3)), (torch.randn(6, 8), torch.rand(6, 6))


@listed("graphs")
def graph_convolution_batched() -> tuple[nn.Module, Any]:
    forward = lambda self, nodes, near: (near @ self.second((near @ self.first(nodes)).relu())).mean(1)  # noqa: E731
    return Do(forward, first=nn.Linear(8, 12), second=nn.Linear(12, 3)), (torch.randn(2, 6, 8), torch.rand(2, 6, 6))


@listed("graphs")
def graph_attention() -> tuple[nn.Module, Any]:
    def forward(self: Any, nodes: Tensor, is_edge: Tensor) -> Tensor:
        found = self.first(nodes)
        scores = F.leaky_relu(self.one(found) + self.other(found).transpose(1, 2))
        return self.last((scores.masked_fill(~is_edge, -1e4).softmax(-1) @ found).relu())

    return Do(forward, first=nn.Linear(8, 12), one=nn.Linear(12, 1), other=nn.Linear(12, 1), last=nn.Linear(12, 3)), (
        torch.randn(2, 6, 8),
        torch.rand(2, 6, 6) > 0.5,
    )


@listed("graphs")
def sage_scatter() -> tuple[nn.Module, Any]:
    def forward(self: Any, nodes: Tensor, edge: Tensor) -> Tensor:
        found = self.first(nodes)
        place = edge[1][:, None].expand(-1, found.shape[1])
        near = torch.zeros_like(found).scatter_reduce(0, place, found[edge[0]], "amax")
        return self.last(self.near(near) + self.own(found))

    return Do(forward, first=nn.Linear(8, 12), near=nn.Linear(12, 10), own=nn.Linear(12, 10), last=nn.Linear(10, 3)), (
        torch.randn(6, 8),
        edges(),
    )


@listed("graphs")
def graph_readout() -> tuple[nn.Module, Any]:
    def forward(self: Any, graph: Any) -> Tensor:
        found = self.first(graph["nodes"]).relu()
        found = found + torch.zeros_like(found).index_add(0, graph["edges"][1], self.second(found)[graph["edges"][0]])
        return self.last(found.mean(0, keepdim=True))

    return Do(forward, first=nn.Linear(8, 12), second=nn.Linear(12, 12), last=nn.Linear(12, 3)), {
        "nodes": torch.randn(6, 8),
        "edges": edges(),
    }


@listed("graphs")
def set_network() -> tuple[nn.Module, Any]:
    return Do(
        lambda self, x: self.outer(self.inner(x).sum(1)), inner=mlp(6, 16, 12), outer=mlp(12, 10, 3)
    ), torch.randn(2, 5, 6)


@listed("graphs")
def relation_network() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        count = x.shape[1]
        pairs = torch.cat([x[:, :, None].expand(-1, -1, count, -1), x[:, None].expand(-1, count, -1, -1)], -1)
        return self.outer(self.inner(pairs).sum((1, 2)))

    return Do(forward, inner=mlp(12, 16, 12), outer=mlp(12, 10, 3)), torch.randn(2, 5, 6)


# Generative networks.


@listed("generative")
def autoencoder() -> tuple[nn.Module, Any]:
    return nn.Sequential(
        conv(3, 8, 2), conv(8, 12, 2), nn.ConvTranspose2d(12, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1)
    ), images()


class Drawn(NamedTuple):
    """What a variational autoencoder returns."""

    image: Tensor
    mean: Tensor
    spread: Tensor


@listed("generative")
def variational_autoencoder() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Drawn:
        mean, spread = self.code(self.encoder(x)).chunk(2, -1)
        drawn = mean + torch.randn_like(mean) * (0.5 * spread).exp() if self.training else mean
        return Drawn(self.decoder(drawn), mean, spread)

    return Do(
        forward, encoder=mlp(20, 16, 12, last=True), code=nn.Linear(12, 8), decoder=mlp(4, 12, 16, 20)
    ), torch.randn(4, 20)


@listed("generative")
def distribution_output() -> tuple[nn.Module, Any]:
    def forward(self, x):
        return torch.distributions.Normal(self.mean(self.body(x)), self.spread(self.body(x)).exp(), validate_args=False)

    return Do(forward, body=mlp(6, 16, 12, last=True), mean=nn.Linear(12, 3), spread=nn.Linear(12, 3)), torch.randn(
        4, 6
    )


@listed("generative")
def gan_generator() -> tuple[nn.Module, Any]:
    return nn.Sequential(
        nn.Unflatten(1, (10, 1, 1)),
        nn.ConvTranspose2d(10, 16, 4, 1, 0),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 3, 4, 2, 1),
        nn.Tanh(),
    ), torch.randn(4, 10)


@listed("generative")
def gan_discriminator() -> tuple[nn.Module, Any]:
    norm = parametrizations.spectral_norm
    return nn.Sequential(
        norm(nn.Conv2d(3, 8, 4, 2, 1)),
        nn.LeakyReLU(0.2),
        norm(nn.Conv2d(8, 12, 4, 2, 1)),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(12 * 16, 1),
    ), images(size=16)


@listed("generative")
def old_spectral_norm() -> tuple[nn.Module, Any]:
    norm = nn.utils.spectral_norm
    return nn.Sequential(
        norm(nn.Conv2d(3, 8, 4, 2, 1)),
        nn.LeakyReLU(0.2),
        nn.Conv2d(8, 12, 4, 2, 1),
        nn.Flatten(),
        nn.Linear(12 * 16, 1),
    ), images(size=16)


@listed("generative")
def style_modulation() -> tuple[nn.Module, Any]:
    """Kernels of their own for each sample: groups of a convolution are the samples."""

    def forward(self: Any, x: Tensor, style: Tensor) -> Tensor:
        weight = self.weight[None] * (1 + self.style(style))[:, None, :, None, None]
        found = F.conv2d(x.reshape(1, -1, 8, 8), weight.flatten(0, 1), padding=1, groups=len(x))
        return self.last(found.reshape(len(x), 8, 8, 8).relu())

    return Do(
        forward, weight=nn.Parameter(torch.randn(8, 6, 3, 3) * 0.1), style=nn.Linear(5, 6), last=nn.Conv2d(8, 3, 1)
    ), (torch.randn(2, 6, 8, 8), torch.randn(2, 5))


@listed("generative")
def adaptive_instance_norm() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.style(style)[:, :, None, None].chunk(2, 1)
        return self.last((F.instance_norm(self.first(x)) * (1 + scale) + shift).relu())

    return Do(forward, first=nn.Conv2d(3, 8, 3, padding=1), style=nn.Linear(5, 16), last=nn.Conv2d(8, 3, 1)), (
        images(size=16),
        torch.randn(2, 5),
    )


@listed("generative")
def image_translation() -> tuple[nn.Module, Any]:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.ReflectionPad2d(1),
                nn.Conv2d(12, 12, 3),
                nn.InstanceNorm2d(12),
                nn.ReLU(),
                nn.ReflectionPad2d(1),
                nn.Conv2d(12, 12, 3),
                nn.InstanceNorm2d(12),
            )

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x)

    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), Block(), Block(), nn.Upsample(scale_factor=2), nn.Conv2d(12, 3, 3, padding=1)
    ), images(size=16)


@listed("generative")
def patch_discriminator() -> tuple[nn.Module, Any]:
    forward = lambda self, given: [self.net(each) for each in given["images"]]  # noqa: E731
    return Do(forward, net=nn.Sequential(conv(3, 8, 2), conv(8, 12, 2), nn.Conv2d(12, 1, 1))), {
        "images": [images(), images()]
    }


@listed("generative")
def diffusion_u_net() -> tuple[nn.Module, Any]:
    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.norm, self.conv = nn.GroupNorm(2, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
            self.time, self.skip = nn.Linear(16, outputs), nn.Conv2d(inputs, outputs, 1)

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return self.skip(x) + self.conv(F.silu(self.norm(x))) + self.time(time)[:, :, None, None]

    def forward(self: Any, x: Tensor, step: Tensor) -> Tensor:
        angles = step[:, None] * torch.exp(-torch.arange(4.0))
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        first = self.first(self.enter(x), time)
        found = self.middle(F.avg_pool2d(first, 2), time)
        tokens = found.flatten(2).transpose(1, 2)
        found = found + self.attention(tokens, tokens, tokens)[0].transpose(1, 2).unflatten(2, found.shape[2:])
        return self.leave(self.up(torch.cat([first, F.interpolate(found, scale_factor=2.0)], 1), time))

    modules = {"enter": nn.Conv2d(3, 8, 3, padding=1), "first": Block(8, 8), "middle": Block(8, 16), "up": Block(24, 8)}
    return Do(
        forward,
        time=mlp(8, 16, 16),
        attention=nn.MultiheadAttention(16, 2, batch_first=True),
        leave=nn.Conv2d(8, 3, 3, padding=1),
        **modules,
    ), (images(size=16), torch.rand(2))


@listed("generative")
def diffusion_one_step() -> tuple[nn.Module, Any]:
    """The time is one number for all samples."""
    forward = lambda self, x, step: self.last((self.first(x) + self.time(step.view(1, 1))).relu())  # noqa: E731
    return Do(forward, first=nn.Linear(6, 16), time=nn.Linear(1, 16), last=nn.Linear(16, 6)), (
        torch.randn(4, 6),
        torch.tensor(0.5),
    )


@listed("generative")
def diffusion_transformer() -> tuple[nn.Module, Any]:
    class Block(Layer):
        def __init__(self) -> None:
            super().__init__(norm=lambda width: nn.LayerNorm(width, elementwise_affine=False))
            self.modulation = nn.Linear(8, 48)

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            scale, shift, gate = self.modulation(F.silu(time))[:, None].chunk(3, -1)
            return x + gate * attention(self.before(x) * (1 + scale) + shift, self, 2)

    def forward(self: Any, x: Tensor, time: Tensor) -> Tensor:
        return self.leave(self.second(self.first(self.enter(x), time), time))

    return Do(forward, enter=nn.Linear(6, 16), first=Block(), second=Block(), leave=nn.Linear(16, 6)), (
        torch.randn(2, 5, 6),
        torch.randn(2, 8),
    )


@listed("generative")
def coupling_flow() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        one, other = x.chunk(2, -1)
        scale, shift = self.net(one).chunk(2, -1)
        return torch.cat([one, other * scale.tanh().exp() + shift], -1), scale.tanh().sum(-1)

    return Do(forward, net=mlp(4, 16, 12, 8)), torch.randn(4, 8)


@listed("generative")
def code_book() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        coded = self.encoder(x)
        nearest = torch.cdist(coded, self.codes.weight).argmin(-1)
        return self.decoder(coded + (self.codes(nearest) - coded).detach())

    return Do(forward, encoder=mlp(10, 16, 6), codes=nn.Embedding(9, 6), decoder=mlp(6, 16, 10)), torch.randn(4, 10)


@listed("generative")
def masked_autoregression() -> tuple[nn.Module, Any]:
    forward = lambda self, x: self.last(F.linear(x, self.first.weight * self.mask, self.first.bias).relu())  # noqa: E731
    return Do(forward, first=nn.Linear(6, 12), mask=torch.ones(12, 6).tril(), last=nn.Linear(12, 6)), torch.randn(4, 6)


@listed("generative")
def pixel_cnn() -> tuple[nn.Module, Any]:
    class Masked(nn.Conv2d):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs, 3, padding=1)
            mask = torch.ones(3, 3)
            mask[1, 2:], mask[2] = 0, 0
            self.register_buffer("mask", mask)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)

    return nn.Sequential(Masked(1, 8), nn.ReLU(), Masked(8, 12), nn.ReLU(), nn.Conv2d(12, 4, 1)), images(1, 16)


@listed("generative")
def hyper_network() -> tuple[nn.Module, Any]:
    """Its weights come of another network."""

    def forward(self: Any, x: Tensor) -> Tensor:
        weight = self.weights(self.code).view(12, 6)
        return self.last(F.linear(x, weight).relu())

    return Do(forward, code=nn.Parameter(torch.randn(4)), weights=mlp(4, 10, 72), last=nn.Linear(12, 3)), torch.randn(
        4, 6
    )


# Recommenders and tables.


def features(rows: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 5), torch.randint(0, 10, (rows, 3))


@listed("recommenders")
def wide_and_deep() -> tuple[nn.Module, Any]:
    def forward(self: Any, dense: Tensor, sparse: Tensor) -> Tensor:
        return self.wide(dense) + self.deep(torch.cat([dense, self.words(sparse).flatten(1)], -1))

    return Do(forward, wide=nn.Linear(5, 1), words=nn.Embedding(10, 4), deep=mlp(17, 16, 12, 1)), features()


@listed("recommenders")
def dlrm() -> tuple[nn.Module, Any]:
    def forward(self: Any, dense: Tensor, sparse: Tensor) -> Tensor:
        bottom = self.bottom(dense)
        found = torch.cat([bottom[:, None], self.words(sparse)], 1)
        pairs = torch.bmm(found, found.transpose(1, 2))[
            :, torch.tril_indices(4, 4, -1)[0], torch.tril_indices(4, 4, -1)[1]
        ]
        return self.top(torch.cat([bottom, pairs], -1))

    return Do(forward, bottom=mlp(5, 16, 8), words=nn.Embedding(10, 8), top=mlp(14, 12, 1)), features()


@listed("recommenders")
def deep_fm() -> tuple[nn.Module, Any]:
    def forward(self: Any, sparse: Tensor) -> Tensor:
        found = self.words(sparse)
        second = 0.5 * (found.sum(1) ** 2 - (found**2).sum(1)).sum(-1, keepdim=True)
        return self.bias(sparse).sum(1) + second + self.deep(found.flatten(1))

    return Do(forward, words=nn.Embedding(10, 6), bias=nn.Embedding(10, 1), deep=mlp(18, 16, 12, 1)), features()[1]


@listed("recommenders")
def two_towers() -> tuple[nn.Module, Any]:
    forward = lambda self, user, item: (self.user(self.users(user)) * self.item(self.items(item))).sum(-1)  # noqa: E731
    return Do(forward, users=nn.Embedding(10, 6), items=nn.Embedding(10, 6), user=mlp(6, 12, 8), item=mlp(6, 12, 8)), (
        torch.randint(0, 10, (4,)),
        torch.randint(0, 10, (4,)),
    )


@listed("recommenders")
def embedding_bags() -> tuple[nn.Module, Any]:
    return Do(
        lambda self, ids: self.last(self.bag(ids)), bag=nn.EmbeddingBag(10, 8), last=mlp(8, 12, 3)
    ), torch.randint(0, 10, (4, 5))


@listed("recommenders")
def cross_network() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        found = x
        for layer in self.layers:
            found = x * layer(found) + found
        return self.last(torch.cat([found, self.deep(x)], -1))

    return Do(
        forward,
        layers=nn.ModuleList(nn.Linear(8, 8) for _ in range(2)),
        deep=mlp(8, 16, 12, last=True),
        last=nn.Linear(20, 1),
    ), torch.randn(4, 8)


@listed("recommenders")
def tasks_with_gates() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> dict[str, Tensor]:
        experts = torch.stack([expert(x) for expert in self.experts], 1)
        return {
            name: self.heads[name]((gate(x).softmax(-1)[..., None] * experts).sum(1))
            for name, gate in self.gates.items()
        }

    pairs = lambda inputs, outputs: nn.ModuleDict({name: nn.Linear(inputs, outputs) for name in ("click", "buy")})  # noqa: E731
    return Do(
        forward, experts=nn.ModuleList(mlp(6, 16, 10) for _ in range(3)), gates=pairs(6, 3), heads=pairs(10, 1)
    ), torch.randn(4, 6)


@listed("recommenders")
def sequential_attention() -> tuple[nn.Module, Any]:
    def forward(self: Any, given: dict[str, Tensor]) -> Tensor:
        past, item = self.items(given["past"]), self.items(given["item"])
        weights = self.weight(torch.cat([past, item[:, None].expand_as(past), past * item[:, None]], -1))
        return self.top(torch.cat([(weights * past).sum(1), item], -1))

    return Do(forward, items=nn.Embedding(10, 6), weight=mlp(18, 10, 1), top=mlp(12, 10, 1)), {
        "past": torch.randint(0, 10, (4, 5)),
        "item": torch.randint(0, 10, (4,)),
    }


@listed("recommenders")
def table_transformer() -> tuple[nn.Module, Any]:
    def forward(self: Any, dense: Tensor, sparse: Tensor) -> Tensor:
        tokens = torch.cat([dense[..., None] * self.scale + self.shift, self.words(sparse)], 1)
        return self.last(self.layer(tokens)[:, 0])

    return Do(
        forward,
        scale=nn.Parameter(torch.randn(5, 16)),
        shift=nn.Parameter(torch.randn(5, 16)),
        words=nn.Embedding(10, 16),
        layer=Layer(),
        last=nn.Linear(16, 1),
    ), features()


@listed("recommenders")
def soft_trees() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        left = self.splits(self.body(x)).sigmoid()
        leaves = torch.stack(
            [
                left[:, 0] * left[:, 1],
                left[:, 0] * (1 - left[:, 1]),
                (1 - left[:, 0]) * left[:, 2],
                (1 - left[:, 0]) * (1 - left[:, 2]),
            ],
            -1,
        )
        return leaves @ self.values

    return Do(
        forward, body=mlp(6, 12, last=True), splits=nn.Linear(12, 3), values=nn.Parameter(torch.randn(4, 2))
    ), torch.randn(4, 6)


# Reinforcement learning.


@listed("reinforcement")
def atari_q() -> tuple[nn.Module, Any]:
    return nn.Sequential(
        nn.Conv2d(4, 8, 8, 4),
        nn.ReLU(),
        nn.Conv2d(8, 12, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 9, 24),
        nn.ReLU(),
        nn.Linear(24, 6),
    ), images(4, 40)


@listed("reinforcement")
def duelling_q() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        found = self.body(x)
        advantage = self.advantage(found)
        return self.value(found) + advantage - advantage.mean(-1, keepdim=True)

    return Do(forward, body=mlp(6, 16, 12, last=True), value=mlp(12, 8, 1), advantage=mlp(12, 8, 4)), torch.randn(4, 6)


@listed("reinforcement")
def actor_critic() -> tuple[nn.Module, Any]:
    def forward(self, x):
        return (
            torch.distributions.Categorical(logits=self.actor(self.body(x)), validate_args=False),
            self.critic(self.body(x)),
        )

    return Do(forward, body=mlp(6, 16, 12, last=True), actor=nn.Linear(12, 4), critic=nn.Linear(12, 1)), torch.randn(
        4, 6
    )


@listed("reinforcement")
def squashed_actor() -> tuple[nn.Module, Any]:
    def forward(self: Any, state: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.body(state).chunk(2, -1)
        return mean.tanh(), spread.clamp(-5, 2)

    return Do(forward, body=mlp(6, 16, 12, 4)), torch.randn(4, 6)


@listed("reinforcement")
def twin_critics() -> tuple[nn.Module, Any]:
    def forward(self, state, action):
        return torch.minimum(self.one(torch.cat([state, action], -1)), self.two(torch.cat([state, action], -1)))

    return Do(forward, one=mlp(8, 16, 12, 1), two=mlp(8, 16, 12, 1)), (torch.randn(4, 6), torch.randn(4, 2))


@listed("reinforcement")
def distributional_q() -> tuple[nn.Module, Any]:
    forward = lambda self, x: (self.body(x).unflatten(-1, (4, 5)).softmax(-1) * torch.linspace(-1, 1, 5)).sum(-1)  # noqa: E731
    return Do(forward, body=mlp(6, 16, 12, 20)), torch.randn(4, 6)


@listed("reinforcement")
def world_model() -> tuple[nn.Module, Any]:
    def forward(self: Any, state: Tensor, action: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        hidden = self.cell(self.enter(torch.cat([state, action], -1)).relu(), hidden)
        return {"hidden": hidden, "reward": self.reward(hidden), "next": self.ahead(hidden)}

    return Do(forward, enter=nn.Linear(8, 12), cell=nn.GRUCell(12, 10), reward=mlp(10, 8, 1), ahead=mlp(10, 8, 6)), (
        torch.randn(4, 6),
        torch.randn(4, 2),
        torch.randn(4, 10),
    )


@listed("reinforcement")
def decision_transformer() -> tuple[nn.Module, Any]:
    def forward(self: Any, states: Tensor, actions: Tensor, returns: Tensor) -> Tensor:
        parts = torch.stack([self.returns(returns), self.states(states), self.actions(actions)], 2)
        return self.last(self.layer(parts.flatten(1, 2)).unflatten(1, (-1, 3))[:, :, 1])

    return Do(
        forward,
        states=nn.Linear(6, 16),
        actions=nn.Linear(2, 16),
        returns=nn.Linear(1, 16),
        layer=Layer(),
        last=nn.Linear(16, 2),
    ), (torch.randn(2, 4, 6), torch.randn(2, 4, 2), torch.randn(2, 4, 1))


@listed("reinforcement")
def mixed_values() -> tuple[nn.Module, Any]:
    """Weights of the second network are the outputs of the first, one matrix for each sample."""

    def forward(self: Any, values: Tensor, state: Tensor) -> Tensor:
        first = self.first(state).abs().unflatten(-1, (3, 8))
        hidden = F.elu(torch.bmm(values[:, None], first))
        return torch.bmm(hidden, self.second(state).abs()[..., None]).flatten(1)

    return Do(forward, first=mlp(6, 12, 24), second=mlp(6, 12, 8)), (torch.randn(4, 3), torch.randn(4, 6))


@listed("reinforcement")
def observations_in_a_dict() -> tuple[nn.Module, Any]:
    forward = lambda self, given: self.last(torch.cat([self.seen(given["pixels"]), self.felt(given["numbers"])], -1))  # noqa: E731
    seen = nn.Sequential(conv(3, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Do(forward, seen=seen, felt=mlp(4, 10, last=True), last=nn.Linear(18, 3)), {
        "pixels": images(size=16),
        "numbers": torch.randn(2, 4),
    }


# Every kind of input and wrapper.


class Body(nn.Module):
    """Rows [batch, 6] to three numbers, which a mask may leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        found = self.last(self.second(self.first(x).relu()).relu())
        return found if mask is None else found * mask


@dataclass
class Given:
    """Inputs as a record."""

    x: Tensor
    mask: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Encoding(UserDict[str, Any]):
    """A mapping that is no dict."""


class NestedTensor:
    """A class of a user's, as DETR has it."""

    def __init__(self, tensors: Tensor, mask: Tensor) -> None:
        self.tensors, self.mask = tensors, mask


def of(function: Callable[[Any, Any], Any]) -> nn.Module:
    return Do(lambda self, *given: function(self.body, *given), body=Body())


def rows() -> Tensor:
    return torch.randn(4, 6)


STRUCTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "positions": (Body, lambda: (rows(), torch.ones(4, 3))),
    "none": (Body, lambda: (rows(), None)),
    "names": (Body, lambda: {"mask": torch.ones(4, 3), "x": rows()}),
    "names_ordered": (Body, lambda: OrderedDict(x=rows(), mask=torch.ones(4, 3))),
    "names_encoded": (Body, lambda: Encoding(x=rows(), mask=torch.ones(4, 3))),
    "positions_and_names": (Body, lambda: Inputs(rows(), mask=torch.ones(4, 3))),
    "dict": (lambda: of(lambda body, given: {"y": body(given["x"])}), lambda: {"x": rows(), "unread": torch.ones(4)}),
    "dict_of_dicts": (
        lambda: of(lambda body, given: body(given["a"]["x"], given["b"][0])),
        lambda: {"a": {"x": rows()}, "b": [torch.ones(4, 3), None]},
    ),
    "list": (lambda: of(lambda body, given: [body(each) for each in given]), lambda: [rows(), rows()]),
    "tuple_of_tuples": (
        lambda: of(lambda body, given, more: (body(given[0]), (body(more[0]),))),
        lambda: ((rows(), rows()), (rows(),)),
    ),
    "record": (
        lambda: of(lambda body, given: Given(body(given.x, given.mask))),
        lambda: Given(rows(), torch.ones(4, 3), {"a": "b"}),
    ),
    "named_tuple": (
        lambda: of(lambda body, given: Drawn(body(given.image), given.mean, given.spread)),
        lambda: Drawn(rows(), rows(), rows()),
    ),
    "object": (
        lambda: of(lambda body, given: NestedTensor(body(given.tensors), given.mask)),
        lambda: NestedTensor(rows(), torch.ones(4)),
    ),
    "flag": (lambda: of(lambda body, x, flag: body(x).tanh() if flag else body(x)), lambda: (rows(), True)),
    "text": (lambda: of(lambda body, x, kind: body(x).tanh() if kind == "tanh" else body(x)), lambda: (rows(), "tanh")),
    "number": (lambda: of(lambda body, x, scale: body(x) * scale), lambda: (rows(), 2.5)),
    "scalar_tensor": (lambda: of(lambda body, x, scale: body(x) * scale), lambda: (rows(), torch.tensor(2.5))),
    "shared_rows": (
        lambda: of(lambda body, x, places: body(x + places)),
        lambda: (torch.randn(4, 5, 6), torch.randn(5, 6)),
    ),
    "whole_numbers": (lambda: of(lambda body, x: body(F.one_hot(x, 6).float())), lambda: torch.randint(0, 6, (4,))),
    "booleans": (lambda: of(lambda body, x: body(x.float())), lambda: torch.rand(4, 6) > 0.5),
    "complex": (lambda: of(lambda body, x: body(x.abs())), lambda: torch.randn(4, 6, dtype=torch.complex64)),
    "twice_the_same": (lambda: of(lambda body, x, y: body(x) + body(y)), lambda: (rows(),) * 2),
    "returns_none": (lambda: of(lambda body, x: (body(x), None, "text", 3)), rows),
    "returns_features": (lambda: of(lambda body, x: OrderedDict(hidden=body.first(x), y=body(x))), rows),
    "loss_inside": (
        lambda: of(lambda body, x, y: {"loss": F.mse_loss(body(x), y), "y": body(x)}),
        lambda: (rows(), torch.zeros(4, 3)),
    ),
}


def _pruned() -> nn.Module:
    network = Body()
    prune.l1_unstructured(network.first, "weight", 0.5)
    return network


def _hooked() -> nn.Module:
    network, seen = Body(), {}
    network.second.register_forward_hook(lambda module, given, found: seen.update(second=found))
    return network


def _keeping() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.kept = {"first": self.body.first(x)}
        return self.body(x)

    return Do(forward, body=Body())


def _shared() -> nn.Module:
    layer = nn.Linear(12, 12)
    return nn.Sequential(nn.Linear(6, 12), layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(12, 3))


WRAPPERS: dict[str, Callable[[], nn.Module]] = {
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(Body()),
    "data_parallel": lambda: nn.DataParallel(Body()),
    "compiled": lambda: torch.compile(Body()),  # type: ignore[return-value]
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))),
    "graph_module": lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(3)),
    "half_precision": lambda: Body().bfloat16(),
    "double_precision": lambda: Body().double(),
    "frozen": lambda: Body().requires_grad_(False),
    "pruned": _pruned,
    "quantised": lambda: torch.ao.quantization.quantize_dynamic(Body(), {nn.Linear}),
    "hooked": _hooked,
    "keeps_results": _keeping,
    "checkpointed": lambda: Do(
        lambda self, x: self.last(torch.utils.checkpoint.checkpoint(self.first, x, use_reentrant=False).relu()),
        first=nn.Linear(6, 16),
        last=nn.Linear(16, 3),
    ),
    "shared_layer": _shared,
    "orthogonal": lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(6, 16)), nn.ReLU(), nn.Linear(16, 3)),
    "without_parameters": lambda: nn.Sequential(nn.Flatten(), nn.ReLU()),
    "single_layer": lambda: nn.Linear(6, 3),
    "branching_on_values": lambda: Do(lambda self, x: self.body(x) if x.sum() > 0 else -self.body(x), body=Body()),
    "numpy_inside": lambda: Do(lambda self, x: self.body(torch.from_numpy(x.detach().numpy())), body=Body()),
    "dropout": lambda: nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 3)),
    "parameter_dict": lambda: Do(
        lambda self, x: (x @ self.weights["a"]).relu() @ self.weights["b"],
        weights=nn.ParameterDict({"a": torch.randn(6, 16), "b": torch.randn(16, 3)}),
    ),
    "loop_over_samples": lambda: Do(lambda self, x: torch.stack([self.body(each) for each in x]), body=Body()),
}


# Odd ones: what no family above has, each found by trying what had not been thought of.


@listed("odd")
def splines() -> tuple[nn.Module, Any]:
    """Functions on edges instead of weights, as Kolmogorov-Arnold networks have them."""

    def forward(self: Any, x: Tensor) -> Tensor:
        def curve(values: Tensor, weights: Tensor) -> Tensor:
            return torch.einsum("big,oig->bo", torch.exp(-((values.unsqueeze(-1) - self.grid) ** 2)), weights)

        x = self.enter(x)
        return curve(curve(x, self.first) + self.beside(F.silu(x)), self.second)

    first, second = nn.Parameter(torch.randn(14, 10, 6)), nn.Parameter(torch.randn(3, 14, 6))
    modules = {"enter": nn.Linear(5, 10), "beside": nn.Linear(10, 14)}
    return Do(forward, **modules, grid=torch.linspace(-1, 1, 6), first=first, second=second), torch.randn(4, 5)


@listed("odd")
def described_by_centres() -> tuple[nn.Module, Any]:
    """Residuals to centres, summed, as NetVLAD has them."""

    def forward(self: Any, x: Tensor) -> Tensor:
        found = self.body(x)
        share = self.assign(found).flatten(2).softmax(1)
        apart = torch.bmm(share, found.flatten(2).transpose(1, 2)) - share.sum(-1, keepdim=True) * self.centres
        return self.last(F.normalize(F.normalize(apart, dim=2).flatten(1)))

    modules = {"body": conv(3, 10), "assign": nn.Conv2d(10, 4, 1), "last": nn.Linear(40, 5)}
    return Do(forward, **modules, centres=nn.Parameter(torch.randn(4, 10))), images(size=8)


@listed("odd")
def slots() -> tuple[nn.Module, Any]:
    """Slots that compete for tokens and are updated by a recurrent cell."""

    def forward(self: Any, x: Tensor) -> Tensor:
        keys, values, found = self.keys(x), self.values(x), self.start.expand(len(x), -1, -1)
        for _ in range(2):
            share = (self.queries(self.norm(found)) @ keys.transpose(1, 2)).softmax(1)
            share = share / (share.sum(-1, keepdim=True) + 1e-6)
            found = self.cell((share @ values).flatten(0, 1), found.reshape(-1, 10)).view(len(x), -1, 10)
            found = found + self.mlp(found)
        return self.last(found)

    modules = {"keys": nn.Linear(4, 8), "values": nn.Linear(4, 12), "queries": nn.Linear(10, 8)}
    modules |= {"norm": nn.LayerNorm(10), "cell": nn.GRUCell(12, 10), "mlp": mlp(10, 14, 10), "last": nn.Linear(10, 4)}
    return Do(forward, **modules, start=nn.Parameter(torch.randn(1, 3, 10))), torch.randn(2, 7, 4)


@listed("odd")
def tensor_train() -> tuple[nn.Module, Any]:
    """A linear layer as a product of small tensors."""

    def forward(self: Any, x: Tensor) -> Tensor:
        cells = self.enter(x).view(-1, 3, 4)
        return self.last(torch.einsum("bij,ioa,ajp->bop", cells, self.first, self.second).flatten(1).relu())

    cores = {"first": nn.Parameter(torch.randn(3, 4, 2)), "second": nn.Parameter(torch.randn(2, 4, 5))}
    return Do(forward, enter=nn.Linear(5, 12), last=nn.Linear(20, 3), **cores), torch.randn(4, 5)


@listed("odd")
def involution() -> tuple[nn.Module, Any]:
    """A kernel for each pixel, computed from it."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, _, rows, columns = x.shape
        kernels = self.span(self.reduce(x)).view(batch, 2, 9, rows, columns).unsqueeze(2)
        patches = F.unfold(x, 3, padding=1).view(batch, 2, 4, 9, rows, columns)
        return self.last((patches * kernels).sum(3).flatten(1, 2).mean((2, 3)))

    modules = {"stem": conv(3, 8), "reduce": conv(8, 6), "span": nn.Conv2d(6, 18, 1), "last": nn.Linear(8, 5)}
    return Do(forward, **modules), images(size=8)


@listed("odd")
def tagger_with_transitions() -> tuple[nn.Module, Any]:
    """A score of a sequence of tags, as a conditional random field gives it."""

    def forward(self: Any, words: Tensor, tags: Tensor) -> Tensor:
        found = self.last(self.rnn(self.words(words))[0])
        score = found.gather(2, tags.unsqueeze(-1)).squeeze(-1).sum(1) + self.steps[tags[:, :-1], tags[:, 1:]].sum(1)
        paths = found[:, 0]
        for place in range(1, found.shape[1]):
            paths = torch.logsumexp(paths.unsqueeze(2) + self.steps, 1) + found[:, place]
        return score - paths.logsumexp(1)

    rnn = nn.LSTM(8, 6, bidirectional=True, batch_first=True)
    modules = {"words": nn.Embedding(20, 8), "rnn": rnn, "last": nn.Linear(12, 5)}
    example = torch.randint(20, (3, 6)), torch.randint(5, (3, 6))
    return Do(forward, **modules, steps=nn.Parameter(torch.randn(5, 5))), example


@listed("odd")
def weighed_kernels() -> tuple[nn.Module, Any]:
    """A kernel that is the mean of several, by shares of the whole batch."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        shares = self.route(x.mean((2, 3))).softmax(-1).mean(0)
        kernel = (shares.view(-1, 1, 1, 1, 1) * self.kernels).sum(0)
        return self.last(F.conv2d(x, kernel, padding=1).relu().mean((2, 3)))

    modules = {"stem": conv(3, 8), "route": nn.Linear(8, 4), "last": nn.Linear(10, 3)}
    return Do(forward, **modules, kernels=nn.Parameter(torch.randn(4, 10, 8, 3, 3))), images(size=8)


@listed("odd")
def kernels_for_each_sample() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, channels, rows, columns = x.shape
        kernels = (self.route(x.mean((2, 3))).sigmoid() @ self.kernels.view(4, -1)).view(batch * 10, channels, 3, 3)
        found = F.conv2d(x.view(1, batch * channels, rows, columns), kernels, padding=1, groups=batch)
        return self.last(found.view(batch, 10, rows, columns).relu().mean((2, 3)))

    modules = {"stem": conv(3, 8), "route": nn.Linear(8, 4), "last": nn.Linear(10, 3)}
    return Do(forward, **modules, kernels=nn.Parameter(torch.randn(4, 10, 8, 3, 3))), images(size=8)


@listed("odd")
def shared_keys() -> tuple[nn.Module, Any]:
    """Two queries share a key and a value, as `enable_gqa` says."""

    def forward(self: Any, x: Tensor) -> Tensor:
        heads = [layer(x).unflatten(-1, (-1, 5)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        return self.last(
            F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)
        )

    modules = {"query": nn.Linear(7, 20), "key": nn.Linear(7, 10), "value": nn.Linear(7, 10), "last": nn.Linear(20, 3)}
    return Do(forward, **modules), torch.randn(3, 6, 7)


@listed("odd")
def attention_of_channels() -> tuple[nn.Module, Any]:
    """Channels attend to channels, so that a cost grows with the square of a width."""

    def forward(self: Any, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.enter(x)).view(len(x), 6, 3, 2, 8).permute(2, 0, 3, 4, 1)
        share = (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT * self.heat).softmax(-1)
        return self.last((share @ value).permute(0, 3, 1, 2).flatten(2).mean(1))

    modules = {"enter": nn.Linear(5, 10), "qkv": nn.Linear(10, 48), "last": nn.Linear(16, 3)}
    return Do(forward, **modules, heat=nn.Parameter(torch.ones(2, 1, 1))), torch.randn(4, 6, 5)


@listed("odd")
def gram_matrix() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        found = self.body(x).flatten(2)
        return self.last(((found @ found.mT).softmax(-1) @ found).mean(2))

    return Do(forward, body=conv(3, 8), last=nn.Linear(8, 3)), images(size=8)


@listed("odd")
def channels_in_space() -> tuple[nn.Module, Any]:
    """A convolution that runs along the channels of another."""

    def forward(self: Any, x: Tensor) -> Tensor:
        found = self.body(x)
        gate = self.gate(found.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1)
        return self.last((found * gate).mean((2, 3)))

    gate = nn.Sequential(nn.Conv1d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 1, 3, padding=1))
    return Do(forward, body=conv(3, 12), gate=gate, last=nn.Linear(12, 3)), images(size=8)


@listed("odd")
def rows_then_columns() -> tuple[nn.Module, Any]:
    """Recurrent layers along the rows of a map and then along its columns."""

    def forward(self: Any, x: Tensor) -> Tensor:
        found = self.stem(x).permute(0, 2, 3, 1)
        batch, rows, columns, width = found.shape
        found = self.along(found.reshape(batch * rows, columns, width))[0].view(batch, rows, columns, -1)
        found = found.transpose(1, 2).reshape(batch * columns, rows, found.shape[-1])
        return self.last(self.down(found)[0].view(batch, columns, rows, -1).mean((1, 2)))

    along = nn.GRU(8, 6, bidirectional=True, batch_first=True)
    down = nn.LSTM(12, 5, bidirectional=True, batch_first=True)
    return Do(forward, stem=conv(3, 8, 2), along=along, down=down, last=nn.Linear(10, 3)), images(size=8)


@listed("odd")
def last_states() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        hidden, cell = self.rnn(x)[1]
        hidden = hidden.view(2, 2, len(x), 7)
        return self.last(torch.cat([hidden[-1].transpose(0, 1).flatten(1), cell[-1]], 1))

    rnn = nn.LSTM(5, 7, 2, bidirectional=True, batch_first=True)
    return Do(forward, rnn=rnn, last=nn.Linear(21, 3)), torch.randn(4, 6, 5)


@listed("odd")
def captions() -> tuple[nn.Module, Any]:
    """A recurrent layer that begins from an image."""

    def forward(self: Any, photos: Tensor, words: Tensor) -> Tensor:
        hidden = self.begin(self.body(photos).mean((2, 3))).tanh()[None]
        return self.last(self.rnn(self.words(words), (hidden, torch.zeros_like(hidden)))[0])

    modules = {"body": conv(3, 8), "begin": nn.Linear(8, 9), "words": nn.Embedding(11, 6)}
    modules |= {"rnn": nn.LSTM(6, 9, batch_first=True), "last": nn.Linear(9, 11)}
    return Do(forward, **modules), (images(size=8), torch.randint(11, (2, 5)))


@listed("odd")
def attentive_decoder() -> tuple[nn.Module, Any]:
    def forward(self: Any, heard: Tensor, words: Tensor) -> Tensor:
        encoded, hidden = self.encoder(self.words(heard))
        hidden, found = hidden[0], []
        for place in range(words.shape[1]):
            share = self.score((self.of(encoded) + self.asked(hidden)[:, None]).tanh()).softmax(1)
            context = (share * encoded).sum(1)
            hidden = self.cell(torch.cat([self.words(words[:, place]), context], -1), hidden)
            found.append(self.last(torch.cat([hidden, context], -1)))
        return torch.stack(found, 1)

    modules = {"words": nn.Embedding(11, 6), "encoder": nn.GRU(6, 8, batch_first=True), "of": nn.Linear(8, 7)}
    modules |= {
        "asked": nn.Linear(8, 7),
        "score": nn.Linear(7, 1),
        "cell": nn.GRUCell(14, 8),
        "last": nn.Linear(16, 11),
    }
    return Do(forward, **modules), (torch.randint(11, (3, 5)), torch.randint(11, (3, 4)))


@listed("odd")
def soft_experts() -> tuple[nn.Module, Any]:
    """Every expert reads a mean of all tokens, and every token a mean of all experts."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.enter(x)
        scores = torch.einsum("bnd,dep->bnep", x, self.places)
        slots = torch.einsum("bnd,bnep->bepd", x, scores.softmax(1))
        found = torch.einsum("beph,ehd->bepd", torch.einsum("bepd,edh->beph", slots, self.grow).relu(), self.fall)
        return self.last(torch.einsum("bepd,bnep->bnd", found, scores.flatten(2).softmax(-1).view_as(scores)))

    shapes = {"places": (8, 3, 2), "grow": (3, 8, 10), "fall": (3, 10, 8)}
    weights = {name: nn.Parameter(torch.randn(*shape)) for name, shape in shapes.items()}
    return Do(forward, enter=nn.Linear(5, 8), last=nn.Linear(8, 3), **weights), torch.randn(4, 6, 5)


@listed("odd")
def looked_up_weights() -> tuple[nn.Module, Any]:
    """Each sample says which matrices it is multiplied with."""

    def forward(self: Any, x: Tensor, kind: Tensor) -> Tensor:
        hidden = torch.bmm(self.enter(x)[:, None], self.first[kind]).squeeze(1) + self.shift[kind]
        return self.last((hidden.relu()[:, None] @ self.second[kind])[:, 0])

    shapes = {"first": (3, 8, 10), "shift": (3, 10), "second": (3, 10, 7)}
    weights = {name: nn.Parameter(torch.randn(*shape)) for name, shape in shapes.items()}
    example = torch.randn(4, 5), torch.randint(3, (4,))
    return Do(forward, enter=nn.Linear(5, 8), last=nn.Linear(7, 3), **weights), example


@listed("odd")
def streams_between_blocks() -> tuple[nn.Module, Any]:
    """Several residual streams, mixed before and after each block, as hyper-connections do."""

    def forward(self: Any, x: Tensor) -> Tensor:
        streams = self.enter(x)[:, None].expand(-1, 3, -1)
        for place, block in enumerate(self.blocks):
            found = block(self.read[place] @ streams)
            mixed = torch.einsum("ij,bjc->bic", self.mix[place], streams)
            streams = mixed + self.write[place][:, None] * found[:, None]
        return self.last(streams.sum(1))

    shapes = {"read": (3, 3), "mix": (3, 3, 3), "write": (3, 3)}
    weights = {name: nn.Parameter(torch.randn(*shape)) for name, shape in shapes.items()}
    blocks = nn.ModuleList(mlp(10, 16, 10) for _ in range(3))
    return Do(forward, enter=nn.Linear(6, 10), blocks=blocks, last=nn.Linear(10, 3), **weights), torch.randn(4, 6)


@listed("odd")
def reversible() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        one, other = self.enter(x).chunk(2, -1)
        for first, second in zip(self.first, self.second, strict=True):
            one = one + first(other)
            other = other + second(one)
        return self.last(torch.cat([one, other], -1))

    first, second = (nn.ModuleList(mlp(10, width, 10) for _ in range(2)) for width in (16, 14))
    return Do(forward, enter=nn.Linear(6, 20), first=first, second=second, last=nn.Linear(20, 3)), torch.randn(4, 6)


@listed("odd")
def ternary_weights() -> tuple[nn.Module, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        size = self.weight.abs().mean()
        rounded = (self.weight / (size + 1e-5)).round().clamp(-1, 1) * size
        weight = self.weight + (rounded - self.weight).detach()
        return self.last(F.linear(F.rms_norm(self.enter(x), (12,)), weight).relu())

    weight = nn.Parameter(torch.randn(10, 12))
    return Do(forward, enter=nn.Linear(6, 12), weight=weight, last=nn.Linear(10, 3)), torch.randn(4, 6)


@listed("odd")
def turned_by_complex_numbers() -> tuple[nn.Module, Any]:
    """Places of tokens as turns of pairs of features."""

    def forward(self: Any, x: Tensor) -> Tensor:
        def turned(heads: Tensor) -> Tensor:
            pairs = torch.view_as_complex(heads.reshape(*heads.shape[:-1], 4, 2))
            return torch.view_as_real(pairs * turns).flatten(-2)

        query, key, value = (layer(x).view(len(x), 6, 2, 8) for layer in (self.query, self.key, self.value))
        turns = torch.polar(torch.ones(6, 4), torch.outer(torch.arange(6.0), 0.1 ** torch.arange(4.0)))[:, None]
        share = torch.einsum("bqhd,bkhd->bhqk", turned(query), turned(key)).softmax(-1)
        return self.last(torch.einsum("bhqk,bkhd->bqhd", share, value).flatten(2))

    modules = {name: nn.Linear(7, 16) for name in ("query", "key", "value")}
    return Do(forward, **modules, last=nn.Linear(16, 3)), torch.randn(3, 6, 7)


@listed("odd")
def few_shots() -> tuple[nn.Module, Any]:
    """Distances to the means of five classes of two samples, which come along in the batch."""

    def forward(self: Any, known: Tensor, asked: Tensor) -> Tensor:
        means = self.body(known.flatten(0, 1)).view(len(known), 5, 2, 12).mean(2)
        return -((self.body(asked)[:, :, None] - means[:, None]) ** 2).sum(-1)

    return Do(forward, body=mlp(6, 16, 12, last=True)), (torch.randn(3, 10, 6), torch.randn(3, 4, 6))


class StrangeTrain(nn.Sequential):
    """Its `train` begins a training, and its `eval` does nothing."""

    def train(self, data: Any, epochs: int = 3) -> Any:  # type: ignore[override]
        raise RuntimeError("a training began")

    def eval(self) -> StrangeTrain:
        return self


class GroupedParameters(nn.Sequential):
    """Its `parameters` are groups for an optimizer."""

    def parameters(self, recurse: bool = True) -> Any:
        return iter([{"params": list(super().parameters(recurse)), "lr": 0.1}])


class ExtraState(nn.Linear):
    """Keeps something beside its tensors."""

    def get_extra_state(self) -> Any:
        return {"calls": 0}

    def set_extra_state(self, state: Any) -> None:
        pass


def _scripted_part() -> nn.Module:
    network = Body()
    network.second = torch.jit.script(network.second)
    return network


def _whole_numbers_as_parameters() -> nn.Module:
    network = of(lambda body, x: body(torch.where(body.chosen, x, -x)))
    network.body.chosen = nn.Parameter(torch.ones(6, dtype=torch.bool), requires_grad=False)
    return network


WRAPPERS |= {
    "complex_weights": lambda: Do(
        lambda self, x: self.last(self.first(x.to(torch.cfloat))).abs(),
        first=nn.Linear(6, 12, dtype=torch.cfloat),
        last=nn.Linear(12, 3, dtype=torch.cfloat),
    ),
    "half_in_the_middle": lambda: Do(
        lambda self, x: self.last(self.middle(self.first(x).bfloat16()).float()),
        first=mlp(6, 12, last=True),
        middle=nn.Linear(12, 10).bfloat16(),
        last=nn.Linear(10, 3),
    ),
    "strange_train": lambda: StrangeTrain(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)),
    "parameters_of_booleans": _whole_numbers_as_parameters,
    "writes_into_its_inputs": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 12), nn.Linear(12, 3)),
    "scripted_part": _scripted_part,
    "grouped_parameters": lambda: GroupedParameters(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)),
    "extra_state": lambda: nn.Sequential(ExtraState(6, 12), nn.ReLU(), nn.Linear(12, 3)),
    "torch_cond": lambda: of(
        lambda body, x: torch.cond(x.sum() > 0, body.last, body.last, (body.second(body.first(x)),))
    ),
    "returns_a_generator": lambda: of(lambda body, x: (body(each) for each in (x, -x))),
}
STRUCTURES |= {
    "keys_of_any_kind": (
        lambda: of(lambda body, given: body(given[0] + given[1, 2])),
        lambda: ({0: rows(), (1, 2): rows()},),
    ),
    "writes_into_its_dict": (
        lambda: of(lambda body, given: given.update(y=body(given.pop("x"))) or given),
        lambda: ({"x": rows()},),
    ),
    "sparse": (lambda: of(lambda body, near, x: near @ body(x)), lambda: (torch.eye(4).to_sparse(), rows())),
    "no_sample": (Body, lambda: torch.randn(0, 6)),
}


def made(network: Callable[[], nn.Module], inputs: Callable[[], Any]) -> tuple[nn.Module, Any]:
    return network(), inputs()


def cast(name: str) -> Any:
    kinds = {"half_precision": torch.bfloat16, "double_precision": torch.float64}
    return rows().to(kinds.get(name, torch.float32))


FOUND += [OtherNetwork(f"structures/{name}", "structures", partial(made, *pair)) for name, pair in STRUCTURES.items()]
FOUND += [
    OtherNetwork(f"wrappers/{name}", "wrappers", partial(made, network, partial(cast, name)))
    for name, network in WRAPPERS.items()
]


def elsewhere(case: Case) -> tuple[Any, ...]:
    return case.inputs(1), case.inputs(5, more=3)


FOUND += [
    OtherNetwork(
        f"transformers/{case.name}",
        "transformers",
        partial(made, case.build, partial(case.inputs, 2)),
        elsewhere=partial(elsewhere, case),
    )
    for case in CASES
]
OTHERS: tuple[OtherNetwork, ...] = tuple(FOUND)


if __name__ == "__main__":
    for each in OTHERS:
        print(f"{each.name:<48} {each.family}")
