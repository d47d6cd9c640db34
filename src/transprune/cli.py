"""The command line: reads the arguments, calls a step, says what went wrong. No logic of its own."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Union

import tyro

from transprune import presets
from transprune.analysis.inspection import Dimensions
from transprune.budget import points
from transprune.data import AugmentationName
from transprune.delivery.performance import MeasureOptions
from transprune.errors import OptionError, TranspruneError
from transprune.latency.options import LatencyOptions
from transprune.pipeline.run import RunOptions
from transprune.presets import StudentStart
from transprune.runtime import RunFolder
from transprune.training.bilevel import SearchOptions
from transprune.training.fitting import DistillationOptions, TrainingOptions

FAILED, INTERRUPTED = 2, 130
"""Exit codes: a clear error was printed; the user stopped the run."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Arguments that start a run."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """The network to make smaller: resnet20, resnet32, resnet44, resnet56, resnet110 or resnet164 for small images;
    resnet18, resnet34 or resnet50 for large ones; torchvision:NAME or timm:NAME; FILE.py:FUNCTION or
    package.module:FUNCTION, whose code is run."""
    data: str = "digits"
    """What it classifies: digits, cifar10:DIR, cifar100:DIR, imagefolder:DIR or parquet:DIR."""
    budget: tyro.conf.UseAppendAction[tuple[str, ...]]
    """What the smaller network may cost: macs=0.5 (a share), macs=20.4M, params=100K or latency=4ms (absolute). Given
    several times, all hold. One may name several amounts, macs=0.3,0.5,0.7: a search for each from one supernet, and
    the curve."""
    out: str
    """Folder of the run; made if missing."""
    preset: str = "medium"
    """Recipe whose figures the options below start from: quick, demo, short, medium, paper-cifar or paper-imagenet."""
    seed: int = 0
    """The same seed on the same machine gives the same result."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    weights: str | None = None
    """Trained weights of the network (.safetensors or .pth); without them it is trained first."""
    weights_partial: bool = False
    """Take what fits of the weights, and train the network first where something is missing."""
    dimensions: Dimensions = "both"
    """What to search: width, depth or both."""
    keep: tuple[str, ...] = ()
    """Patterns of layers and stages that keep their size, such as 'stem.*' (quoted)."""
    only: tuple[str, ...] = ()
    """Patterns of the layers and stages that are searched; all without it."""
    divisor: int = 1
    """Widths to choose from are multiples of this, such as 8."""
    student: StudentStart = "scratch"
    """Weights that the student starts from: new ones, the teacher's or the supernet's."""
    image_size: tuple[int, int, int] | None = None
    """Channels, rows and columns to bring the images to."""
    augment: AugmentationName = "standard"
    """Random changes of the training images: what is customary for the data set, none, shift (no mirroring: for digits,
    letters, signs), or imagenet (the paper's: crops, flips, colours, lighting)."""
    download: bool = False
    """Download cifar10 or cifar100 into DIR when it is not there."""
    overwrite: bool = False
    """Start anew where the folder holds a run."""
    teacher: TrainingOptions = field(default_factory=TrainingOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    distill: DistillationOptions = field(default_factory=DistillationOptions)
    latency: LatencyOptions = field(default_factory=LatencyOptions)

    def options(self) -> RunOptions:
        """What decides the run."""
        return RunOptions(**{item.name: getattr(self, item.name) for item in fields(RunOptions)})


@dataclass(frozen=True, kw_only=True)
class RunCommand(Job):
    """The whole job: a network, a data set and a budget go in; a smaller, trained network comes out.

    transprune run resnet20 --data digits --budget macs=0.5 --out runs/first --preset quick
    """

    def __call__(self) -> None:
        """Runs every step."""
        from transprune import pipeline

        run = pipeline.prepare(self.options(), self.out, device=self.device, overwrite=self.overwrite)
        if run.is_frontier:
            pipeline.run_frontier(run, overwrite=self.overwrite)
        else:
            pipeline.run_all(run)


@dataclass(frozen=True, kw_only=True)
class SearchCommand(Job):
    """The first steps of `run`: train the teacher (unless given) and search; then use distill RUN.

    transprune search resnet20 --data digits --budget macs=0.5 --out runs/first --preset quick
    """

    def __call__(self) -> None:
        """Runs the teacher and the search."""
        from transprune import pipeline

        if len(points(self.budget)) > 1:
            raise OptionError(
                f"cannot search along {' '.join(self.budget)} step by step: expected one amount of each budget; "
                f"a frontier is made by `transprune run`"
            )
        run = pipeline.prepare(self.options(), self.out, device=self.device, overwrite=self.overwrite)
        with pipeline.logging_to(run):
            pipeline.teach_step(run)
            pipeline.search_step(run)
        pipeline.show_architecture(run)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Arguments of a step on a run folder."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def _do(self, name: str) -> RunFolder:
        """Runs a step by its name."""
        from transprune import pipeline

        run = pipeline.open_run(self.run, device=self.device, is_frontier=name == "report")
        with pipeline.logging_to(run):
            step: Callable[[pipeline.Run], None] = getattr(pipeline, f"{name}_step")
            step(run)
        return run.folder


class DistillCommand(Step):
    """Train the student of a run with its teacher.

    transprune distill runs/first
    """

    def __call__(self) -> None:
        """Runs the step."""
        print(f"wrote {self._do('distill').file('student.safetensors')}")


class EvaluateCommand(Step):
    """Measure accuracy, MACs, parameters and latency of teacher and student, into result.json.

    transprune evaluate runs/first
    """

    def __call__(self) -> None:
        """Runs the step and shows the table."""
        from transprune import pipeline

        pipeline.show_results(self._do("evaluate"))


class ExportCommand(Step):
    """Write the student as student.onnx and student.pt2, checked against torch.

    transprune export runs/first
    """

    def __call__(self) -> None:
        """Runs the step."""
        folder = self._do("export")
        print(f"wrote {folder.file('student.onnx')} and {folder.file('student.pt2')}")


@dataclass(frozen=True, kw_only=True)
class MeasureCommand(Step):
    """Measure latency, throughput, memory and file size of teacher and student, in torch and onnxruntime.

    transprune measure runs/first --threads 1 --batch-size 64
    """

    options: Annotated[MeasureOptions, tyro.conf.arg(name="")] = field(default_factory=MeasureOptions)
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print what was measured as JSON."""

    def __call__(self) -> None:
        """Runs the step and shows the table."""
        from transprune import pipeline

        run = pipeline.open_run(self.run, device=self.device)
        with pipeline.logging_to(run):
            content = pipeline.measure_step(run, self.options)
        if self.as_json:
            print(json.dumps(content, indent=2))
            return
        pipeline.show_measurements(content)
        print(f"wrote {run.folder.file('measurements.json')}")


class ReportCommand(Step):
    """Write report.html, of a frontier frontier.html, from what the run folder holds.

    transprune report runs/first
    """

    def __call__(self) -> None:
        """Runs the step."""
        folder = self._do("report")
        print(f"wrote {folder.file('frontier.html' if folder.has('frontier.html') else 'report.html')}")


@dataclass(frozen=True, kw_only=True)
class InspectCommand:
    """Show which widths and depths of a network can be chosen, and what they cost.

    transprune inspect resnet56 --num-classes 100
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """The network, named as for `run`: resnet20, torchvision:NAME, timm:NAME, FILE.py:FUNCTION, ..."""
    input_size: tuple[int, int, int] = (3, 32, 32)
    """Channels, rows and columns of an image."""
    num_classes: int = 10
    """Outputs of the classifier."""
    dimensions: Dimensions = "both"
    """What to search: width, depth or both."""
    keep: tuple[str, ...] = ()
    """Patterns of layers and stages that keep their size, such as 'stem.*' (quoted)."""
    only: tuple[str, ...] = ()
    """Patterns of the layers and stages that are searched; all without it."""
    divisor: int = 1
    """Widths to choose from are multiples of this, such as 8."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the whole search space as JSON."""

    def __call__(self) -> None:
        """Prints the search space."""
        import torch

        from transprune import pipeline
        from transprune.analysis.inspection import inspect
        from transprune.networks.models import build_model

        if min(self.input_size) < 1 or self.num_classes < 1:
            raise OptionError(
                f"cannot inspect with --input-size {self.input_size} and --num-classes {self.num_classes}: "
                f"expected numbers of at least 1"
            )
        model = build_model(self.model, classes=self.num_classes, image_channels=self.input_size[0])
        space = inspect(
            model,
            torch.zeros(1, *self.input_size),
            dimensions=self.dimensions,
            keep=self.keep,
            only=self.only,
            divisor=self.divisor,
        )
        if self.as_json:
            print(json.dumps(pipeline.space_as_json(space), indent=2))
        else:
            pipeline.show_space(self.model, space)


COMMANDS: dict[str, Any] = {
    "run": RunCommand,
    "inspect": InspectCommand,
    "search": SearchCommand,
    "distill": DistillCommand,
    "evaluate": EvaluateCommand,
    "export": ExportCommand,
    "measure": MeasureCommand,
    "report": ReportCommand,
}


def _subcommand(name: str, preset_name: str) -> Any:
    """The type of a subcommand; where it starts a run, the preset's figures are its defaults."""
    command = COMMANDS[name]
    if not issubclass(command, Job):
        return Annotated[command, tyro.conf.subcommand(name, prefix_name=False)]
    preset = presets.get_preset(preset_name)
    default = command(
        model=tyro.MISSING,
        budget=tyro.MISSING,
        out=tyro.MISSING,
        preset=preset_name,
        teacher=preset.teacher,
        search=preset.search,
        augment=preset.augment,
        distill=preset.distill,
        student=preset.student,
    )
    return Annotated[command, tyro.conf.subcommand(name, default=default, prefix_name=False)]


def _named_preset(arguments: Sequence[str]) -> str:
    """The preset that the arguments ask for: it decides the defaults of other arguments, so it is read first."""
    name = Job.preset
    for position, argument in enumerate(arguments):
        if argument == "--preset" and position + 1 < len(arguments):
            name = arguments[position + 1]
        elif argument.startswith("--preset="):
            name = argument.removeprefix("--preset=")
    return name


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: exits with 0, 2 after a clear error (also of the arguments), or 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.getLogger("transprune").setLevel(logging.INFO)
    try:
        preset = _named_preset(arguments)
        commands: Any = Union[tuple(_subcommand(name, preset) for name in COMMANDS)]  # noqa: UP007 (built at run time)
        command = tyro.cli(
            commands,
            prog="transprune",
            description="Makes trained PyTorch networks smaller: widths and depths learned, within a budget.",
            args=list(arguments),
        )
        command()
    except TranspruneError as error:
        print(f"transprune: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        print("transprune: interrupted; what is finished is kept, and the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
