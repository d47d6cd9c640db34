"""What a search step costs beside a training step of the unpruned network.

    python benchmarks/search_step.py [--networks NAME ...] [--batch N ...] [--modes MODE ...] [--repeats N]
        [--no-memory] [--json FILE]

A step is forward, backward and the optimizer's step on one batch of noise, 3×32×32. Plain steps train the unpruned
network; they are timed in both memory formats, and `ratio` is to the faster one. The phases of the search:

- `start`: weights step, all candidates equally probable, sampling temperature 10; each repeat draws anew;
- `end`: weights step, settled on an architecture of half the MACs, sampling temperature 0.1;
- `architecture`: step of the architecture parameters in the conditions of `start`;
- `smaller`: no search, but a training step, as `transprune.train` makes it, of the network that `end` is settled on:
  what is left of a step at its end when nothing is searched any more;
- `distillation`: the same with the unpruned network as its teacher, as `transprune.distill` makes it.

Every repeat runs each kind of step once, in turn, so that a busy machine slows all of them; and it begins with another
kind, since steps of the same draw share the kernels that are compiled for its shapes. All draws are made twice: kernels
are compiled in the first round (`first_ms`), and `search_ms` is of the second, as in a search of more steps than there
are pairs of widths. Times are medians. `peak_mib` is the most memory that a process of its own held in 4 steps (on
CUDA: that its tensors held).
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import transprune
from transprune.budget import Budget
from transprune.options import DistillationOptions, SearchOptions
from transprune.reading.inspection import inspect
from transprune.runtime import keep_kernels
from transprune.runtime.environment import environment
from transprune.tas.derivation import derive
from transprune.tas.expected_cost import ExpectedCost, budget_penalty
from transprune.tas.sampling import ArchitectureParameters
from transprune.tas.supernet import Supernet
from transprune.training.batches import Batch
from transprune.training.tasks import classification
from transprune.training.train import Fit
from transprune.training.update import sgd

MODES, ALIGNMENTS, PHASES = ("width", "depth", "both"), ("interpolate", "pad"), ("start", "end", "architecture")
AFTERWARDS = ("smaller", "distillation")
"""Steps of the network that a search has ended in."""
FORMATS = {"plain": torch.contiguous_format, "plain_channels_last": torch.channels_last}
COLUMNS = ("network", "batch", "mode", "alignment", "phase", "plain_ms", "search_ms", "ratio", "peak_mib", "peak_ratio")
OPTIONS = SearchOptions()
MEMORY_STEPS = 4
HALF = Budget.parse("macs=0.5")
SETTLED = 10.0
"""Logit of the chosen candidates at the end of a search; all others have 0."""

Step = Callable[[int], None]
"""Runs one step; the number seeds what it draws."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is timed."""

    mode: str
    """Of the search; `plain` or `plain_channels_last`: training."""
    alignment: str = ""
    phase: str = ""


PLAIN = tuple(Kind(mode=name) for name in FORMATS)
SEARCH = (
    *(Kind(mode=m, alignment=a, phase=p) for m, a, p in itertools.product(MODES, ALIGNMENTS, PHASES)),
    *(Kind(mode=m, phase=p) for m, p in itertools.product(MODES, AFTERWARDS)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56", "resnet110"])
    parser.add_argument("--batch", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--no-memory", action="store_true", help="time alone")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--memory-of", nargs=3, metavar=("MODE", "ALIGNMENT", "PHASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    keep_kernels()
    if arguments.memory_of:
        kind = Kind(**dict(zip(("mode", "alignment", "phase"), arguments.memory_of, strict=True)))
        print(peak_mib(kind, arguments.networks[0], arguments.batch[0], arguments.device))
        return
    cases = list(itertools.product(arguments.networks, arguments.batch))
    kinds = [kind for kind in SEARCH if kind.mode in arguments.modes]
    # First of all, while this process is small: a child's peak is at least what its parent held when it was born.
    peak = (lambda *_: None) if arguments.no_memory else peak_in_a_process
    every = list(itertools.product([*PLAIN, *kinds], cases))
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(every, pool.map(lambda one: peak(one[0], *one[1], arguments.device), every), strict=True))
    peaks = {case: {kind: found[kind, case] for kind in [*PLAIN, *kinds]} for case in cases}
    rows = []
    print(" ".join(f"{column:>12}" for column in COLUMNS))
    for case in cases:
        for row in measured(*case, peaks[case], arguments.repeats, arguments.device):
            rows.append(row)
            print(" ".join(f"{shown(row[column]):>12}" for column in COLUMNS), flush=True)
    if arguments.json is not None:
        record = {"steps": rows, "repeats": arguments.repeats, "environment": environment()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


def measured(
    network: str, batch: int, peaks: dict[Kind, float | None], repeats: int, device: str
) -> list[dict[str, Any]]:
    """A row for each kind of search step, of the kinds whose peak memory is given."""
    steps = {kind: step_of(kind, network, batch, device) for kind in peaks}
    for step in steps.values():
        step(0)
    first, _ = medians(steps, repeats, device)
    milliseconds, processor = medians(steps, repeats, device)
    formats = {f"{kind.mode}_ms": milliseconds[kind] for kind in PLAIN}
    fastest = min(PLAIN, key=milliseconds.__getitem__)
    least = None if None in peaks.values() else min(peaks[kind] for kind in PLAIN)
    return [
        {
            "network": network,
            "batch": batch,
            **vars(kind),
            **formats,
            "search_ms": milliseconds[kind],
            "first_ms": first[kind],
            "ratio": milliseconds[kind] / milliseconds[fastest],
            "ratio_of_processor_time": processor[kind] / processor[fastest],
            "peak_mib": peaks[kind],
            "plain_peak_mib": least,
            "peak_ratio": None if least is None else peaks[kind] / least,
        }
        for kind in peaks
        if kind not in PLAIN
    ]


def medians(steps: dict[Any, Step], repeats: int, device: str) -> tuple[dict[Any, float], dict[Any, float]]:
    """Milliseconds on the clock and of the processor of each kind of step, over draws 0 to `repeats`."""
    wall: dict[Any, list[float]] = {kind: [] for kind in steps}
    cpu: dict[Any, list[float]] = {kind: [] for kind in steps}
    for repeat in range(repeats):
        for kind, step in rotated(list(steps.items()), repeat):
            took_wall, took_cpu = timed(step, repeat, device)
            wall[kind].append(took_wall)
            cpu[kind].append(took_cpu)
    one, other = ({kind: statistics.median(each) for kind, each in times.items()} for times in (wall, cpu))
    return one, other


def rotated(items: list[Any], by: int) -> list[Any]:
    return items[by % len(items) :] + items[: by % len(items)]


def shown(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def timed(step: Step, repeat: int, device: str) -> tuple[float, float]:
    """Milliseconds on the clock and of the processor."""
    started = time.perf_counter(), time.process_time()
    step(repeat)
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started[0]), 1e3 * (time.process_time() - started[1])


def step_of(kind: Kind, name: str, batch: int, device: str) -> Step:
    torch.manual_seed(0)
    network = transprune.resnet(int(name.removeprefix("resnet")))
    images = torch.randn(batch, 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)
    if kind.mode in FORMATS:
        return plain_step(network.to(device=device, memory_format=FORMATS[kind.mode]), images, labels)
    return search_step(kind, network, images, labels)


def plain_step(network: nn.Module, images: Tensor, labels: Tensor) -> Step:
    optimizer = weight_optimizer(network.train())

    def step(seed: int) -> None:
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def step_of_fit(network: nn.Module, teacher: nn.Module | None, images: Tensor, labels: Tensor, **options: Any) -> Step:
    """The steps of `transprune.training.train.Fit`; `options` are those of the training."""
    batches = [(images, labels)]
    data = transprune.LoaderData(train=batches, test=batches, example=images[:1])
    training = DistillationOptions(epochs=1000, learning_rate=0.01, **options)
    fit = Fit(
        *(network, teacher, data, training, classification()),
        setup=transprune.Setup(device=images.device, phase="distill"),
    )
    batch = Batch((images,), labels)
    return lambda seed: fit.step(batch)


def weight_optimizer(network: nn.Module) -> torch.optim.SGD:
    return sgd(network.parameters(), 0.01, OPTIONS.momentum, OPTIONS.weight_decay)


def search_step(kind: Kind, network: nn.Module, images: Tensor, labels: Tensor) -> Step:
    """The steps of `transprune.tas.bilevel.Bilevel`."""
    example = torch.zeros(1, 3, 32, 32)
    if kind.phase in AFTERWARDS:
        small = smaller_network(network, example, kind.mode)
        return step_of_fit(small, network if kind.phase == "distillation" else None, images, labels)
    space = inspect(network, example, dimensions=kind.mode)
    parameters = ArchitectureParameters(space)
    settle(parameters, kind.phase)
    supernet = Supernet(network, space, example, alignment=kind.alignment).to(images.device).train()
    parameters.to(images.device)
    limit = HALF.limit(space)
    expected_cost = ExpectedCost(space, limit.cost, device=images.device)
    temperature = OPTIONS.temperature_end if kind.phase == "end" else OPTIONS.temperature_start
    weights = weight_optimizer(supernet)
    learning = list(parameters.parameters())
    architecture = torch.optim.Adam(learning, lr=0.0)

    def step_weights(seed: int) -> None:
        torch.manual_seed(1000 + seed)
        with torch.no_grad():
            selection = parameters.sample(temperature)
        loss = F.cross_entropy(supernet(selection, images), labels)
        weights.zero_grad()
        loss.backward()
        weights.step()

    def step_architecture(seed: int) -> None:
        torch.manual_seed(1000 + seed)
        loss = F.cross_entropy(supernet(parameters.sample(temperature), images), labels)
        probabilities = parameters.probabilities()
        actual = expected_cost(probabilities.one_hot())
        penalty = budget_penalty(expected_cost(probabilities), actual, limit.most, OPTIONS.tolerance)
        architecture.zero_grad()
        (loss + OPTIONS.penalty_weight * penalty).backward(inputs=learning)
        architecture.step()

    return step_architecture if kind.phase == "architecture" else step_weights


def smaller_network(network: nn.Module, example: Tensor, mode: str) -> nn.Module:
    """The network that the end of a search is settled on, of half the MACs."""
    parameters = ArchitectureParameters(inspect(network, example, dimensions=mode))
    settle(parameters, "end")
    return transprune.shrink(network, parameters.probabilities().most_probable(parameters.space), example)


@torch.no_grad()
def settle(parameters: ArchitectureParameters, phase: str) -> None:
    """Equal logits; at the end high ones for the architecture of half the MACs that random logits favour."""
    space = parameters.space
    if phase == "end":
        chance = torch.Generator().manual_seed(0)
        for logits in parameters.parameters():
            logits.normal_(generator=chance)
        chosen = derive(space, parameters.probabilities(), [HALF.limit(space)])
    for logits in parameters.parameters():
        logits.zero_()
    if phase == "end":
        for row, group in zip(parameters.widths, space.groups, strict=True):
            row[group.candidates.index(chosen.widths.get(group.name, group.width))] = SETTLED
        for row, stage in zip(parameters.depths, space.stages, strict=True):
            row[stage.candidates.index(chosen.depths.get(stage.name, stage.depth))] = SETTLED


def peak_in_a_process(kind: Kind, network: str, batch: int, device: str) -> float:
    command = [sys.executable, __file__, "--networks", network, "--batch", str(batch), "--device", device]
    memory_of = ["--memory-of", kind.mode, kind.alignment, kind.phase]  # some are empty
    return float(subprocess.run([*command, *memory_of], check=True, capture_output=True, text=True).stdout)


def peak_mib(kind: Kind, network: str, batch: int, device: str) -> float:
    step = step_of(kind, network, batch, device)
    for seed in range(MEMORY_STEPS):
        step(seed)
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
