"""How long reading a model takes, and how that grows with the number of its operators.

    python benchmarks/inspection_time.py [--repeats N] [--json FILE]

Prints a line per network: operators, seconds of `torch.export` and of all else that `inspect` does (medians over the
repeats, which go through all networks in turn), and microseconds an operator of the latter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torchvision import models

import transprune
from transprune.reading import reading as module
from transprune.reading.trace import trace
from transprune.runtime.environment import environment

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{f"resnet{depth}": (lambda depth=depth: transprune.resnet(depth), 32) for depth in (20, 56, 110, 164)},
    "torchvision:resnet50": (models.resnet50, 224),
    "torchvision:mobilenet_v2": (models.mobilenet_v2, 224),
    "torchvision:densenet121": (models.densenet121, 224),
    "torchvision:convnext_tiny": (models.convnext_tiny, 224),
    "torchvision:swin_t": (models.swin_t, 224),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, list[float]]] = {name: {"export": [], "rest": []} for name in NETWORKS}
    operators: dict[str, int] = {}
    for _ in range(arguments.repeats):
        for name, (make, size) in NETWORKS.items():
            network, images = make().eval(), torch.zeros(1, 3, size, size)
            started = time.perf_counter()
            traced = trace(network, images)
            exported = time.perf_counter() - started
            module.trace = lambda *_, traced=traced, **__: traced  # what is timed next reads this trace
            started = time.perf_counter()
            transprune.inspect(network, images)
            figures[name]["rest"].append(time.perf_counter() - started)
            module.trace = trace
            figures[name]["export"].append(exported)
            operators[name] = len(traced.calls)
    rows = []
    for name, each in figures.items():
        export, rest = (statistics.median(each[key]) for key in ("export", "rest"))
        rows.append({"network": name, "operators": operators[name], "export_s": export, "rest_s": rest})
        each_us = 1e6 * rest / operators[name]
        print(f"{name:28} {operators[name]:5} operators  {export:6.2f} s export  {rest:6.2f} s rest  {each_us:5.0f} us")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"networks": rows, "environment": environment()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
