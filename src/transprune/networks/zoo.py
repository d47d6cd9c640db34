"""Networks by name."""

from __future__ import annotations

from torch import nn

from transprune.errors import ModelError, expected_one_of
from transprune.networks.resnet import resnet

RESNET_DEPTHS = (20, 32, 44, 56, 110, 164, 18, 34, 50)
NAMES = tuple(f"resnet{depth}" for depth in RESNET_DEPTHS)


def build_model(name: str, *, classes: int, image_channels: int) -> nn.Module:
    """Builds the unpruned network of a name, with new weights.

    Raises:
        ModelError: There is none of that name.
    """
    if name not in NAMES:
        raise ModelError(f"cannot build the model {name!r}: {expected_one_of(name, NAMES)}")
    return resnet(int(name.removeprefix("resnet")), classes=classes, image_channels=image_channels)
