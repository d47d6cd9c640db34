"""Searches inside a training loop of Hugging Face's accelerate, with optimizers of one's own choice.

    pip install 'transprune[accelerate]'
    python examples/accelerate_loop.py

Nothing of transprune's loops is used, only its parts: a supernet, the architecture parameters, the expected cost and
the derivation. On more than one process the candidates must be the same in all of them, which this example does not see
to.
"""

from __future__ import annotations

from itertools import cycle

import torch
import tyro
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import transprune


def digits() -> tuple[TensorDataset, TensorDataset]:
    """The training images in two halves: one for the weights, one for the architecture."""
    split = transprune.load_data("digits").train
    images = TensorDataset(split.images.float() / 255 - 0.3, split.labels)
    first, second = random_split(images, [0.5, 0.5], generator=torch.Generator().manual_seed(0))
    return first, second


def network() -> nn.Module:
    """A network of one's own."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )


def main(*, share: float = 0.5, epochs: int = 20) -> nn.Module:
    """Searches from new weights and shrinks; gives the smaller network with the supernet's weights.

    Args:
        share: Of the MACs that the smaller network may cost.
        epochs: Passes over the weights' half of the images.
    """
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    example = torch.zeros(1, 1, 8, 8)
    model = network()
    space = transprune.inspect(model, example)
    limit = transprune.Budget(kind="macs", amount=share, is_share=True).limit(space)

    supernet = transprune.Supernet(model, space, example, alignment="pad")
    parameters = transprune.ArchitectureParameters(space)
    weight_optimizer = torch.optim.AdamW(supernet.parameters(), lr=2e-3)
    architecture_optimizer = torch.optim.Adam(parameters.parameters(), lr=0.05)
    first, second = (DataLoader(half, batch_size=32, shuffle=True, drop_last=True) for half in digits())
    supernet, parameters, weight_optimizer, architecture_optimizer, first, second = accelerator.prepare(
        supernet, parameters, weight_optimizer, architecture_optimizer, first, second
    )
    expected_macs = transprune.ExpectedCost(space, device=accelerator.device)

    for epoch in range(1, epochs + 1):
        temperature = 5.0 * (1 - epoch / (epochs + 1))
        for (images, labels), (other_images, other_labels) in zip(first, cycle(second), strict=False):
            with torch.no_grad():
                selection = parameters.sample(temperature)
            loss = F.cross_entropy(supernet(selection, images), labels)
            weight_optimizer.zero_grad()
            accelerator.backward(loss)
            weight_optimizer.step()

            probabilities = parameters.probabilities()
            expected, likeliest = expected_macs(probabilities), expected_macs(probabilities.one_hot())
            loss = F.cross_entropy(supernet(parameters.sample(temperature), other_images), other_labels)
            loss = loss + 2 * transprune.budget_penalty(expected, likeliest, limit.most, tolerance=0.05)
            architecture_optimizer.zero_grad()
            accelerator.backward(loss)
            architecture_optimizer.step()
        accelerator.print(f"epoch {epoch}: {expected.item():,.0f} MACs expected, at most {limit}")

    with torch.no_grad():
        found = parameters.probabilities()
    probabilities = transprune.Probabilities(found.widths.cpu(), found.depths.cpu())
    architecture = transprune.derive(space, probabilities, [limit])
    trained = accelerator.unwrap_model(supernet).cpu().plain_weights(architecture)
    model.load_state_dict(trained, strict=False)  # the supernet keeps no running statistics
    student = transprune.shrink(model, architecture, example)
    accelerator.print(architecture.widths)
    return student


if __name__ == "__main__":
    tyro.cli(main)
