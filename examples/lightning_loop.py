"""Searches inside a training loop of Lightning, whose Trainer brings devices, precision, loggers and callbacks.

    pip install 'transprune[lightning]'
    python examples/lightning_loop.py

A search has two optimizers and two batches a step, so the module calls its optimizers itself (Lightning's "manual
optimization"). It is for one device: on several the candidates must be the same in all processes, which this example
does not see to.
"""

from __future__ import annotations

import lightning
import torch
import tyro
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import transprune

EXAMPLE = torch.zeros(1, 1, 8, 8)


class Search(lightning.LightningModule):
    """A supernet and its architecture parameters, each with an optimizer."""

    def __init__(self, model: nn.Module, space: transprune.SearchSpace, limit: transprune.Limit, epochs: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.space, self.limit, self.epochs = space, limit, epochs
        self.supernet = transprune.Supernet(model, space, EXAMPLE, alignment="pad")
        self.parameters_of_architecture = transprune.ArchitectureParameters(space)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One for the weights, one for the architecture."""
        return [
            torch.optim.AdamW(self.supernet.parameters(), lr=2e-3),
            torch.optim.Adam(self.parameters_of_architecture.parameters(), lr=0.05),
        ]

    def training_step(self, batch: dict, index: int) -> None:
        """A step of the weights on one half of the images, one of the architecture on the other."""
        weights, architecture = self.optimizers()
        temperature = 5.0 * (1 - (self.current_epoch + 1) / (self.epochs + 1))
        images, labels = batch["weights"]
        with torch.no_grad():
            selection = self.parameters_of_architecture.sample(temperature)
        self._step(weights, F.cross_entropy(self.supernet(selection, images), labels))

        images, labels = batch["architecture"]
        outputs = self.supernet(self.parameters_of_architecture.sample(temperature), images)
        probabilities = self.parameters_of_architecture.probabilities()
        count = transprune.ExpectedCost(self.space, device=self.device)
        expected, likeliest = count(probabilities), count(probabilities.one_hot())
        penalty = transprune.budget_penalty(expected, likeliest, self.limit.most, tolerance=0.05)
        self._step(architecture, F.cross_entropy(outputs, labels) + 2 * penalty)
        self.log_dict({"expected_macs": expected, "entropy": self.parameters_of_architecture.entropy()}, prog_bar=True)

    def _step(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def architecture(self) -> transprune.Architecture:
        """The most probable architecture within the budget."""
        with torch.no_grad():
            found = self.parameters_of_architecture.probabilities()
        return transprune.derive(
            self.space, transprune.Probabilities(found.widths.cpu(), found.depths.cpu()), [self.limit]
        )


def loaders() -> CombinedLoader:
    """Batches of the training images in two halves: one for the weights, one for the architecture."""
    split = transprune.load_data("digits").train
    images = TensorDataset(split.images.float() / 255 - 0.3, split.labels)
    halves = random_split(images, [0.5, 0.5], generator=torch.Generator().manual_seed(0))
    first, second = (DataLoader(half, batch_size=32, shuffle=True, drop_last=True) for half in halves)
    return CombinedLoader({"weights": first, "architecture": second}, mode="max_size_cycle")


def main(*, share: float = 0.5, epochs: int = 20) -> nn.Module:
    """Searches from new weights and shrinks; gives the smaller network with the supernet's weights.

    Args:
        share: Of the MACs that the smaller network may cost.
        epochs: Passes over the weights' half of the images.
    """
    lightning.seed_everything(0)
    model = transprune.resnet(20, image_channels=1)
    space = transprune.inspect(model, EXAMPLE)
    limit = transprune.Budget(kind="macs", amount=share, is_share=True).limit(space)
    search = Search(model, space, limit, epochs)
    trainer = lightning.Trainer(
        max_epochs=epochs, devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.fit(search, loaders())

    architecture = search.architecture()
    trained = search.supernet.cpu().plain_weights(architecture)
    model.load_state_dict(trained, strict=False)  # the supernet keeps no running statistics
    student = transprune.shrink(model, architecture, EXAMPLE)
    print(f"the student: {transprune.count_macs(student, EXAMPLE):,} MACs of {limit}")
    return student


if __name__ == "__main__":
    tyro.cli(main)
