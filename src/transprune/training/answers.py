"""What classifiers answer, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transprune.data import ImageData, make_loader
from transprune.training.evaluation import evaluation_mode
from transprune.training.tasks import each_logits


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The class that a network finds most probable, for every image of a split."""

    classes: Tensor
    """int64 [samples]."""
    confidences: Tensor
    """Their probabilities, float32 [samples]."""


@torch.no_grad()
def answers(
    networks: Mapping[str, nn.Module], data: ImageData, *, batch_size: int = 256, device: torch.device | str = "cpu"
) -> dict[str, Answers]:
    """The answers of several classifiers to the test images, in the order of the split; each image is decoded once.

    Args:
        networks: By name, on the device.
        data: The data set.
        batch_size: Images a forward.
        device: Where to run.
    """
    loader = make_loader(data.test, data, batch_size=batch_size, train=False, seed=0, device=device)
    found: dict[str, list[Tensor]] = {name: [] for name in networks}
    with ExitStack() as modes:
        for network in networks.values():
            modes.enter_context(evaluation_mode(network))
        for images, _ in loader:
            for name, network in networks.items():
                probabilities = each_logits(network(images))[0].float().softmax(1)
                found[name].append(torch.stack(probabilities.max(1)).cpu())  # [2, batch]
    joined = {name: torch.cat(parts, dim=1) for name, parts in found.items()}
    return {name: Answers(classes=best[1].long(), confidences=best[0]) for name, best in joined.items()}
