"""Trains on a data set of Hugging Face's `datasets`: rows are dicts, images are transformed when they are read.

    pip install 'transprune[datasets]'
    python examples/hugging_face_datasets.py

The data set is made in memory from scikit-learn's digits, with the columns that image data sets of the hub have; put
`datasets.load_dataset(NAME)` in its place.
"""

from __future__ import annotations

import dataclasses

import datasets
import numpy as np
import torch
import tyro
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import transprune


def digits(limit: int | None = None) -> datasets.DatasetDict:
    """The digits as a data set with the columns `image` and `label` in two parts, `train` and `test`."""
    source = load_digits()
    pixels = (source.images * 255 / 16).astype(np.uint8)[:limit]
    columns = {"image": list(pixels), "label": source.target[:limit].tolist()}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    return datasets.Dataset.from_dict(columns, features=features).train_test_split(test_size=0.2, seed=0)


def tensors(transform: v2.Transform):
    """What a data set does with the rows that are asked for, such as {"image": [...], "label": [...]}."""

    def apply(rows: dict[str, list]) -> dict[str, list]:
        return {"pixel_values": [transform(image) for image in rows["image"]], "label": rows["label"]}

    return apply


def main(*, limit: int | None = None, budget: str = "macs=0.5", epochs: int = 10) -> nn.Module:
    """Trains, searches, shrinks and distills; gives the smaller network.

    Args:
        limit: Use only so many images.
        budget: What the smaller network may cost.
        epochs: Of each training.
    """
    rows = digits(limit)
    plain = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]
    train = rows["train"].with_transform(tensors(v2.Compose([v2.RandomCrop(8, padding=1), *plain])))
    test = rows["test"].with_transform(tensors(v2.Compose(plain)))
    data = DataLoader(train, batch_size=32, shuffle=True), DataLoader(test, batch_size=128)
    task = dataclasses.replace(transprune.classification(), split=lambda batch: (batch["pixel_values"], batch["label"]))

    classes = rows["train"].features["label"].num_classes
    network = transprune.resnet(20, classes=classes, image_channels=1)
    short = {"epochs": epochs, "learning_rate": 0.05, "warm_up_epochs": min(1, epochs / 2)}
    teacher = transprune.train(network, data, transprune.TrainingOptions(**short), task=task)
    options = transprune.SearchOptions(
        **short, start="model", alignment="pad", architecture_learning_rate=0.05, architecture_weight_decay=0.0
    )
    found = transprune.search(teacher, data, budget, options, task=task)
    student = transprune.distill(found.student, teacher, data, transprune.DistillationOptions(**short), task=task)
    for name, each in (("teacher", teacher), ("student", student)):
        print(f"{name}: {transprune.evaluate(each, data, task=task).top1:.1f} % top-1")
    return student


if __name__ == "__main__":
    tyro.cli(main)
