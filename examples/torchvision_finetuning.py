"""Fine-tunes a network of torchvision on images of one's own, then makes it smaller.

    python examples/torchvision_finetuning.py --weights resnet18.pth --data imagefolder:photos --size 224 --epochs 30

The weights are a state dict for any number of classes, such as the files that torchvision offers for download: all but
the classifier is taken. Without options everything runs on scikit-learn's digits, from new weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
import tyro
from safetensors.torch import save_file
from torch import nn

import transprune


def pretrained(name: str, classes: int, weights: Path | None) -> nn.Module:
    """A network of torchvision with the weights of a file, but for layers of another shape: those of the classifier."""
    network = torchvision.models.get_model(name, weights=None, num_classes=classes)
    if weights is not None:
        wanted, found = network.state_dict(), torch.load(weights, map_location="cpu", weights_only=True)
        fitting = {key: value for key, value in found.items() if value.shape == wanted[key].shape}
        print("new weights for", ", ".join(wanted.keys() - fitting.keys()) or "nothing")
        network.load_state_dict(fitting, strict=False)
    return network


def main(
    *,
    model: str = "mobilenet_v3_small",
    weights: Path | None = None,
    data: str = "digits",
    size: int = 32,
    budget: str = "macs=0.5",
    epochs: int = 10,
    out: Path = Path("runs/torchvision.safetensors"),
) -> nn.Module:
    """Fine-tunes, searches, shrinks and distills; gives the smaller network and writes its weights.

    Args:
        model: Name of the network in torchvision.
        weights: State dict to start from.
        data: What it classifies, as for `transprune run --data`.
        size: Rows and columns to bring the images to.
        budget: What the smaller network may cost.
        epochs: Of each training.
        out: Where the weights of the smaller network go.
    """
    images = transprune.load_data(data, image_size=(3, size, size))
    short = {"epochs": epochs, "batch_size": 64, "learning_rate": 0.02, "warm_up_epochs": min(1, epochs / 2)}
    network = pretrained(model, len(images.classes), weights)
    teacher = transprune.train(network, images, transprune.TrainingOptions(**short))

    options = transprune.SearchOptions(
        **short, start="model", alignment="pad", architecture_learning_rate=0.02, architecture_weight_decay=0.0
    )
    found = transprune.search(teacher, images, budget, options)
    student = transprune.shrink(teacher, found.architecture, torch.zeros(1, 3, size, size))
    student = transprune.distill(student, teacher, images, transprune.DistillationOptions(**short))

    for name, each in (("teacher", teacher), ("student", student)):
        macs = transprune.count_macs(each, torch.zeros(1, 3, size, size))
        print(f"{name}: {macs:,} MACs, {transprune.evaluate(each, images).top1:.1f} % top-1")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(student.state_dict(), out)
    return student


if __name__ == "__main__":
    tyro.cli(main)
