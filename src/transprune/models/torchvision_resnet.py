"""torchvision's trained ResNets in the paper's search space.

torchvision adds the sides of a residual sum in its forward, which ties their widths. Here the same weights fill one of
our networks, whose residual sums leave both sides free (`transprune.models.residual`). With strided shortcuts it
computes the same as torchvision's; the paper's shortcuts halve the resolution by average pooling.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from transprune.errors import ModelError
from transprune.models.resnet import Block, Halving, ResNet, ResNetShape

OUTSIDE_STAGES = {"conv1": "stem.conv", "bn1": "stem.norm", "fc": "classifier"}
"""torchvision's names of the layers outside the stages, and ours."""
IN_STAGE = re.compile(r"layer(\d+)\.(\d+)\.(conv|bn|downsample\.)(\d+)\.(\w+)")
"""torchvision's names of weights in a stage: stage (from 1), block, kind of layer, its number, parameter or buffer."""


def is_torchvision_resnet(names: Iterable[str]) -> bool:
    """Whether these are the names of the weights of one of torchvision's ResNets."""
    return {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight"} <= set(names)


def renamed(weights: Mapping[str, Tensor], *, halved_by: Halving) -> dict[str, Tensor]:
    """The weights under our names.

    Args:
        weights: A state dict of one of torchvision's ResNets.
        halved_by: What halves the resolution on our network's shortcuts.
    """
    return {_renamed(name, halved_by): value for name, value in weights.items()}


def _renamed(name: str, halved_by: Halving) -> str:
    found = IN_STAGE.fullmatch(name)
    if found is None:
        layer, _, parameter = name.partition(".")
        return f"{OUTSIDE_STAGES.get(layer, layer)}.{parameter}"
    stage, block, kind, number, parameter = int(found[1]) - 1, *found.groups()[1:]
    if kind == "downsample.":
        # If a shortcut pools, it does so first; the first stage halves nothing.
        place = int(number) + (halved_by == "pool" and stage > 0)
        return f"stages.{stage}.{block}.sum.shortcut.{place}.{parameter}"
    return f"stages.{stage}.{block}.layer{number}.{'conv' if kind == 'conv' else 'norm'}.{parameter}"


def pooled_shortcuts(network: ResNet) -> tuple[str, ...]:
    """Names of the weights after average pooling on shortcuts, which torchvision trains with a stride instead."""
    return tuple(
        f"{name}.1.weight"
        for name, module in network.named_modules()
        if isinstance(module, nn.Sequential) and isinstance(module[0], nn.AvgPool2d)
    )


def resnet_from_torchvision(model: nn.Module) -> ResNet:
    """The network that computes the same, in the paper's search space.

    Args:
        model: A `torchvision.models.ResNet` of basic blocks or bottlenecks, with any number of blocks; untouched.

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
