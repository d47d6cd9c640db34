"""Networks by name."""

from __future__ import annotations

import difflib

from torch import nn

from transprune.errors import ModelError
from transprune.networks.resnet import resnet

RESNET_DEPTHS = (20, 32, 44, 56, 110, 164, 18, 34, 50)
NAMES = tuple(f"resnet{depth}" for depth in RESNET_DEPTHS)


def build_model(name: str, *, classes: int, image_channels: int) -> nn.Module:
    """Builds the unpruned network of a name, with new weights.

    Raises:
        ModelError: There is none of that name.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"cannot build the model {name!r}: expected one of {', '.join(NAMES)}{hint}")
    return resnet(int(name.removeprefix("resnet")), classes=classes, image_channels=image_channels)
