"""Commands that start or resume a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import tyro

from transprune import runs
from transprune.budget import points
from transprune.cli.commands import AsJson, OnDevice, Step, Unprefixed, print_json
from transprune.errors import OptionError
from transprune.options import (
    DEFAULT_PRESET,
    CompressOptions,
    Normalisation,
    SearchOptions,
    StudentStart,
    TrainingOptions,
)
from transprune.runs.run_options import DEFAULT_DATA, RunOptions, Safety, Tracking

if TYPE_CHECKING:
    from transprune.runs import Run


@dataclass(frozen=True, kw_only=True)
class Job(RunOptions):
    """Arguments that start a run: what decides it, where it goes, and how it is watched over."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    data: Annotated[str, tyro.conf.arg(metavar="DATA")] = ""
    """What it learns from: digits, cifar10:DIR, cifar100:DIR, imagefolder:DIR, parquet:DIR, to compress images:DIR;
    or your own FILE.py:FUNCTION. Without it, the ResNets of transprune itself get digits."""
    budget: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KIND=AMOUNT")]
    preset: Annotated[str, tyro.conf.arg(metavar="NAME")] = DEFAULT_PRESET
    task: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """What it is for, if not to tell images apart: regression, multi_label, causal-lm or FILE.py:FUNCTION, say.
    multi_label is for images with several classes each, or none; text-classification and token-classification are known
    too, and detection (with coco:DIR or yolo:DIR); a function of yours makes a `transprune.Task`."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    image_size: Annotated[tuple[int, int, int] | None, tyro.conf.arg(metavar="CHANNELS ROWS COLUMNS")] = None
    mean: Annotated[Normalisation | None, tyro.conf.arg(metavar="NUMBERS|WORD")] = None
    std: Annotated[Normalisation | None, tyro.conf.arg(metavar="NUMBERS|WORD")] = None
    keep: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATTERN...")] = ()
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATTERN...")] = ()
    tie: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATTERN...")] = ()
    pretrained: bool = False
    """Begin with the weights that torchvision or timm publish for the network; the same as --weights pretrained."""
    compress: tyro.conf.Suppress[CompressOptions | None] = None
    lose: Annotated[float | None, tyro.conf.arg(metavar="POINTS")] = None
    """Find the smallest budget that loses at most so much of the main metric, such as 0.5 points; with a kind alone,
    as in --budget macs."""
    out: Annotated[str, tyro.conf.arg(metavar="RUN")]
    """Folder of the run; made if missing."""
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE.toml")] = None
    """File of options, named as here; those with a dot in tables, such as epochs in [search]; a run's config.toml too.
    The command line overrides the file, and the file the preset."""
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto"
    """auto, cpu, cuda or cuda:N."""
    plan: bool = False
    """Only show what would happen and about how long it would take; writes nothing."""
    as_json: AsJson = False
    """Print the result, or the plan, as JSON, and nothing else on standard output."""
    overwrite: bool = False
    """Replace a run in the folder."""
    resume: bool = False
    """Resume the run in the folder, even in the middle of a phase. Without it, a run is resumed too, or else started.
    Without --out, name the run alone: --resume RUN."""
    safety: Unprefixed[Safety] = field(default_factory=Safety)
    tracking: Unprefixed[Tracking] = field(default_factory=Tracking)

    def options(self) -> RunOptions:
        """The options that decide the result of the run.

        Raises:
            OptionError: No data are named for a network that says nothing of them, or two kinds of weights are.
        """
        from transprune.models.by_name import PRETRAINED, is_trained_yolo, refuse_weights  # torch takes seconds to load
        from transprune.models.hugging_face import is_hugging_face

        refuse_weights(self.model)
        given = {item.name: getattr(self, item.name) for item in fields(RunOptions)}
        if not self.data and ":" not in self.model:  # a name: one of ours, or unknown, which is said of it elsewhere
            given["data"] = DEFAULT_DATA
        elif not self.data:
            raise OptionError(
                f"cannot use {self.model!r} without data: expected those that it is for, such as --data "
                "imagefolder:photos (transprune run --help lists the others)"
            )
        if self.pretrained and self.weights not in (None, PRETRAINED):
            raise OptionError(
                f"cannot use --pretrained with --weights {self.weights}: expected published weights or those of a file"
            )
        is_trained = is_hugging_face(self.model) or is_trained_yolo(self.model)
        if self.pretrained or (self.weights is None and is_trained):
            given["weights"] = PRETRAINED
        return RunOptions(**given)

    def show_plan(self, *, search_only: bool = False) -> None:
        if self.lose is not None:
            raise OptionError(
                "cannot plan with --lose: what happens depends on the budget that is found; expected an amount, such "
                "as --budget macs=0.5"
            )
        plan = runs.plan_run(
            self.options(),
            self.out,
            device=self.device,
            overwrite=self.overwrite,
            resume=self.resume,
            search_only=search_only,
        )
        if self.as_json:
            print_json(plan.to_json())
        else:
            runs.show_plan(plan)

    def prepared(self, *, search_only: bool = False) -> Run:
        """The run, started or resumed; says first what is to come."""
        trackers, options, answer = self.tracking.loaded(), self.options(), None
        if self.lose is not None:
            answer = runs.find_budget(options, self.lose, self.out, device=self.device, overwrite=self.overwrite)
            options = replace(options, budget=(answer["budget"],))
        run = runs.prepare(
            options,
            self.out,
            device=self.device,
            overwrite=self.overwrite,
            resume=self.resume,
            safety=self.safety,
            foretell=partial(runs.foretell, search_only=search_only),
        ).followed_by(trackers)
        if answer is not None:
            runs.keep_answer(run, answer)
        return run


@dataclass(frozen=True, kw_only=True)
class RunCommand(Job):
    """The whole job: network, data and budget go in, a smaller network comes out.

    transprune run resnet20 --budget latency=0.5 --out runs/first --preset quick
    """

    def __call__(self) -> None:
        if self.plan:
            self.show_plan()
        else:
            _run_all(self.prepared(), overwrite=self.overwrite, as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class SearchCommand(Job):
    """The first steps of `run`: train the teacher and search; then use distill.

    transprune search resnet20 --budget macs=0.5 --out runs/first --preset quick
    """

    def __call__(self) -> None:
        if self.lose is None:
            refuse_frontier(self.budget)
        if self.plan:
            self.show_plan(search_only=True)
        else:
            _teach_and_search(self.prepared(search_only=True), as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class CompressCommand(Job):
    """Make a trained network smaller without training, from some samples.

    transprune compress resnet20 --weights w.pth --budget macs=0.5 --out runs/half
    """

    safety: tyro.conf.Suppress[Safety] = field(default_factory=Safety)
    weights_partial: tyro.conf.Suppress[bool] = False
    student: tyro.conf.Suppress[StudentStart] = "scratch"
    teacher: tyro.conf.Suppress[TrainingOptions] = field(default_factory=TrainingOptions)
    search: tyro.conf.Suppress[SearchOptions] = field(default_factory=SearchOptions)

    samples: int = CompressOptions.samples
    """Training images to use; needs no labels."""
    repair: bool = CompressOptions.repair
    """What is left is fitted to the outputs of the whole network (`--no-repair`: it keeps the weights that it had)."""
    by_loss: bool = CompressOptions.by_loss
    """The task's loss on half of the samples decides between the networks found; the data must have labels."""

    def options(self) -> RunOptions:
        how = CompressOptions(samples=self.samples, repair=self.repair, by_loss=self.by_loss)
        return replace(super().options(), compress=how)

    def __call__(self) -> None:
        if self.lose is None:
            refuse_frontier(self.budget)
        if self.plan:
            self.show_plan()
        else:
            _compress(self.prepared(), as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class DeriveCommand(OnDevice):
    """Another budget, from what a compression or a finished search knows.

    transprune derive runs/half --budget macs=0.3 --out runs/third
    """

    budget: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KIND=AMOUNT")]
    """What the smaller network may cost; given several times, all hold."""
    out: Annotated[str, tyro.conf.arg(metavar="RUN")]
    """Folder of the new run; made if missing."""
    overwrite: bool = False
    """Replace a run in the folder."""

    def __call__(self) -> None:
        refuse_frontier(self.budget)
        folder = runs.derive_run(self.run, self.budget, self.out, device=self.device, overwrite=self.overwrite)
        runs.show_derived(folder)


@dataclass(frozen=True, kw_only=True)
class ResumedRun(Step):
    """Resume a run where it stopped, as the command that began it would.

    transprune run --resume runs/first
    """

    resume: bool = True
    """Resume it."""
    safety: Unprefixed[Safety] = field(default_factory=Safety)
    as_json: AsJson = False
    """Print the result as JSON, and nothing else on standard output."""

    def __call__(self) -> None:
        _run_all(self.resumed(), as_json=self.as_json)

    def resumed(self) -> Run:
        """The run, resumed."""
        trackers = self.tracking.loaded()
        return runs.resume_run(self.run, device=self.device, safety=self.safety).followed_by(trackers)


class ResumedCompress(ResumedRun):
    """Resume a compression where it stopped, as the command that began it would.

    transprune compress --resume runs/half
    """

    def __call__(self) -> None:
        _compress(self.resumed(), as_json=self.as_json)


class ResumedSearch(ResumedRun):
    """Resume a search where it stopped, as the command that began it would.

    transprune search --resume runs/first
    """

    def __call__(self) -> None:
        _teach_and_search(self.resumed(), as_json=self.as_json)


def _run_all(run: Run, *, as_json: bool, overwrite: bool = False) -> None:
    from transprune.runtime import processes

    with run:
        if run.is_frontier:
            runs.run_frontier(run, overwrite=overwrite)
            show, file = runs.show_frontier, "frontier.json"
        else:
            runs.run_all(run)
            show, file = runs.show_results, "result.json"
    if not processes.is_first():
        return
    if as_json:
        print_json(run.folder.read_json(file))
    else:
        show(run.folder)


def _compress(run: Run, *, as_json: bool) -> None:
    with run:
        runs.compress_all(run)
    if as_json:
        print_json(run.folder.read_json("result.json"))
    else:
        runs.show_results(run.folder)


def refuse_frontier(budget: Sequence[str]) -> None:
    """Checks that each budget has a single amount.

    Raises:
        OptionError: One has several.
    """
    if len(points(budget)) > 1:
        raise OptionError(
            f"cannot search along {' '.join(budget)} step by step: expected one amount of each budget; "
            f"a frontier is made by `transprune run`"
        )


def _teach_and_search(run: Run, *, as_json: bool) -> None:
    with run, runs.logging_to(run):
        refuse_frontier(run.options.budget)
        runs.teach_step(run)
        runs.search_step(run)
    if as_json:
        print_json(run.folder.read_json("architecture.json"))
    else:
        runs.show_architecture(run)
