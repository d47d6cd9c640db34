"""Halves the channels of every network of the list with Torch-Pruning, and runs what comes out.

    python benchmarks/against_torch_pruning.py [--models PATTERN ...] [--jobs N] [--limit SECONDS] [--missing]

A network works when it is pruned within the limit, then runs forward and backward, and has fewer MACs than before.
The settings are those of Torch-Pruning's own examples: group magnitude importance, the classifier ignored, attention
not fused, its heads named, and the sizes that modules hold as numbers written back afterwards.
Raw results: `benchmarks/coverage/torch_pruning.json`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import transprune
from isolated import RESULTS, Record, first_line, read_call, run_benchmark
from model_list import CLASSES, matching

RATIO = 0.5
Projection = nn.Linear | nn.Conv2d


def ignored(network: nn.Module) -> list[nn.Module]:
    """The layers that end in the classes, and the projections inside torch's own attention."""
    return [
        layer
        for layer in network.modules()
        if (isinstance(layer, nn.Linear) and layer.out_features == CLASSES)
        or (isinstance(layer, nn.Conv2d) and layer.out_channels == CLASSES)
        or isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear)
    ]


def attentions(network: nn.Module) -> Iterator[tuple[Any, list[Projection]]]:
    """Each attention layer that names its number of heads, with its projections to queries, keys and values."""
    for module in network.modules():
        named = [getattr(module, name, None) for name in ("qkv", "q", "k", "v", "kv", "q_proj", "k_proj", "v_proj")]
        projections = [each for each in named if isinstance(each, Projection)]
        if isinstance(getattr(module, "num_heads", None), int) and projections:
            yield module, projections


def prune(network: nn.Module, images: Tensor) -> None:
    """Prunes the network in place."""
    import torch_pruning

    heads = {layer: module.num_heads for module, projections in attentions(network) for layer in projections}
    pruner = torch_pruning.pruner.BasePruner(
        network,
        images,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=ignored(network),
        num_heads=heads,
        round_to=next(
            (layer.num_heads for layer in network.modules() if isinstance(layer, nn.MultiheadAttention)), None
        ),
    )
    pruner.step()
    if isinstance(network, torchvision.models.VisionTransformer):
        network.hidden_dim = network.conv_proj.out_channels
    for module, projections in attentions(network):
        write_back_sizes(module, projections, pruner.num_heads)


def write_back_sizes(module: Any, projections: list[Projection], heads: dict[nn.Module, int]) -> None:
    """Sets the sizes that an attention layer holds as numbers to those of its pruned projections."""
    first = projections[0]
    width = first.out_features if isinstance(first, nn.Linear) else first.out_channels
    parts = 3 if first is getattr(module, "qkv", None) else 1
    module.num_heads = heads[first]
    if isinstance(getattr(module, "head_dim", None), int):
        module.head_dim = width // parts // module.num_heads
    if isinstance(getattr(module, "attn_dim", None), int):
        module.attn_dim = width // parts


def sizes(network: nn.Module, images: Tensor) -> Record:
    still = copy.deepcopy(network).requires_grad_(False)
    return {"macs": transprune.count_macs(still, images), "params": sum(each.numel() for each in still.parameters())}


def total(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return outputs.sum() if isinstance(outputs, Tensor) else torch.stack([each.sum() for each in outputs]).sum()


def measure(name: str) -> Record:
    import timm.layers.config

    (model,) = matching([name])
    timm.layers.config.set_fused_attn(False)
    network, images = model.build(), model.example()
    record: Record = {"before": sizes(network, images)}
    started = time.perf_counter()

    def backward() -> None:
        total(network.train()(images)).backward()

    stages: list[tuple[str, Callable[[], object]]] = [
        ("prune", lambda: prune(network, images)),
        ("forward", lambda: network(images)),
        ("backward", backward),
        ("count", lambda: record.update(after=sizes(network, images))),
    ]
    for stage, run in stages:
        try:
            run()
        except Exception as error:  # whatever a library raises is the result
            return record | {"outcome": "failed", "stage": stage, "error": first_line(error)}
        if stage == "prune":
            record["prune_seconds"] = round(time.perf_counter() - started, 2)
    outcome = "works" if record["after"]["macs"] < record["before"]["macs"] else "unchanged"
    return record | {"outcome": outcome}


if __name__ == "__main__":
    run_benchmark(read_call(__doc__), measure, RESULTS / "torch_pruning.json")
