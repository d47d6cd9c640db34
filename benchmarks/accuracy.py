"""Compares ways to make one trained network smaller: same teacher, budget, distillation and epochs, several seeds each.

    python benchmarks/accuracy.py --data parquet:DIR --out DIR [--study methods|ablations|recipes] [--network NAME] ...

Makes everything from scratch: trains the teacher, searches, trains every student, and writes `table.md` and
`accuracy.png`. Every search and every student leaves a JSON file in the folder when it is done, so a stopped study goes
on where it was; only the table and the plot are made anew. `--help` lists what can be changed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import transprune
from isolated import described_environment
from transprune.data import ImageData
from transprune.models.by_name import build_model
from transprune.runtime import seeded

Start = Literal["scratch", "teacher", "supernet"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to make the smaller network."""

    label: str
    """What the table calls it."""
    shape: Literal["searched", "uniform", "random", "magnitude"] = "searched"
    """Where its widths and depths come from."""
    start: Start = "teacher"
    """Weights that it starts from."""
    is_distilled: bool = True
    """Whether it learns from the teacher, or from the labels alone."""
    dimensions: Literal["width", "depth", "both"] = "both"
    """What is searched."""
    search: Mapping[str, Any] = field(default_factory=dict)
    """Search options that differ from the study's."""
    epochs: int | None = None
    """Epochs of the student where they differ from the study's."""


METHODS = {
    "tas-supernet": Arm(label="TAS, weights of the supernet", start="supernet"),
    "tas": Arm(label="TAS"),
    "uniform": Arm(label="uniform widths", shape="uniform"),
    "random": Arm(label="random candidates", shape="random"),
    "magnitude": Arm(label="magnitude pruning (Torch-Pruning)", shape="magnitude"),
    "tas-scratch": Arm(label="TAS", start="scratch"),
    "uniform-scratch": Arm(label="uniform widths", shape="uniform", start="scratch"),
    "random-scratch": Arm(label="random candidates", shape="random", start="scratch"),
    "tas-labels": Arm(label="TAS without distillation", is_distilled=False),
}
ABLATIONS = {
    "tas": Arm(label="two samples, `pad`, width and depth, distilled"),
    "interpolate": Arm(label="alignment `interpolate`", search={"alignment": "interpolate"}),
    "width": Arm(label="width only", dimensions="width"),
    "depth": Arm(label="depth only", dimensions="depth"),
    "one-sample": Arm(label="one sample", search={"width_samples": 1, "depth_samples": 1}),
    "unsorted": Arm(label="channels not sorted in the search", search={"importance": "none"}),
    "decay": Arm(label="architecture parameters decayed", search={"architecture_weight_decay": 1e-3}),
    "scratch-search": Arm(label="search from new weights", search={"start": "scratch", "learning_rate": 0.1}),
    "tas-labels": Arm(label="without distillation", is_distilled=False),
    "tas-scratch": Arm(label="student from new weights", start="scratch"),
    "tas-supernet": Arm(label="student from the supernet's weights", start="supernet"),
}
RECIPES = {
    "short": Arm(label="8 epochs of search, 10 of distillation", start="supernet", search={"epochs": 8}, epochs=10),
    "brief-search": Arm(
        label="6 epochs of search, 16 of distillation", start="supernet", search={"epochs": 6}, epochs=16
    ),
    "long": Arm(label="20 epochs of search, 20 of distillation", start="supernet", search={"epochs": 20}, epochs=20),
}
"""What time is worth, beside a teacher of 20 or 40 epochs."""
STUDIES = {"methods": METHODS, "ablations": ABLATIONS, "recipes": RECIPES}


@dataclass(frozen=True, kw_only=True)
class Study:
    """What all arms share."""

    data: str
    image_size: tuple[int, int, int] | None
    network: str
    budget: str
    teacher_epochs: int
    search_epochs: int
    epochs: int
    learning_rate: float
    batch_size: int
    architecture_learning_rate: float
    out: str

    @property
    def images(self) -> ImageData:
        """The data set."""
        return load_once(self.data, self.image_size)

    @property
    def example(self) -> Tensor:
        """One image of zeros [1, channels, rows, columns]."""
        return torch.zeros(1, *self.images.image_size)

    def file(self, name: str) -> Path:
        """A file of the study."""
        return Path(self.out) / name

    def model(self) -> nn.Module:
        """The unpruned network with new weights."""
        with seeded(0, "model"):
            return build_model(self.network, classes=len(self.images.classes), image_channels=self.images.image_size[0])

    def teacher(self) -> nn.Module:
        """The trained unpruned network, one for all arms and seeds."""
        teacher = self.model()
        path = self.file("teacher.safetensors")
        if not path.exists():
            started = Clock()
            teacher = transprune.train(
                teacher,
                self.images,
                self._training(self.teacher_epochs, 0.1),
                setup=transprune.Setup(on_epoch=show("teacher", 0)),
            )
            save_file(teacher.state_dict(), path)
            record = {**figures_of(teacher, self), **started.passed()}
            write_json(self.file("teacher.json"), record)
        teacher.load_state_dict(load_file(path))
        return teacher.eval()

    def distillation(self, arm: Arm) -> transprune.DistillationOptions:
        """How a student is trained."""
        weight = 0.9 if arm.is_distilled else 0.0
        training = self._training(arm.epochs or self.epochs, self.learning_rate)
        return transprune.DistillationOptions(**asdict(training), weight=weight)

    def searching(self, arm: Arm) -> transprune.SearchOptions:
        """How an architecture is searched."""
        shared = replace(
            transprune.get_preset("medium").search,
            epochs=self.search_epochs,
            batch_size=self.batch_size,
            architecture_learning_rate=self.architecture_learning_rate,
        )
        return replace(shared, **arm.search)

    def _training(self, epochs: int, learning_rate: float) -> transprune.TrainingOptions:
        return transprune.TrainingOptions(
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=self.batch_size,
            warm_up_epochs=1,
            evaluate_every=epochs,
        )


class Clock:
    """How long something takes; beside other work the processor's time is what can be compared."""

    def __init__(self) -> None:
        self.started = self._now()

    def passed(self) -> dict[str, float]:
        """Seconds since the beginning, on the wall and of the processor."""
        return {name: now - self.started[name] for name, now in self._now().items()}

    @staticmethod
    def _now() -> dict[str, float]:
        return {"seconds": time.perf_counter(), "processor_seconds": time.process_time()}


@cache
def load_once(data: str, image_size: tuple[int, int, int] | None) -> ImageData:
    """The data set, shifted by up to an eighth of the image and flipped in training; once a process."""
    images = transprune.load_data(data, image_size=image_size)
    return replace(images, augmentation=transprune.Augmentation(flip=True, pad=images.image_size[1] // 8))


def show(name: str, seed: int) -> Callable[[Mapping[str, Any]], None]:
    """Prints the figures of every epoch."""

    def on_epoch(figures: Mapping[str, Any]) -> None:
        shown = {key: value for key, value in figures.items() if isinstance(value, int | float)}
        print(f"{name} {seed}", *(f"{key} {value:.4g}" for key, value in shown.items()), flush=True)

    return on_epoch


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a file that is there as a whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(path)


def figures_of(network: nn.Module, study: Study) -> dict[str, Any]:
    """Accuracy on the test images, MACs an image and parameters."""
    return {
        **transprune.evaluate(network, study.images).to_json(),
        "macs": transprune.count_macs(network, study.example),
        "params": sum(parameter.numel() for parameter in network.parameters()),
    }


def search_name(arm: Arm, seed: int) -> str:
    """What the files of the arm's search are called; arms with the same search share it."""
    changes = [str(value) for value in (arm.dimensions, *arm.search.values())]
    return "-".join(["search", *changes, str(seed)])


def search(study: Study, arm: Arm, seed: int) -> None:
    """Searches the arm's architecture, unless it is there."""
    path = study.file(f"{search_name(arm, seed)}.json")
    if path.exists():
        return
    teacher, started = study.teacher(), Clock()
    space = transprune.inspect(teacher, study.example, dimensions=arm.dimensions)
    options = study.searching(arm)
    found = transprune.search(
        teacher,
        study.images,
        study.budget,
        options,
        space=space,
        setup=transprune.Setup(seed=seed, on_epoch=show(path.stem, seed)),
    )
    save_file({name: value.contiguous() for name, value in found.weights.items()}, path.with_suffix(".safetensors"))
    record = {
        "architecture": found.architecture.to_json(),
        "most_probable_macs": space.macs(found.probabilities.most_probable(space)),
        "history": list(found.history),
        "options": asdict(options),
        **started.passed(),
    }
    write_json(path, record)


def student(study: Study, name: str, arm: Arm, seed: int) -> None:
    """Makes, trains and measures the arm's student, unless it is there."""
    path = study.file(f"student-{name}-{seed}.json")
    if path.exists():
        return
    started, teacher = Clock(), study.teacher()
    with seeded(seed, "student"):
        network = magnitude_pruned(study, teacher) if arm.shape == "magnitude" else shrunk(study, arm, teacher, seed)
        if arm.start != "scratch":
            network = transprune.estimate_statistics(network, study.images, seed=seed)
    untrained = transprune.evaluate(network, study.images).top1
    trained = transprune.distill(
        network,
        teacher,
        study.images,
        study.distillation(arm),
        setup=transprune.Setup(seed=seed, on_epoch=show(name, seed)),
    )
    record = {
        "arm": name,
        "seed": seed,
        **figures_of(trained, study),
        "top1_before_training": untrained,
        **started.passed(),
    }
    write_json(path, record)


def shrunk(study: Study, arm: Arm, teacher: nn.Module, seed: int) -> nn.Module:
    """The arm's architecture as a network, before training."""
    space = transprune.inspect(teacher, study.example)
    limits = [transprune.Budget.parse(study.budget).limit(space)]
    origin = transprune.sort_channels(teacher, study.example)
    if arm.shape == "uniform":
        architecture = transprune.uniform_architecture(space, limits)
    elif arm.shape == "random":
        architecture = transprune.random_architecture(space, limits, seed=seed)
    else:
        found = study.file(f"{search_name(arm, seed)}.json")
        architecture = transprune.Architecture.from_json(json.loads(found.read_text())["architecture"])
        if arm.start == "supernet":
            origin.load_state_dict(load_file(found.with_suffix(".safetensors")), strict=False)
    weights = "scratch" if arm.start == "scratch" else "inherit"
    return transprune.shrink(origin, architecture, study.example, weights=weights)


def magnitude_pruned(study: Study, teacher: nn.Module) -> nn.Module:
    """The teacher without its groups of smallest magnitude, ranked over all layers; the most that fits the budget."""
    limit = transprune.Budget.parse(study.budget).limit(transprune.inspect(teacher, study.example))
    network = study.model()
    network.load_state_dict(teacher.state_dict())
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    return by_torch_pruning(network, study.example, limit.most, linear)


def by_torch_pruning(network: nn.Module, example: torch.Tensor, most: int, ignored: list[nn.Module]) -> nn.Module:
    """The network itself, cut by group magnitude over all layers but some, until it has no more than so many MACs."""
    import torch_pruning

    steps = 200
    pruner = torch_pruning.pruner.BasePruner(
        network,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        iterative_steps=steps,
        pruning_ratio=0.99,
        max_pruning_ratio=0.9,
        ignored_layers=ignored,
    )
    for _ in range(steps):
        if transprune.count_macs(network, example) <= most:
            return network
        pruner.step()
    raise RuntimeError(f"Torch-Pruning does not reach {most:,} MACs")


def run(study: Study, arms: Mapping[str, Arm], seeds: Sequence[int], jobs: int) -> None:
    """Whatever is not there yet: the teacher, then all searches, then all students."""
    study.teacher()
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        searched = [arm for arm in arms.values() if arm.shape == "searched"]
        searches = {search_name(arm, seed): (arm, seed) for seed in seeds for arm in searched}
        for task in [pool.submit(search, study, arm, seed) for arm, seed in searches.values()]:
            task.result()
        students = [pool.submit(student, study, name, arm, seed) for seed in seeds for name, arm in arms.items()]
        for task in students:
            task.result()


@dataclass(frozen=True)
class Row:
    """What one arm came to."""

    arm: Arm
    top1: tuple[float, ...]
    macs: tuple[int, ...]
    params: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean top-1 accuracy over the seeds, in percent."""
        return statistics.fmean(self.top1)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds, in percentage points; 0 of one seed."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else 0.0


def rows_of(study: Study, arms: Mapping[str, Arm], seeds: Sequence[int]) -> list[Row]:
    """The finished arms, in order."""
    rows = []
    for name, arm in arms.items():
        paths = [study.file(f"student-{name}-{seed}.json") for seed in seeds]
        records = [json.loads(path.read_text()) for path in paths if path.exists()]
        if records:
            columns = [tuple(record[key] for record in records) for key in ("top1", "macs", "params")]
            rows.append(Row(arm, *columns))
    return rows


def table(study: Study, rows: Sequence[Row]) -> str:
    """The results as a table in Markdown."""
    teacher = json.loads(study.file("teacher.json").read_text())
    lines = [
        "| network | starts from | top-1, mean ± sd (seeds) | MACs | parameters |",
        "|---|---|---|---|---|",
        f"| teacher | – | {teacher['top1']:.2f} % | {teacher['macs'] / 1e6:.2f} M | {teacher['params'] / 1e3:.0f} k |",
    ]
    for row in rows:
        macs, params = statistics.fmean(row.macs) / 1e6, statistics.fmean(row.params) / 1e3
        spread = f" ± {row.spread:.2f}" if len(row.top1) > 1 else ""
        accuracy = f"{row.mean:.2f}{spread} % ({len(row.top1)})"
        lines.append(f"| {row.arm.label} | {row.arm.start} | {accuracy} | {macs:.2f} M | {params:.0f} k |")
    return "\n".join(lines) + "\n"


def plot(study: Study, rows: Sequence[Row]) -> None:
    """Every seed as a dot, mean and standard deviation as a bar, an arm a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1.1 + 0.4 * len(rows)), layout="constrained")
    teacher = json.loads(study.file("teacher.json").read_text())["top1"]
    axes.axvline(teacher, color="0.6", linestyle="--", linewidth=1, label=f"teacher, {teacher:.2f} %")
    colours = {"scratch": "#8c6d31", "teacher": "#1f77b4", "supernet": "#2a9d5c"}
    for place, row in enumerate(rows):
        colour = colours[row.arm.start]
        axes.errorbar(row.mean, place, xerr=row.spread, fmt="|", color=colour, markersize=14, capsize=4)
        axes.plot(row.top1, [place] * len(row.top1), "o", color=colour, alpha=0.5, markersize=5)
    axes.set_yticks(range(len(rows)), [f"{row.arm.label} ({row.arm.start})" for row in rows])
    axes.invert_yaxis()
    common = "" if any(row.arm.epochs for row in rows) else f", {study.epochs} epochs"
    axes.set_xlabel(f"top-1 accuracy, % · {study.network}, {study.budget}{common}")
    figure.legend(loc="outside upper right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(study.file("accuracy.png"), dpi=120)


def main() -> None:
    """Reads the command line, runs what is missing, writes table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="such as parquet:DIR or cifar10:DIR")
    parser.add_argument("--image-size", type=int, nargs=3, help="channels, rows and columns to bring the images to")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--budget", default="macs=0.4")
    parser.add_argument("--study", choices=STUDIES, default="methods")
    parser.add_argument("--arms", nargs="*", help="some arms of the study; without: all")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--teacher-epochs", type=int, default=20)
    parser.add_argument("--search-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=0.03, help="peak rate of the students")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--architecture-learning-rate", type=float, default=0.03)
    parser.add_argument("--jobs", type=int, default=1, help="processes, each on one thread")
    parser.add_argument("--out", required=True, help="folder of the results")
    found = parser.parse_args()
    shared = {key: value for key, value in vars(found).items() if key not in ("study", "arms", "seeds", "jobs")}
    study = Study(**shared | {"image_size": tuple(found.image_size) if found.image_size else None})
    arms = {name: arm for name, arm in STUDIES[found.study].items() if not found.arms or name in found.arms}
    Path(found.out).mkdir(parents=True, exist_ok=True)
    write_json(
        study.file("study.json"),
        {"command": " ".join(["python", *sys.argv]), **asdict(study), "environment": described_environment()},
    )
    run(study, arms, found.seeds, found.jobs)
    rows = rows_of(study, arms, found.seeds)
    study.file("table.md").write_text(table(study, rows))
    plot(study, rows)
    print(table(study, rows))


if __name__ == "__main__":
    main()
