"""The command line: reads the arguments, calls a step, says what went wrong. No logic of its own."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

import tyro

from transprune import presets
from transprune.analysis.inspection import Dimensions
from transprune.budget import points
from transprune.data import AugmentationName
from transprune.delivery.performance import MeasureOptions
from transprune.errors import OptionError, StoppedError, TranspruneError
from transprune.latency.options import LatencyOptions
from transprune.pipeline.options import RunOptions, Safety
from transprune.pipeline.run import Run
from transprune.presets import StudentStart
from transprune.runtime import RunFolder, Terminated, processes, raising_on_sigterm, to_plain
from transprune.training.bilevel import SearchOptions
from transprune.training.fitting import DistillationOptions, TrainingOptions

Options = TypeVar("Options")
Unprefixed = Annotated[Options, tyro.conf.arg(name="")]
"""Options that stand beside the others on the command line, without a word before them."""

FAILED = 2
"""Exit code: a clear error was printed."""
STOPPED = {"SIGINT": 130, "SIGTERM": 143, "--max-minutes": 75}
"""Exit codes of a run that can go on, by what stopped it; 75 is what schedulers know as "try again"."""
DESCRIPTION = """Makes trained PyTorch networks smaller: widths and depths learned, within a budget.

Exit codes: 0 done; 2 an error, which is printed; 75 --max-minutes are over, 130 Ctrl-C, 143 SIGTERM: the same command
goes on."""


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
    resume: bool = False
    """Go on with the run in the folder, in the middle of a phase too. The same command does so without it, but begins
    a run where there is none. Without --out, the run is named alone: --resume RUN."""
    safety: Unprefixed[Safety] = field(default_factory=Safety)
    teacher: TrainingOptions = field(default_factory=TrainingOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    distill: DistillationOptions = field(default_factory=DistillationOptions)
    latency: LatencyOptions = field(default_factory=LatencyOptions)

    def options(self) -> RunOptions:
        """What decides the run."""
        return RunOptions(**{item.name: getattr(self, item.name) for item in fields(RunOptions)})

    def prepared(self) -> Run:
        """The run, begun or taken up."""
        from transprune import pipeline

        return pipeline.prepare(
            self.options(),
            self.out,
            device=self.device,
            overwrite=self.overwrite,
            resume=self.resume,
            safety=self.safety,
        )


@dataclass(frozen=True, kw_only=True)
class RunCommand(Job):
    """The whole job: a network, a data set and a budget go in; a smaller, trained network comes out.

    transprune run resnet20 --data digits --budget macs=0.5 --out runs/first --preset quick
    """

    def __call__(self) -> None:
        """Runs every step."""
        _run_all(self.prepared(), overwrite=self.overwrite)


@dataclass(frozen=True, kw_only=True)
class SearchCommand(Job):
    """The first steps of `run`: train the teacher (unless given) and search; then use distill RUN.

    transprune search resnet20 --data digits --budget macs=0.5 --out runs/first --preset quick
    """

    def __call__(self) -> None:
        """Runs the teacher and the search."""
        _refuse_frontier(self.budget)
        _teach_and_search(self.prepared())


@dataclass(frozen=True, kw_only=True)
class Step:
    """Arguments of a step on a run folder."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    safety: Unprefixed[Safety] = field(default_factory=Safety)

    def _do(self, name: str) -> RunFolder:
        """Runs a step by its name."""
        from transprune import pipeline

        with (
            pipeline.open_run(self.run, device=self.device, safety=self.safety) as run,
            pipeline.logging_to(run),
        ):
            step: Callable[[pipeline.Run], None] = getattr(pipeline, f"{name}_step")
            step(run)
        return run.folder


@dataclass(frozen=True, kw_only=True)
class ResumedRun(Step):
    """Go on with a run where it stopped, as the command that began it would.

    transprune run --resume runs/first
    """

    resume: bool = True
    """Go on."""

    def __call__(self) -> None:
        """Runs every step that is left."""
        _run_all(self.resumed())

    def resumed(self) -> Run:
        """The run, taken up."""
        from transprune import pipeline

        return pipeline.resume_run(self.run, device=self.device, safety=self.safety)


class ResumedSearch(ResumedRun):
    """Go on with a search where it stopped, as the command that began it would.

    transprune search --resume runs/first
    """

    def __call__(self) -> None:
        """Runs the teacher and the search, as far as they are left."""
        _teach_and_search(self.resumed())


def _run_all(run: Run, *, overwrite: bool = False) -> None:
    from transprune import pipeline

    with run:
        if run.is_frontier:
            pipeline.run_frontier(run, overwrite=overwrite)
        else:
            pipeline.run_all(run)


def _refuse_frontier(budget: Sequence[str]) -> None:
    """Checks that there is one amount of each budget.

    Raises:
        OptionError: There are several.
    """
    if len(points(budget)) > 1:
        raise OptionError(
            f"cannot search along {' '.join(budget)} step by step: expected one amount of each budget; "
            f"a frontier is made by `transprune run`"
        )


def _teach_and_search(run: Run) -> None:
    from transprune import pipeline

    with run, pipeline.logging_to(run):
        _refuse_frontier(run.options.budget)
        pipeline.teach_step(run)
        pipeline.search_step(run)
    pipeline.show_architecture(run)


@dataclass(frozen=True, kw_only=True)
class DistillCommand(Step):
    """Train the student of a run with its teacher.

    transprune distill runs/first
    """

    resume: bool = False
    """Go on in the middle of it, if it was interrupted; the same happens without this word."""

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

        with pipeline.open_run(self.run, device=self.device) as run, pipeline.logging_to(run):
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
        """Writes the report; also of a run that another process is at work on."""
        from transprune import pipeline

        print(f"wrote {pipeline.write_any_report(self.run)}")


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Show several runs side by side.

    transprune compare runs/* --html runs/comparison.html
    """

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...")]
    """Folders of the runs, evaluated."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print their figures as JSON."""
    html: Path | None = None
    """Also write a page that needs nothing but itself into this file."""

    def __call__(self) -> None:
        """Shows the runs."""
        from transprune.delivery.comparison import comparison
        from transprune.pipeline.results import show_comparison, write_comparison

        if not self.runs:
            raise OptionError("cannot compare: no run is named; expected the folders of runs, such as runs/*")
        found = comparison(self.runs)
        if self.html:
            write_comparison(found, self.html)
        if self.as_json:
            print(json.dumps(to_plain(found), indent=2))
            return
        show_comparison(found)
        if self.html:
            print(f"wrote {self.html}")


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
    "compare": CompareCommand,
}


RESUMED: dict[str, Any] = {"run": ResumedRun, "search": ResumedSearch}
"""What a subcommand takes where it goes on with a run that is named alone."""


def _subcommand(name: str, preset_name: str, *, is_resumed: bool) -> Any:
    """The type of a subcommand; where it starts a run, the preset's figures are its defaults."""
    command = RESUMED.get(name, COMMANDS[name]) if is_resumed else COMMANDS[name]
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


def _is_resumed(arguments: Sequence[str]) -> bool:
    """Whether the arguments go on with a run that is named alone, with all options as it holds them."""
    return "--resume" in arguments and not any(argument.partition("=")[0] == "--out" for argument in arguments)


def _named_preset(arguments: Sequence[str]) -> str:
    """The preset that the arguments ask for: it decides the defaults of other arguments, so it is read first."""
    name = Job.preset
    for position, argument in enumerate(arguments):
        if argument == "--preset" and position + 1 < len(arguments):
            name = arguments[position + 1]
        elif argument.startswith("--preset="):
            name = argument.removeprefix("--preset=")
    return name


@contextmanager
def _explaining() -> Iterator[None]:
    """Turns errors and stops into a message and an exit code; warnings are printed."""
    logger = logging.getLogger("transprune")
    logger.setLevel(logging.INFO)
    assert logging.lastResort is not None  # prints warnings on standard error
    logger.addHandler(logging.lastResort)
    try:
        with raising_on_sigterm():
            yield
    except StoppedError as error:
        if processes.is_first():
            print(f"transprune: {error}", file=sys.stderr)
        sys.exit(STOPPED[error.reason])
    except TranspruneError as error:
        print(f"transprune: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt as error:
        print("transprune: interrupted; what is finished is kept, and the same command goes on", file=sys.stderr)
        sys.exit(STOPPED["SIGTERM" if isinstance(error, Terminated) else "SIGINT"])
    finally:
        logger.removeHandler(logging.lastResort)


SHARED = (Job, ResumedRun, DistillCommand)
"""Commands whose work several processes share."""


def _call(command: Any) -> None:
    """Runs a command: in all processes where they share its work, else in the first one alone; the first one prints."""
    is_shared = isinstance(command, SHARED)
    if processes.is_first() and not is_shared:
        with processes.alone():
            command()
    elif is_shared:
        with nullcontext() if processes.is_first() else redirect_stdout(io.StringIO()):
            command()


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point; `docs/faults.md` lists the exit codes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with _explaining():
        preset, is_resumed = _named_preset(arguments), _is_resumed(arguments)
        subcommands = tuple(_subcommand(name, preset, is_resumed=is_resumed) for name in COMMANDS)
        commands: Any = Union[subcommands]  # noqa: UP007 (built at run time)
        command = tyro.cli(
            commands,
            prog="transprune",
            description=DESCRIPTION,
            args=list(arguments),
        )
        with processes.joined():
            _call(command)


if __name__ == "__main__":
    main()
