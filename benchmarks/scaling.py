"""How training and search grow: throughput against processes, and the time of a step against depth.

    python benchmarks/scaling.py [--processes 1 2] [--networks resnet20 resnet56 resnet110] [--batch 64] [--steps 5]
        [--threads 1] [--json FILE]

A step is one of training (`Fit`) or of the search's weights (`Bilevel`), as the library makes them, on images of noise,
3×32×32. The batch is that of all processes together; each process has so many threads, and they exchange by gloo. Times
are medians over the steps after two to warm up. All networks are measured with the first number of processes, the
first network with every number. Processes share the machine: on fewer free cores than threads in all
there is nothing to gain.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

import transprune
from transprune.budget import Budget
from transprune.data import Augmentation, ImageData, MemorySplit
from transprune.models.by_name import build_model
from transprune.reading.inspection import inspect
from transprune.runtime import keep_kernels
from transprune.runtime.environment import environment
from transprune.tas.bilevel import Bilevel
from transprune.training.tasks import classification
from transprune.training.train import Fit

WARM_UP = 2
CPU = torch.device("cpu")
COLUMNS = ("network", "batch", "processes", "kind", "step_ms", "images_per_second")


def main() -> None:
    """Measures and prints."""
    keep_kernels()  # the processes inherit it
    options = _arguments()
    measured = [
        row
        for number, processes in enumerate(options.processes)
        for row in _rows(options.networks[: None if number == 0 else 1], processes, options)
    ]
    for line in (COLUMNS, *([row[column] for column in COLUMNS] for row in measured)):
        print("  ".join(f"{value:>10.1f}" if isinstance(value, float) else f"{value!s:>10}" for value in line))
    if options.json is not None:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        content = {"options": settings, "environment": environment(), "rows": measured}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56", "resnet110"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _rows(networks: list[str], processes: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_work, (networks, processes, options, folder), nprocs=processes)
        seconds = json.loads(Path(folder, "seconds.json").read_text())
    for network, kind, each in seconds:
        median = statistics.median(each)
        yield {
            "network": network,
            "batch": options.batch,
            "processes": processes,
            "kind": kind,
            "step_ms": 1000 * median,
            "images_per_second": options.batch / median,
            "steps_ms": [round(1000 * one, 1) for one in each],
        }


def _work(rank: int, networks: list[str], processes: int, options: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(options.threads)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    data = _noise(options.batch * (WARM_UP + options.steps))
    seconds = [
        (network, kind, _seconds(step)) for network in networks for kind, step in _steps(network, data, options.batch)
    ]
    if rank == 0:
        Path(folder, "seconds.json").write_text(json.dumps(seconds))
    distributed.destroy_process_group()


def _steps(network: str, data: ImageData, batch: int) -> Iterator[tuple[str, Iterator[Callable[[], None]]]]:
    """Training and search, each as its steps."""
    model = build_model(network, classes=10, image_channels=3)
    training = transprune.TrainingOptions(batch_size=batch)
    fit = Fit(*(model, None, data, training, classification()), setup=transprune.Setup(phase="teacher"))
    yield "train", (lambda each=each: fit.step(each) for each in fit._batches)
    space = inspect(model, torch.zeros(1, 3, 32, 32))
    search = Bilevel(
        model,
        data,
        transprune.SearchOptions(batch_size=batch, weights_share=0.95),
        space=space,
        limits=[Budget.parse("macs=0.5").limit(space)],
    )
    yield "search", (lambda each=each: search.step_weights(each, 5.0) for each in search.weight_batches)


def _seconds(steps: Iterator[Callable[[], None]]) -> list[float]:
    found = []
    for step in steps:
        begun = time.perf_counter()
        step()
        found.append(time.perf_counter() - begun)
    return found[WARM_UP:]


def _noise(samples: int) -> ImageData:
    images = torch.randint(0, 256, (samples, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = MemorySplit(images=images, labels=torch.arange(samples) % 10)
    return ImageData(
        name="noise",
        train=split,
        test=split,
        classes=tuple(map(str, range(10))),
        image_size=(3, 32, 32),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        augmentation=Augmentation(flip=True, pad=4),
    )


if __name__ == "__main__":
    main()
