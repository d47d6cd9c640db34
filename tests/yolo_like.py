"""A detector of the form of ultralytics' YOLO, for machines without it."""

from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """Stands in for the head of a YOLO of two classes: what it says, with the features that it has read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.nc, self.stride = 2, torch.tensor([4.0])
        self.boxes, self.scores = nn.Conv2d(width, 4, 1), nn.Conv2d(width, 2, 1)

    def forward(self, features: Tensor):
        said = {
            "boxes": self.boxes(features).flatten(2),
            "scores": self.scores(features).flatten(2),
            "feats": [features],
        }
        return said if self.training else (torch.cat([said["boxes"], said["scores"].sigmoid()], 1), said)


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), Head(12))

    def forward(self, images: Tensor):
        return self.model(images)


class Handle(nn.Module):
    """Stands in for the object around a YOLO, whose methods act."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Detector()

    def train(self, *_: Any, **__: Any):
        raise AssertionError("a training begins")

    eval = forward = train


Handle.__module__, Handle.__qualname__ = "ultralytics.engine.model", "Model"
for kind, place in ((Head, "nn.modules.head"), (Detector, "nn.tasks")):
    kind.__module__, kind.__qualname__ = f"ultralytics.{place}", {Head: "Detect", Detector: "DetectionModel"}[kind]


def library(model: Any) -> dict[str, ModuleType]:
    """Modules in the place of ultralytics, whose YOLO holds this model, or raises it where it is an error."""
    modules = {name: ModuleType(name) for name in ("ultralytics", "ultralytics.nn", "ultralytics.nn.tasks")}

    def opened(*_: Any, **__: Any) -> SimpleNamespace:
        if isinstance(model, Exception):
            raise model
        return SimpleNamespace(model=model)

    modules["ultralytics"].YOLO = opened
    modules["ultralytics.nn.tasks"].DetectionModel = Detector
    return modules
