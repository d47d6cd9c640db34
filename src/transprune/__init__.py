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
    from transprune.analysis.cost import ExpectedCost
    from transprune.analysis.derivation import derive
    from transprune.analysis.inspection import inspect
    from transprune.analysis.measurement import count_macs, measure_latencies
    from transprune.analysis.probabilities import Probabilities
    from transprune.analysis.reference_points import random_architecture, uniform_architecture
    from transprune.architecture import Architecture
    from transprune.budget import Budget, Limit
    from transprune.costs import Cost
    from transprune.data import Augmentation, ImageData, LoaderData, MemorySplit, load_data, make_loader
    from transprune.delivery.loading import load
    from transprune.delivery.performance import MeasureOptions, Performance, measure
    from transprune.errors import TranspruneError
    from transprune.latency.measuring import LatencyMeasurement, measure_latency
    from transprune.latency.model import LatencyModel
    from transprune.latency.options import LatencyOptions
    from transprune.networks.adapters import register_adapter
    from transprune.networks.resnet import ResNet, resnet
    from transprune.networks.resnet_shape import ResNetShape
    from transprune.networks.selection import ArchitectureParameters, Selection
    from transprune.networks.shrinking import kept_entries, shrink
    from transprune.networks.sorting import sort_channels
    from transprune.networks.supernet import Supernet
    from transprune.networks.torchvision_resnet import resnet_from_torchvision
    from transprune.networks.traced import TracedNetwork
    from transprune.presets import get_preset
    from transprune.residual import ResidualSum
    from transprune.runtime import CheckpointOptions, Checkpoints
    from transprune.space import SearchSpace, depth_candidates, width_candidates
    from transprune.training.bilevel import Bilevel, SearchOptions
    from transprune.training.evaluation import Evaluation, evaluate
    from transprune.training.fitting import (
        DistillationOptions,
        TrainingOptions,
        distill,
        estimate_statistics,
        train,
    )
    from transprune.training.searching import SearchResult, search
    from transprune.training.tasks import Metric, Task, classification, regression, segmentation

_HOME = {
    "transprune.analysis.cost": ("ExpectedCost",),
    "transprune.analysis.derivation": ("derive",),
    "transprune.analysis.inspection": ("inspect",),
    "transprune.analysis.measurement": ("count_macs", "measure_latencies"),
    "transprune.analysis.probabilities": ("Probabilities",),
    "transprune.analysis.reference_points": ("random_architecture", "uniform_architecture"),
    "transprune.architecture": ("Architecture",),
    "transprune.budget": ("Budget", "Limit"),
    "transprune.costs": ("Cost",),
    "transprune.data": ("Augmentation", "ImageData", "LoaderData", "MemorySplit", "load_data", "make_loader"),
    "transprune.delivery.loading": ("load",),
    "transprune.delivery.performance": ("MeasureOptions", "Performance", "measure"),
    "transprune.errors": ("TranspruneError",),
    "transprune.latency.measuring": ("LatencyMeasurement", "measure_latency"),
    "transprune.latency.model": ("LatencyModel",),
    "transprune.latency.options": ("LatencyOptions",),
    "transprune.networks.adapters": ("register_adapter",),
    "transprune.networks.resnet": ("ResNet", "resnet"),
    "transprune.networks.resnet_shape": ("ResNetShape",),
    "transprune.networks.selection": ("ArchitectureParameters", "Selection"),
    "transprune.networks.shrinking": ("kept_entries", "shrink"),
    "transprune.networks.sorting": ("sort_channels",),
    "transprune.networks.supernet": ("Supernet",),
    "transprune.networks.torchvision_resnet": ("resnet_from_torchvision",),
    "transprune.networks.traced": ("TracedNetwork",),
    "transprune.presets": ("get_preset",),
    "transprune.residual": ("ResidualSum",),
    "transprune.runtime": ("CheckpointOptions", "Checkpoints"),
    "transprune.space": ("SearchSpace", "depth_candidates", "width_candidates"),
    "transprune.training.bilevel": ("Bilevel", "SearchOptions"),
    "transprune.training.evaluation": ("Evaluation", "evaluate"),
    "transprune.training.fitting": (
        "DistillationOptions",
        "TrainingOptions",
        "distill",
        "estimate_statistics",
        "train",
    ),
    "transprune.training.searching": ("SearchResult", "search"),
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
