"""Commands on a run folder: one for each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import tyro

from transprune import runs
from transprune.cli.output import AsJson, print_json
from transprune.latency.performance import MeasureOptions
from transprune.runs.run_options import Safety
from transprune.runs.trackers import Tracking
from transprune.runtime import RunFolder

Options = TypeVar("Options")
Unprefixed = Annotated[Options, tyro.conf.arg(name="")]
"""Options that stand beside the others on the command line, without a word before them."""


@dataclass(frozen=True, kw_only=True)
class OnRun:
    """The run folder that a command is about."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""


@dataclass(frozen=True, kw_only=True)
class OnDevice(OnRun):
    """The device that computes."""

    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class Step(OnDevice):
    """Arguments of a step on a run folder."""

    safety: Unprefixed[Safety] = field(default_factory=Safety)
    tracking: Unprefixed[Tracking] = field(default_factory=Tracking)

    def _do(self, name: str) -> RunFolder:
        """Runs a step by its name."""
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

    resume: bool = False
    """Go on in the middle of it, if it was interrupted; the same happens without this word."""

    def __call__(self) -> None:
        """Runs the step."""
        print(f"wrote {self._do('distill').file('student.safetensors')}")


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(Step):
    """Measure accuracy, MACs, parameters and latency of teacher and student, into result.json.

    transprune evaluate runs/first
    """

    as_json: AsJson = False
    """Print what result.json holds, and nothing else on standard output."""

    def __call__(self) -> None:
        """Runs the step and shows the table."""
        folder = self._do("evaluate")
        if self.as_json:
            print_json(folder.read_json("result.json"))
        else:
            runs.show_results(folder)


class ExportCommand(Step):
    """Write the student as student.onnx and student.pt2, checked against torch.

    transprune export runs/first
    """

    def __call__(self) -> None:
        """Runs the step."""
        folder = self._do("export")
        print(f"wrote {folder.file('student.onnx')} and {folder.file('student.pt2')}")


@dataclass(frozen=True, kw_only=True)
class MeasureCommand(OnDevice):
    """Measure latency, throughput, memory and file size of teacher and student, in torch and onnxruntime.

    transprune measure runs/first --threads 1 --batch-size 64
    """

    options: Annotated[MeasureOptions, tyro.conf.arg(name="")] = field(default_factory=MeasureOptions)
    as_json: AsJson = False
    """Print what was measured as JSON."""

    def __call__(self) -> None:
        """Runs the step and shows the table."""
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
        """Writes the report; also of a run that another process is at work on."""
        print(f"wrote {runs.write_any_report(self.run)}")
