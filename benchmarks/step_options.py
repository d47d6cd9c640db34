"""What `torch.compile` and bfloat16 save in the steps of `transprune.train` and `transprune.distill`.

    python benchmarks/step_options.py [--network NAME] [--batch N] [--repeats N] [--json FILE]

Batches of noise, 3×32×32. The student is the network of half the MACs of `search_step.py`. Every repeat runs each kind
of step once, in turn; times are medians in milliseconds, `ratio` is to the same step without the option, `first_s` is
what the first two steps took, in which `torch.compile` compiles.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import transprune
from search_step import Step, medians, smaller_network, step_of_fit
from transprune.runtime.environment import environment

OPTIONS = {"none": {}, "compile": {"compile": True}, "bfloat16": {"precision": "bfloat16"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = transprune.resnet(int(arguments.network.removeprefix("resnet")))
    student = smaller_network(network, torch.zeros(1, 3, 32, 32), "both")
    images = torch.randn(arguments.batch, 3, 32, 32, device=arguments.device)
    labels = torch.randint(0, 10, (arguments.batch,), device=arguments.device)
    steps: dict[tuple[str, str], Step] = {}
    first: dict[tuple[str, str], float] = {}
    for phase, learner, teacher in (("teacher", network, None), ("distill", student, network)):
        for name, options in OPTIONS.items():
            started = time.perf_counter()
            step = step_of_fit(learner, teacher, images, labels, **options)
            step(0), step(1)
            steps[phase, name], first[phase, name] = step, time.perf_counter() - started
    milliseconds, _ = medians(steps, arguments.repeats, arguments.device)
    rows = [
        {
            "network": arguments.network,
            "batch": arguments.batch,
            "phase": phase,
            "option": name,
            "ms": taken,
            "ratio": taken / milliseconds[phase, "none"],
            "first_s": first[phase, name],
        }
        for (phase, name), taken in milliseconds.items()
    ]
    for row in rows:
        print(" ".join(f"{value:>10.4g}" if isinstance(value, float) else f"{value:>10}" for value in row.values()))
    if arguments.json is not None:
        record = {"steps": rows, "repeats": arguments.repeats, "environment": environment()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
