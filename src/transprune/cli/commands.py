"""Commands for the steps on a run folder, and commands that only show something."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from transprune import runs
from transprune.errors import OptionError
from transprune.options import Dimensions, MeasureOptions, RuntimeName
from transprune.runs.run_options import Safety, Tracking

if TYPE_CHECKING:
    from transprune.runtime import RunFolder

AsJson = Annotated[bool, tyro.conf.arg(name="json")]
"""The option `--json` of commands that print figures."""


def print_json(value: Any) -> None:
    """Prints a value as JSON."""
    from transprune.runtime import to_plain

    print(json.dumps(to_plain(value), indent=2))


Options = TypeVar("Options")
Unprefixed = Annotated[Options, tyro.conf.arg(name="")]
"""A nested dataclass whose options have no prefix on the command line."""


@dataclass(frozen=True, kw_only=True)
class OnRun:
    """Arguments of a command on a run folder."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""


@dataclass(frozen=True, kw_only=True)
class OnDevice(OnRun):
    """Arguments of a command on a run folder that computes."""

    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class Step(OnDevice):
    """Arguments of a step on a run folder."""

    safety: tyro.conf.Suppress[Safety] = field(default_factory=Safety)
    tracking: Unprefixed[Tracking] = field(default_factory=Tracking)

    def _do(self, name: str) -> RunFolder:
        """Runs a step by its function's name, and returns the run folder."""
        trackers = self.tracking.loaded()
        with (
            runs.open_run(self.run, device=self.device, safety=self.safety).followed_by(trackers) as run,
            runs.logging_to(run),
        ):
            step: Callable[[runs.Run], None] = getattr(runs, f"{name}_step")
            step(run)
        return run.folder


@dataclass(frozen=True, kw_only=True)
class DistillCommand(Step):
    """Train the student of a run with its teacher.

    transprune distill runs/first
    """

    safety: Unprefixed[Safety] = field(default_factory=Safety)

    def __call__(self) -> None:
        print(f"wrote {self._do('distill').file('student.safetensors')}")


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(Step):
    """Measure accuracy, costs and latency of teacher and student, into result.json.

    transprune evaluate runs/first
    """

    as_json: AsJson = False
    """Print what result.json holds, and nothing else on standard output."""

    def __call__(self) -> None:
        folder = self._do("evaluate")
        if self.as_json:
            print_json(folder.read_json("result.json"))
        else:
            runs.show_results(folder)


@dataclass(frozen=True, kw_only=True)
class ExportCommand(Step):
    """Write the student as student.onnx and student.pt2, or for transformers, checked.

    transprune export runs/first --int8 --runtime openvino
    """

    runtime: Annotated[tuple[RuntimeName, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Write the files of these runtimes too: openvino, litert, executorch; each is an extra that pip installs."""
    int8: bool = False
    """Write student.int8.onnx too, in 8 bits, and measure accuracy, latency and size beside 32 bits."""
    hf: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Write this folder instead, which transformers loads: config.json, model.safetensors, tokenizer or image
    processor, and a model card. For runs with --tie config."""
    push_to_hub: Annotated[str | None, tyro.conf.arg(metavar="OWNER/NAME")] = None
    """Upload that folder to the Hub of Hugging Face; needs `hf auth login` first."""

    def __call__(self) -> None:
        if self.hf is not None:
            with runs.open_run(self.run, device=self.device) as run, runs.logging_to(run):
                print(f"wrote {runs.export_pretrained_step(run, self.hf, push_to_hub=self.push_to_hub)}")
            return
        if self.push_to_hub is not None:
            raise OptionError("cannot use --push-to-hub alone: expected the folder to upload too (--hf FOLDER)")
        with runs.open_run(self.run, device=self.device) as run, runs.logging_to(run):
            written = runs.export_step(run, self.runtime)
            if self.int8:
                runs.show_quantised(runs.quantise_step(run))
                written.append("student.int8.onnx")
        print(f"wrote {', '.join(str(run.folder.file(name)) for name in written)}")


@dataclass(frozen=True, kw_only=True)
class MeasureCommand(OnDevice):
    """Measure latency, throughput, memory and file size, in torch and onnxruntime.

    transprune measure runs/first --threads 1 --batch-size 64
    """

    options: Annotated[MeasureOptions, tyro.conf.arg(name="")] = field(default_factory=MeasureOptions)
    as_json: AsJson = False
    """Print the measurements as JSON."""

    def __call__(self) -> None:
        with runs.open_run(self.run, device=self.device) as run, runs.logging_to(run):
            content = runs.measure_step(run, self.options)
        if self.as_json:
            print_json(content)
            return
        runs.show_measurements(content)
        print(f"wrote {run.folder.file('measurements.json')}")


class ReportCommand(OnRun):
    """Write report.html, of a frontier frontier.html, from what the run folder holds.

    transprune report runs/first
    """

    def __call__(self) -> None:
        print(f"wrote {runs.report(self.run)}")


@dataclass(frozen=True, kw_only=True)
class WatchCommand(OnRun):
    """Show the report of a run that goes on in a browser of this machine.

    transprune watch runs/first
    """

    port: int = 8765
    """A port of this machine; 0: any that is free."""

    def __call__(self) -> None:
        from transprune.reports.watch import LOOPBACK, watch_server

        with watch_server(self.run, self.port) as server, suppress(KeyboardInterrupt):
            print(f"http://{LOOPBACK}:{server.server_port} (Ctrl-C ends it)", flush=True)
            server.serve_forever()


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Show several runs side by side.

    transprune compare runs/* --html runs/comparison.html
    """

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...")]
    """Folders of runs, finished or not; of a frontier all its points."""
    as_json: AsJson = False
    """Print their figures as JSON."""
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write a self-contained page to this file."""

    def __call__(self) -> None:
        from transprune.reports.comparison import comparison
        from transprune.runs.results import show_comparison, write_comparison

        if not self.runs:
            raise OptionError("cannot compare: no run is named; expected the folders of runs, such as runs/*")
        found = comparison(self.runs)
        if self.html:
            write_comparison(found, self.html)
        if self.as_json:
            print_json(found)
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
    """The network, named as for `run`: resnet20, torchvision:NAME, timm:NAME, hf:FOLDER, FILE.py:FUNCTION, ..."""
    data: Annotated[str, tyro.conf.arg(metavar="DATA")] = ""
    """Data whose inputs it takes, named as for `run`, such as your own FILE.py:FUNCTION; without it, images."""
    task: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """What these data are for, named as for `run`, if not to tell images apart."""
    input_size: Annotated[tuple[int, int, int] | None, tyro.conf.arg(metavar="CHANNELS ROWS COLUMNS")] = None
    """Channels, rows and columns of an image; without it those of the data, or 3 32 32 where none are named."""
    length: int = 0
    """Tokens of a text, for networks of texts; 0: images are given."""
    num_classes: int = 10
    """Outputs of the classifier."""
    dimensions: Dimensions = "both"
    """What to search: width, depth or both."""
    keep: tuple[str, ...] = ()
    """Patterns of layers and stages that keep their size, such as 'stem.*' (quoted)."""
    only: tuple[str, ...] = ()
    """Patterns of the layers and stages that are searched; all without it."""
    tie: tuple[str, ...] = ()
    """Patterns; all layers that match one of them keep the same share of their width. config: as the numbers of the
    network's own configuration say."""
    divisor: int = 1
    """Allow only multiples of this as widths, such as 8."""
    as_json: AsJson = False
    """Print the whole search space as JSON."""

    def __call__(self) -> None:
        from transprune.reading.inspection import inspect, ties_of
        from transprune.runtime import announce

        if min(self.input_size or (1,)) < 1 or self.num_classes < 1 or self.length < 0:
            raise OptionError(
                f"cannot inspect with --input-size {self.input_size}, --num-classes {self.num_classes} and --length "
                f"{self.length}: expected numbers of at least 1"
            )
        announce(f"reading {self.model}")
        model, example = runs.network_and_example(
            self.model,
            self.data,
            task=self.task,
            length=self.length,
            image_size=self.input_size,
            classes=self.num_classes,
        )
        space = inspect(
            model,
            example,
            dimensions=self.dimensions,
            keep=self.keep,
            only=self.only,
            tie=ties_of(self.tie),
            divisor=self.divisor,
        )
        if self.as_json:
            print_json(runs.space_as_json(space))
        else:
            runs.show_space(self.model, space)
