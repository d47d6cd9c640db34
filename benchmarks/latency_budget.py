"""What a budget of half the latency gives on the clock, beside one of half the MACs.

    python benchmarks/latency_budget.py random [NETWORK ...] [--threads N] [--count N]
    python benchmarks/latency_budget.py search [--threads N]

`random` draws architectures within `latency=0.5` and within `macs=0.5` (`random_architecture`: nothing is learned, so
only the budgets differ). `search` runs the whole job on digits at 16×16 pixels: a teacher, a search for each budget,
students distilled alike. All networks are written as ONNX and timed in onnxruntime, taking turns with the unpruned
network.
Writes `benchmarks/latency/budget-WHAT-NETWORKS-threadsN.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import transprune
from latency import NETWORKS, RESULTS
from transprune.budget import Budget
from transprune.costs import COSTS
from transprune.latency.backends import Deployed
from transprune.latency.stopwatch import low_quantile, take_turns
from transprune.runtime.environment import environment

BUDGETS = ("latency=0.5", "macs=0.5")
REPEATS = 90
EPOCHS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("random", "search"))
    parser.add_argument("networks", nargs="*", default=["resnet20", "resnet56", "mobilenet_v2-96"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--count", type=int, default=8)
    arguments = parser.parse_args()
    options = transprune.LatencyOptions(threads=arguments.threads)
    if arguments.what == "search":
        rows = searched(options)
    else:
        rows = [row for name in arguments.networks for row in drawn(name, options, arguments.count)]
    for row in rows:
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    networks = "resnet20" if arguments.what == "search" else "-".join(arguments.networks)
    content = {"threads": arguments.threads, "rows": rows, "environment": environment()}
    path: Path = RESULTS / f"budget-{arguments.what}-{networks}-threads{arguments.threads}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def drawn(name: str, options: transprune.LatencyOptions, count: int) -> list[dict[str, object]]:
    """Random architectures of a network within each budget."""
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    network, example = make().eval(), torch.zeros(1, 3, size, size)
    space = transprune.inspect(network, example)
    costs = {**COSTS, "latency": transprune.measure_latency(network, space, example, options).model}
    chosen = [
        (text, transprune.random_architecture(space, [Budget.parse(text).limit(space, costs)], seed=seed))
        for text in BUDGETS
        for seed in range(count)
    ]
    students = [transprune.shrink(network, architecture, example) for _, architecture in chosen]
    times = timed([network, *students], example, options)
    full = space.full_architecture()
    return [
        {
            "network": name,
            "budget": text,
            "speed_up": times[0] / time,
            "predicted_speed_up": space.cost(costs["latency"], full) / space.cost(costs["latency"], architecture),
            "macs_share": space.macs(architecture) / space.macs(full),
            "full_ns": times[0],
            "student_ns": time,
        }
        for (text, architecture), time in zip(chosen, times[1:], strict=True)
    ]


def searched(options: transprune.LatencyOptions) -> list[dict[str, object]]:
    """A ResNet-20 searched for each budget, on digits."""
    data = transprune.load_data("digits", image_size=(3, 16, 16))
    recipe = transprune.get_preset("quick")
    example = torch.zeros(1, *data.image_size)
    torch.manual_seed(0)
    teacher = transprune.train(transprune.resnet(20), data, replace(recipe.teacher, epochs=EPOCHS))
    space = transprune.inspect(teacher, example)
    found = [
        transprune.search(teacher, data, text, replace(recipe.search, epochs=EPOCHS), space=space, latency=options)
        for text in BUDGETS
    ]
    students = [transprune.shrink(teacher, each.architecture, example) for each in found]
    students = [transprune.distill(one, teacher, data, replace(recipe.distill, epochs=EPOCHS)) for one in students]
    times = timed([teacher, *students], example, options)
    top1 = [transprune.evaluate(network, data).top1 for network in (teacher, *students)]
    full = space.full_architecture()
    return [
        {
            "network": "resnet20",
            "budget": text,
            "speed_up": times[0] / time,
            "macs_share": space.macs(each.architecture) / space.macs(full),
            "params_share": space.params(each.architecture) / space.params(full),
            "teacher_top1": top1[0],
            "student_top1": accuracy,
            "full_ns": times[0],
            "student_ns": time,
            "architecture": each.architecture.to_json(),
        }
        for text, each, time, accuracy in zip(BUDGETS, found, times[1:], top1[1:], strict=True)
    ]


def timed(networks: list[nn.Module], example: Tensor, options: transprune.LatencyOptions) -> list[float]:
    """Times in nanoseconds, each at a low quantile."""
    backend = Deployed(options, torch.device("cpu"))
    calls = [backend.network(network.eval(), (example,)) for network in networks]
    times = take_turns(calls, clock=backend.clock, repeats=REPEATS, turns=9)
    print(f"spread of the unpruned network: {statistics.quantiles(times[0], n=4)} ns", flush=True)
    return [low_quantile(each) for each in times]


if __name__ == "__main__":
    main()
