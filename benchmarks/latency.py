"""How well the latency model predicts whole networks, and what it takes to learn it.

    python benchmarks/latency.py [NETWORK ...] [--backend NAME] [--threads N] [--architectures N]

For each network: learns the latency model on this machine (anew), then draws random architectures that the model has
not seen, shrinks each for real, writes it for the runtime (with `--exported` as a run writes ONNX, which takes longer),
and times it there, all in turn. Beside the model's error stands that of MACs times one factor, fitted on the same
measurements. Writes `benchmarks/latency/NETWORK-threadsN.json`; a backend other than onnxruntime stands before
`threads`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torchvision import models

import transprune
from transprune.exports.formats import export_program
from transprune.exports.runtimes import RUNTIMES
from transprune.latency.backends import Deployed
from transprune.latency.stopwatch import low_quantile, take_turns
from transprune.runtime.environment import environment

RESULTS = Path(__file__).parent / "latency"
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (lambda: transprune.resnet(20), 32),
    "resnet56": (lambda: transprune.resnet(56), 32),
    "mobilenet_v2-96": (models.mobilenet_v2, 96),
    "mobilenet_v2-224": (models.mobilenet_v2, 224),
}
"""What is measured, with the rows and columns of its images."""
FIRST_SEED = 1000
"""Architectures are drawn from here on; the model's own validation draws from 0 on."""
REPEATS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", choices=tuple(RUNTIMES), default="onnxruntime")
    parser.add_argument("--architectures", type=int, default=30)
    parser.add_argument("--exported", action="store_true")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for name in arguments.networks:
        options = transprune.LatencyOptions(backend=arguments.backend, threads=arguments.threads, remeasure=True)
        content = examine(name, options, arguments.architectures, is_exported=arguments.exported)
        runtime = "" if arguments.backend == "onnxruntime" else f"{arguments.backend}-"
        path = RESULTS / f"{name}-{runtime}threads{arguments.threads}.json"
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(
            f"{name}, {arguments.threads} thread(s): off by {100 * content['median_error']:.1f} % (median), "
            f"{100 * content['worst_error']:.1f} % (worst); MACs times a factor by "
            f"{100 * content['macs_median_error']:.1f} and {100 * content['macs_worst_error']:.1f} %; "
            f"learned in {content['seconds']:.0f} s",
            flush=True,
        )


def examine(name: str, options: transprune.LatencyOptions, count: int, *, is_exported: bool) -> dict[str, object]:
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    network, example = make().eval(), torch.zeros(1, 3, size, size)
    space = transprune.inspect(network, example)
    learned = transprune.measure_latency(network, space, example, options)
    architectures = [space.full_architecture(), space.smallest_architecture()]
    architectures += [space.random_architecture(FIRST_SEED + seed) for seed in range(count)]
    backend = Deployed(options, torch.device("cpu"))
    calls = []
    for architecture in architectures:
        student = transprune.shrink(network, architecture, example).eval()
        calls.append(
            backend.file(backend.runtime.write(export_program(student, example)), (example,))
            if is_exported
            else backend.network(student, (example,))
        )
    times = take_turns(calls, clock=backend.clock, repeats=REPEATS, turns=6)
    rows = [
        {
            "predicted_ns": space.cost(learned.model, architecture),
            "measured_ns": round(low_quantile(each)),
            "median_ns": round(statistics.median(each)),
            "macs": space.macs(architecture),
        }
        for architecture, each in zip(architectures, times, strict=True)
    ]
    validation = learned.model.validation
    full, smallest, *drawn = rows
    errors = [abs(row["predicted_ns"] / row["measured_ns"] - 1) for row in drawn]
    factor = statistics.median(row["measured_ns"] / row["macs"] for row in drawn)
    by_macs = [abs(factor * row["macs"] / row["measured_ns"] - 1) for row in drawn]
    return {
        "network": name,
        "input": [1, 3, size, size],
        "backend": options.backend,
        "backend_version": backend.runtime.version,
        "threads": options.threads,
        "exported": is_exported,
        "seconds": learned.seconds,
        "correction": vars(learned.model.correction),
        "own_median_error": validation.median,
        "own_worst_error": validation.worst,
        "median_error": statistics.median(errors),
        "worst_error": max(errors),
        "macs_median_error": statistics.median(by_macs),
        "macs_worst_error": max(by_macs),
        "full": full,
        "smallest": smallest,
        "random": drawn,
        "environment": environment(),
    }


if __name__ == "__main__":
    main()
