"""How well a network classifies."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transprune.data import ImageData, make_loader

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """Accuracy over a set of labelled images."""

    top1: float
    """Share of the images whose most probable class is right, in percent."""
    top5: float
    """Share of the images whose class is among the five most probable, in percent."""
    loss: float
    """Mean cross-entropy."""

    def to_json(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


class Meter:
    """Adds up loss and correct answers over batches; nothing leaves the device before `evaluation`."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._samples = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch: its mean loss, logits [batch, classes] and labels [batch]."""
        ranks = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        batch = torch.stack([loss.detach() * len(labels), ranks[:, 0].sum(), ranks.sum()]).double()
        self._sums = batch if self._sums is None else self._sums + batch
        self._samples += len(labels)

    def evaluation(self) -> Evaluation:
        """The figures over all batches so far; NaN if there were none."""
        if self._sums is None:
            return Evaluation(float("nan"), float("nan"), float("nan"))
        loss, top1, top5 = (self._sums / self._samples).tolist()
        return Evaluation(top1=100 * top1, top5=100 * top5, loss=loss)


@torch.no_grad()
def evaluate_batches(classify: Callable[[Tensor], Tensor], batches: Batches) -> Evaluation:
    """Accuracy of a function from images to logits, over batches of images and labels."""
    meter = Meter()
    for images, labels in batches:
        logits = classify(images)
        meter.add(F.cross_entropy(logits, labels), logits, labels)
    return meter.evaluation()


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each module's own mode again afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def evaluate(
    network: nn.Module, data: ImageData, *, batch_size: int = 256, device: torch.device | str = "cpu"
) -> Evaluation:
    """Accuracy on the test images of a data set.

    Args:
        network: From images [batch, channels, rows, columns] to logits [batch, classes]; it stays where it is if it
            is on the device already.
        data: The data set.
        batch_size: Images a forward.
        device: Where to run.
    """
    batches = make_loader(data.test, data, batch_size=batch_size, train=False, seed=0, device=torch.device(device))
    placed = network.to(device)
    with evaluation_mode(placed):
        return evaluate_batches(placed, batches)
