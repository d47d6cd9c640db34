"""The steps of kernels: times of single operators in onnxruntime over widths, one thread.

    python benchmarks/latency_steps.py

A depthwise convolution over its channels, and a convolution over its input channels. Writes
`benchmarks/latency/steps.json`.
"""

from __future__ import annotations

import json
from functools import partial

import torch

import transprune
from latency import RESULTS
from transprune.latency.backends import Deployed
from transprune.latency.stopwatch import time_all
from transprune.latency.timed_operators import TimedOperator
from transprune.runtime.environment import environment

SQUARE = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
CASES = {
    "depthwise 3×3 at 12×12, channels": (
        TimedOperator(kind="conv", extent=(12, 12), groups=0, has_bias=True, activation="relu6", **SQUARE),
        [(1, width) for width in range(120, 200, 4)] + [(1, 129), (1, 153)],
    ),
    "3×3 at 16×16 to 32, input channels": (
        TimedOperator(kind="conv", extent=(16, 16), has_bias=True, activation="relu", **SQUARE),
        [(width, 32) for width in range(8, 41)],
    ),
    "3×3 at 16×16 from 32, output channels": (
        TimedOperator(kind="conv", extent=(16, 16), has_bias=True, activation="relu", **SQUARE),
        [(32, width) for width in range(8, 41)],
    ),
}


def main() -> None:
    backend = Deployed(transprune.LatencyOptions(), torch.device("cpu"))
    found = {}
    for name, (operator, widths) in CASES.items():
        reference = backend.operator(operator, *widths[-1])
        makers = [partial(backend.operator, operator, *pair) for pair in widths]
        times = time_all(makers, reference=reference, clock=backend.clock, repeats=300)
        found[name] = [
            {"inputs": one, "outputs": other, "ns": round(time)}
            for (one, other), time in zip(widths, times, strict=True)
        ]
        print(name, {pair: round(time / 1000, 1) for pair, time in zip(widths, times, strict=True)})
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "steps.json").write_text(json.dumps({"cases": found, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
