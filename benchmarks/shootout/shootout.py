"""The open shoot-out: same teachers, same distillation, same epochs, every method, several seeds.

    python benchmarks/shootout/shootout.py --cifar FOLDER --resnet FILE.py:FUNCTION WEIGHTS --digits FOLDER \
        [--cells NAME ...] [--methods NAME ...] [--seeds 0 1 2] [--device cuda] [--full] [--out FOLDER]

A cell is a trained network, its data and a budget (`cells.py`). Each method (`methods.py`) makes the network smaller
in a process of its own, peers with their packages in a folder of their own; what comes out has its norms estimated anew
and is then distilled from the same teacher by the same recipe, with the same order of the samples. One counter counts
all MACs. Each network leaves a JSON file when it is done, and what is there is not made again; a stopped distillation
goes on from its checkpoint. Teachers and checkpoints lie in `--cache`. The table is made of what is there. With
`--full` all images and as many epochs as papers give (`reproduce.md`), into folders of their own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from cells import CELLS, FULL_IMAGES, Cell, Data, Sources
from methods import METHODS, OURS, PACKAGES, Problem
from safetensors.torch import load_file, save_file
from torch import nn

import transprune
from transprune.runtime import seeded
from transprune.runtime.environment import environment

Record = dict[str, Any]
Take = Callable[[str, Record], float | None]
"""From the name of a cell and a record to a figure."""


def main() -> None:
    asked = arguments()
    if asked.one:
        return one(asked, asked.one[0], asked.one[1], int(asked.one[2]))
    asked.out.mkdir(parents=True, exist_ok=True)
    for seed in asked.seeds:
        for cell in asked.cells:
            for method in asked.methods:
                if not record_of(asked, cell, method, seed).exists():
                    alone(asked, cell, method, seed)
    pages = {
        "After the distillation, mean ± standard error (seeds)": table(asked.out, figure_when("after")),
        "Before any training": table(asked.out, figure_when("before")),
        "Processor seconds of a method's own part": table(asked.out, entry("own_processor_seconds")),
        "Peak memory of a method's own part, MiB": table(asked.out, entry("own_memory_mib")),
        "Latency in onnxruntime as a share of the teacher's, percent": table(asked.out, relative_latency),
        "Processor seconds of the distillation": table(asked.out, entry("distilling_processor_seconds")),
    }
    page = "\n".join(f"{title}:\n\n{made}" for title, made in pages.items())
    print(page)
    (asked.out / "table.md").write_text(page)
    plot(asked.out)
    return None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="folder with CIFAR-10 as train.parquet and test.parquet")
    parser.add_argument("--resnet", nargs=2, metavar=("FILE.py:FUNCTION", "WEIGHTS"), help="a trained ResNet-20")
    parser.add_argument("--digits", type=Path, help="folder with spoken digits as train.parquet and test.parquet")
    parser.add_argument("--cells", nargs="+", choices=CELLS, help="default: all that are made at this length")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", help="where networks learn and are measured; default: a GPU if there is one")
    parser.add_argument("--full", action="store_true", help="all images, and the epochs that papers give")
    parser.add_argument("--cache", type=Path, help="teachers, checkpoints, peers; default: build/shootout[-full]")
    parser.add_argument("--out", type=Path, help="default: results or full, beside this file")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    long = [name for name, cell in CELLS.items() if cell.is_long]
    if not asked.full and (refused := [name for name in asked.cells or () if name in long]):
        parser.error(f"{', '.join(refused)} would take days on a few cores: only with --full")
    asked.cells = asked.cells or [name for name in CELLS if asked.full or name not in long]
    asked.cache = asked.cache or Path("build/shootout-full" if asked.full else "build/shootout")
    asked.out = asked.out or Path(__file__).parent / ("full" if asked.full else "results")
    return asked


def record_of(asked: argparse.Namespace, cell: str, method: str, seed: int) -> Path:
    return asked.out / cell / f"{method}-{seed}.json"


def alone(asked: argparse.Namespace, cell: str, method: str, seed: int) -> None:
    """One network in a process of its own, where its method's packages can be imported."""
    paths = [*installed(asked.cache, method), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, __file__, *sys.argv[1:], "--one", cell, method, str(seed)]
    print(f"{time.strftime('%H:%M:%S')} {cell} {method} {seed}", flush=True)
    subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})


def installed(cache: Path, method: str) -> list[str]:
    """The folder with a peer's packages, made if it is missing; torch and numpy are the environment's."""
    packages = PACKAGES.get(method, ())
    if not packages:
        return []
    folder = cache.absolute() / "peers" / packages[0].replace("==", "-")
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
        subprocess.run(command, check=True)
    return [str(folder)]


# --- one network


def one(asked: argparse.Namespace, name: str, method: str, seed: int) -> None:
    """Makes, distils and measures a network, and writes its record."""
    torch.set_num_threads(1)
    resnet = (asked.resnet[0], Path(asked.resnet[1])) if asked.resnet else None
    cell, sources = CELLS[name], Sources(asked.cifar, resnet, asked.digits)
    if asked.full:
        cell, sources = cell.at_full_length(), replace(sources, images=FULL_IMAGES)
    data = cell.data(sources)
    teacher = taught(asked, name, cell, sources, data)
    problem = Problem(cell, teacher, data, seed, asked.device)
    about: Record = {"cell": name, "method": method, "seed": seed, "limit": problem.limit.most}
    held, begun, begun_cpu = peak_memory(), time.perf_counter(), time.process_time()
    try:
        student = METHODS[method][1](problem)
    except Exception as error:  # a peer that cannot is a result
        traceback.print_exc()
        about["failed"] = f"{type(error).__name__}: {error}"[:500]
        return write(record_of(asked, name, method, seed), about)
    about |= {
        "own_seconds": round(time.perf_counter() - begun, 1),
        "own_processor_seconds": round(time.process_time() - begun_cpu, 1),
        "own_memory_mib": round((peak_memory() - held) / 2**20),
        "macs": transprune.count_macs(student, problem.example),
        "params": sum(each.numel() for each in student.parameters()),
    }
    if method not in (*OURS, "uniform", "random"):  # those are repaired, which does the same
        student = transprune.estimate_statistics(student, data, task=cell.task, seed=seed)
    about["before"] = problem.evaluate(student).to_json()
    begun_cpu = time.process_time()
    checkpoints = asked.cache / "checkpoints" / f"{name}-{method}-{seed}"
    checkpoints.mkdir(parents=True, exist_ok=True)
    kept = transprune.Checkpoints(checkpoints, transprune.CheckpointOptions(checkpoint_minutes=5))
    setup = replace(problem.setup, phase="distill", checkpoints=kept)
    student = transprune.distill(student, teacher, data, cell.distilling(), task=cell.task, setup=setup).cpu()
    times = transprune.measure_latencies({"teacher": teacher, "student": student}, problem.example)
    about |= {
        "after": problem.evaluate(student).to_json(),
        "distilling_processor_seconds": round(time.process_time() - begun_cpu, 1),
        "latency_ms": {each: round(found.latency_ms, 4) for each, found in times.items()},
        "environment": environment(),
    }
    return write(record_of(asked, name, method, seed), about)


def taught(asked: argparse.Namespace, name: str, cell: Cell, sources: Sources, data: Data) -> nn.Module:
    """The unpruned network, trained once for all methods and seeds, and its figures."""
    with seeded(0, "teacher"):
        network = cell.network(sources)
    file = asked.cache / f"{name}.safetensors"
    if cell.teacher_epochs and file.exists():
        network.load_state_dict(load_file(file))
    elif cell.teacher_epochs:
        network = transprune.train(
            network, data, cell.teaching(), task=cell.task, setup=Problem(cell, network, data, 0, asked.device).setup
        ).cpu()
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), file)
    network.eval()
    about = asked.out / name / "teacher.json"
    if not about.exists():
        problem = Problem(cell, network, data, 0, asked.device)
        found = {
            "after": problem.evaluate(network).to_json(),
            "macs": transprune.count_macs(network, problem.example),
            "params": sum(each.numel() for each in network.parameters()),
            "environment": environment(),
        }
        write(about, found)
    return network


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write(file: Path, record: Record) -> None:
    """Writes a file that is there as a whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(file)


# --- the page


def figures(out: Path, cell: str, method: str, taken: Take) -> list[float]:
    """What is taken of the record of each seed that is there."""
    records = [json.loads(file.read_text()) for file in sorted((out / cell).glob(f"{method}-[0-9]*.json"))]
    return [found for each in records if "failed" not in each and (found := taken(cell, each)) is not None]


def figure_when(when: str) -> Take:
    """The cell's metric before or after the distillation."""
    return lambda cell, record: record[when][CELLS[cell].figure]


def entry(name: str) -> Take:
    """A figure that stands in the record; 0 is one that was not measured."""
    return lambda cell, record: record[name] or None


def relative_latency(cell: str, record: Record) -> float:
    """The student's latency in percent of the teacher's, measured in turns."""
    return 100 * record["latency_ms"]["student"] / record["latency_ms"]["teacher"]


def mean_and_error(found: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; the error of one figure is 0."""
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else 0.0
    return statistics.fmean(found), error


def table(out: Path, taken: Take) -> str:
    """All methods and cells that are there, these with their teacher's figure: mean ± standard error (seeds)."""
    cells = [each for each in CELLS if (out / each / "teacher.json").exists()]
    lines = [
        " | ".join(
            ["", "method", *(f"{CELLS[each].title}: {teacher_figure(out, each):.2f}" for each in cells), ""]
        ).strip(),
        "|---|" + "---:|" * len(cells),
    ]
    for method, (title, _) in METHODS.items():
        said = [_said(figures(out, cell, method, taken)) for cell in cells]
        if any(said):
            lines.append(" | ".join(["", title, *said, ""]).strip())
    return "\n".join(lines) + "\n"


def teacher_figure(out: Path, cell: str) -> float:
    return json.loads((out / cell / "teacher.json").read_text())["after"][CELLS[cell].figure]


def _said(found: Sequence[float]) -> str:
    if not found:
        return ""
    mean, error = mean_and_error(found)
    return f"{mean:.2f} ± {error:.2f} ({len(found)})" if len(found) > 1 else f"{mean:.2f} (1)"


def plot(out: Path) -> None:
    """A panel for each cell: each method's seeds as dots, mean and standard error as a bar."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = [each for each in CELLS if any(figures(out, each, method, figure_when("after")) for method in METHODS)]
    if not cells:
        return
    drawn, axes = pyplot.subplots(
        1, len(cells), figsize=(2 + 2.2 * len(cells), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, cell in zip(axes[0], cells, strict=True):
        for place, method in enumerate(METHODS):
            found = figures(out, cell, method, figure_when("after"))
            if found:
                mean, error = mean_and_error(found)
                colour = "#2a9d5c" if method in OURS else "#1f77b4"
                panel.errorbar(mean, place, xerr=error, fmt="|", color=colour, markersize=10, capsize=3)
                panel.plot(found, [place] * len(found), "o", color=colour, alpha=0.5, markersize=4)
        panel.axvline(teacher_figure(out, cell), color="0.6", linestyle="--", linewidth=1)
        panel.set_title(CELLS[cell].title.replace(", ", "\n"), fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_yticks(range(len(METHODS)), [title for title, _ in METHODS.values()])
    axes[0][0].invert_yaxis()
    drawn.savefig(out / "shootout.png", dpi=120)


if __name__ == "__main__":
    main()
