"""Makes a network of timm smaller: its classifier, its loss and its optimizer stay timm's business.

    pip install 'transprune[timm]'
    python examples/timm_model.py --model resnet10t --pretrained --data imagefolder:photos --size 224 --epochs 30

Without options everything runs on scikit-learn's digits, from new weights; `--pretrained` downloads timm's.
"""

from __future__ import annotations

import dataclasses

import timm
import torch
import tyro
from timm.loss import LabelSmoothingCrossEntropy
from torch import nn

import transprune


def main(
    *,
    model: str = "resnet10t",
    pretrained: bool = False,
    data: str = "digits",
    size: int = 32,
    budget: str = "params=0.4",
    epochs: int = 10,
) -> nn.Module:
    """Fine-tunes with label smoothing, searches for multiples of 8, shrinks and distills; gives the smaller network.

    Args:
        model: Name of the network in timm.
        pretrained: Download timm's weights.
        data: What it classifies, as for `transprune run --data`.
        size: Rows and columns to bring the images to.
        budget: What the smaller network may cost.
        epochs: Of each training.
    """
    images = transprune.load_data(data, image_size=(3, size, size))
    example = torch.zeros(1, 3, size, size)
    network = timm.create_model(model, pretrained=pretrained, num_classes=len(images.classes))
    task = dataclasses.replace(transprune.classification(), loss=LabelSmoothingCrossEntropy(0.1))

    short = {"epochs": epochs, "batch_size": 64, "learning_rate": 0.02, "warm_up_epochs": min(1, epochs / 2)}
    teacher = transprune.train(network, images, transprune.TrainingOptions(**short), task=task)
    space = transprune.inspect(teacher, example, keep=["conv1*"], divisor=8)
    options = transprune.SearchOptions(
        **short, start="model", alignment="pad", architecture_learning_rate=0.02, architecture_weight_decay=0.0
    )
    found = transprune.search(teacher, images, budget, options, space=space, task=task)
    student = transprune.shrink(teacher, found.architecture, example)
    student = transprune.distill(student, teacher, images, transprune.DistillationOptions(**short), task=task)

    print(f"a {type(student).__name__} of {found.actual:,} parameters, at most {found.target:,} were allowed")
    for name, each in (("teacher", teacher), ("student", student)):
        print(f"{name}: {transprune.evaluate(each, images, task=task).top1:.1f} % top-1")
    return student


if __name__ == "__main__":
    tyro.cli(main)
