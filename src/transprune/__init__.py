"""transprune makes trained PyTorch networks smaller.

A network, a data set and a budget go in; out comes a smaller network of the same kind, retrained. Its widths and
depths are learned by transformable architecture search (Dong & Yang, 2019, arXiv:1905.09717).

    space = transprune.inspect(model, example)            # what can be chosen, and what it costs
    found = transprune.search(model, data, "macs=0.5")    # the architecture, learned
    student = transprune.shrink(model, found.architecture, example)
    student = transprune.distill(student, model, data)    # trained with the unpruned network as its teacher
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from transprune._version import __version__

if TYPE_CHECKING:
    from transprune.architecture import Architecture
    from transprune.budget import Budget, Limit
    from transprune.costs import Cost
    from transprune.data import Augmentation, ImageData, LoaderData, MemorySplit, load_data, make_loader
    from transprune.errors import TranspruneError
    from transprune.exports.load import load
    from transprune.latency.counting import count_macs, measure_latencies
    from transprune.latency.latency_model import LatencyModel
    from transprune.latency.latency_options import LatencyOptions
    from transprune.latency.learning import LatencyMeasurement, measure_latency
    from transprune.latency.performance import MeasureOptions, Performance, measure
    from transprune.models.residual import ResidualSum
    from transprune.models.resnet import ResNet, resnet
    from transprune.models.resnet_shape import ResNetShape
    from transprune.models.torchvision_resnet import resnet_from_torchvision
    from transprune.reading.inspection import inspect
    from transprune.runs.presets import get_preset
    from transprune.runtime import CheckpointOptions, Checkpoints
    from transprune.shrinking.adapters import register_adapter
    from transprune.shrinking.shrink import kept_entries, shrink
    from transprune.shrinking.sort import sort_channels
    from transprune.shrinking.traced_network import TracedNetwork
    from transprune.space import SearchSpace, depth_candidates, width_candidates
    from transprune.tas.baselines import random_architecture, uniform_architecture
    from transprune.tas.bilevel import Bilevel, SearchOptions
    from transprune.tas.derivation import derive
    from transprune.tas.expected_cost import ExpectedCost
    from transprune.tas.probabilities import Probabilities
    from transprune.tas.search import SearchResult, search
    from transprune.tas.selection import ArchitectureParameters, Selection
    from transprune.tas.supernet import Supernet
    from transprune.training.evaluation import Evaluation, evaluate
    from transprune.training.loop import Setup
    from transprune.training.tasks import Metric, Task, classification, regression, segmentation
    from transprune.training.train import (
        DistillationOptions,
        TrainingOptions,
        distill,
        estimate_statistics,
        train,
    )

_HOME = {
    "transprune.tas.expected_cost": ("ExpectedCost",),
    "transprune.tas.derivation": ("derive",),
    "transprune.reading.inspection": ("inspect",),
    "transprune.latency.counting": ("count_macs", "measure_latencies"),
    "transprune.tas.probabilities": ("Probabilities",),
    "transprune.tas.baselines": ("random_architecture", "uniform_architecture"),
    "transprune.architecture": ("Architecture",),
    "transprune.budget": ("Budget", "Limit"),
    "transprune.costs": ("Cost",),
    "transprune.data": ("Augmentation", "ImageData", "LoaderData", "MemorySplit", "load_data", "make_loader"),
    "transprune.exports.load": ("load",),
    "transprune.latency.performance": ("MeasureOptions", "Performance", "measure"),
    "transprune.errors": ("TranspruneError",),
    "transprune.latency.learning": ("LatencyMeasurement", "measure_latency"),
    "transprune.latency.latency_model": ("LatencyModel",),
    "transprune.latency.latency_options": ("LatencyOptions",),
    "transprune.shrinking.adapters": ("register_adapter",),
    "transprune.models.resnet": ("ResNet", "resnet"),
    "transprune.models.resnet_shape": ("ResNetShape",),
    "transprune.tas.selection": ("ArchitectureParameters", "Selection"),
    "transprune.shrinking.shrink": ("kept_entries", "shrink"),
    "transprune.shrinking.sort": ("sort_channels",),
    "transprune.tas.supernet": ("Supernet",),
    "transprune.models.torchvision_resnet": ("resnet_from_torchvision",),
    "transprune.shrinking.traced_network": ("TracedNetwork",),
    "transprune.runs.presets": ("get_preset",),
    "transprune.models.residual": ("ResidualSum",),
    "transprune.runtime": ("CheckpointOptions", "Checkpoints"),
    "transprune.space": ("SearchSpace", "depth_candidates", "width_candidates"),
    "transprune.tas.bilevel": ("Bilevel", "SearchOptions"),
    "transprune.training.evaluation": ("Evaluation", "evaluate"),
    "transprune.training.loop": ("Setup",),
    "transprune.training.train": (
        "DistillationOptions",
        "TrainingOptions",
        "distill",
        "estimate_statistics",
        "train",
    ),
    "transprune.tas.search": ("SearchResult", "search"),
    "transprune.training.tasks": ("Metric", "Task", "classification", "regression", "segmentation"),
}
"""Where each public name lives; a module is imported when a name of it is first used, so the package imports fast."""

__all__ = [
    "Architecture",
    "ArchitectureParameters",
    "Augmentation",
    "Bilevel",
    "Budget",
    "CheckpointOptions",
    "Checkpoints",
    "Cost",
    "DistillationOptions",
    "Evaluation",
    "ExpectedCost",
    "ImageData",
    "LatencyMeasurement",
    "LatencyModel",
    "LatencyOptions",
    "Limit",
    "LoaderData",
    "MeasureOptions",
    "MemorySplit",
    "Metric",
    "Performance",
    "Probabilities",
    "ResNet",
    "ResNetShape",
    "ResidualSum",
    "SearchOptions",
    "SearchResult",
    "SearchSpace",
    "Selection",
    "Setup",
    "Supernet",
    "Task",
    "TracedNetwork",
    "TrainingOptions",
    "TranspruneError",
    "__version__",
    "classification",
    "count_macs",
    "depth_candidates",
    "derive",
    "distill",
    "estimate_statistics",
    "evaluate",
    "get_preset",
    "inspect",
    "kept_entries",
    "load",
    "load_data",
    "make_loader",
    "measure",
    "measure_latencies",
    "measure_latency",
    "random_architecture",
    "register_adapter",
    "regression",
    "resnet",
    "resnet_from_torchvision",
    "search",
    "segmentation",
    "shrink",
    "sort_channels",
    "train",
    "uniform_architecture",
    "width_candidates",
]


def __getattr__(name: str) -> object:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'transprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
