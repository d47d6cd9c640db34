"""A run in its folder: how it begins, and the things that all of its steps share."""

from __future__ import annotations

import copy
import itertools
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, Self, TypedDict

import torch
from torch import Tensor, nn

from transprune._version import __version__
from transprune.analysis.derivation import check_attainable
from transprune.analysis.inspection import inspect
from transprune.budget import Budget, points
from transprune.costs import COSTS, Cost
from transprune.data import ImageData, load_data
from transprune.errors import ModelError, OptionError, RunFolderError, StoppedError
from transprune.latency.cache import load_model, model_json
from transprune.latency.measuring import LatencyMeasurement, trusted_latency
from transprune.networks.models import build_model
from transprune.networks.weights import Weights, load_weights
from transprune.numerics.structures import outline
from transprune.pipeline.options import RunOptions, Safety
from transprune.pipeline.together import opened_by_all
from transprune.runtime import (
    Checkpoints,
    FolderLock,
    Journal,
    RunFolder,
    attach_run_log,
    choose_device,
    environment,
    epoch_progress,
    processes,
    read_journal,
    seeded,
)
from transprune.space import SearchSpace
from transprune.training.divergence import Policy
from transprune.training.looping import EpochCallback
from transprune.training.tasks import each_logits

log = logging.getLogger("transprune.run")


class Training(TypedDict):
    """What the loops of `train`, `search` and `distill` get from a run."""

    seed: int
    device: torch.device
    on_epoch: EpochCallback
    checkpoints: Checkpoints
    on_divergence: Policy


class Run:
    """A run folder with what its steps need: options, data, model, journal and checkpoints.

    No other process can use the folder until `close`, which the end of a `with` block calls.

    Args:
        folder: The folder.
        options: What decides the run.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        safety: When to write checkpoints, when to stop, and what to do about numbers that are not finite.
        lock: Holds the folder.
    """

    def __init__(
        self, folder: RunFolder, options: RunOptions, device: str, safety: Safety | None, lock: FolderLock
    ) -> None:
        self.folder = folder
        self.options = options
        self.device = choose_device(device)
        self.safety = safety or Safety()
        self.journal = Journal(folder.file("journal.jsonl"))
        self.checkpoints = Checkpoints(
            folder.path,
            self.safety,
            go_on=f"give the same command again, or `transprune run --resume {folder.path}`",
        )
        self._lock = lock
        folder.tidy()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes use the folder."""
        self._lock.release()

    @cached_property
    def data(self) -> ImageData:
        """The data set."""
        return _data(self.options)

    @cached_property
    def model(self) -> nn.Module:
        """The unpruned network with new weights."""
        return _build(self.options, self.data)

    @cached_property
    def given_weights(self) -> Weights | None:
        """What fits of the file of `--weights`; None if none is given."""
        return _weights(self.options, self.model)

    @cached_property
    def space(self) -> SearchSpace:
        """The search space, as `space.json` holds it."""
        return SearchSpace.from_json(self.folder.read_json("space.json"))

    @cached_property
    def costs(self) -> Mapping[str, Cost]:
        """How each kind of cost is counted; latency by the model that the run began with, if it has one."""
        model = load_model(self.folder.file("latency.json"), None, self.space)
        return COSTS if model is None else {**COSTS, model.kind: model}

    @property
    def is_frontier(self) -> bool:
        """Whether it is several searches, each in a folder of its own."""
        return len(points(self.options.budget)) > 1

    @property
    def example(self) -> Tensor:
        """One image of zeros [1, channels, rows, columns]."""
        return torch.zeros(1, *self.data.image_size)

    @contextmanager
    def phase(self, name: str, *, earlier: float = 0.0, **details: Any) -> Iterator[None]:
        """Records the beginning and end of a phase, with its duration.

        Args:
            name: The phase.
            earlier: Seconds that it took before it was interrupted.
            details: What else to record at its beginning.
        """
        started = perf_counter() - earlier
        self.journal.record("phase", phase=name, status="begin", device=str(self.device), **details)
        log.info("%s: begins on %s", name, self.device)
        try:
            yield
        except StoppedError as error:
            self.journal.record("phase", phase=name, status="stopped", reason=error.reason)
            raise
        seconds = perf_counter() - started
        self.journal.record("phase", phase=name, status="end", seconds=seconds)
        log.info("%s: done in %.1f s", name, seconds)

    @contextmanager
    def training(self, name: str, epochs: int) -> Iterator[Training]:
        """A phase of epochs: gives what `train`, `search` and `distill` need to record it and to go on with it.

        What a journal says of epochs behind the last checkpoint is removed: they are run again.
        """
        state = self.checkpoints.find(name) or {"epoch": 1, "steps": 0, "total_seconds": 0.0}
        done, steps = state["epoch"] - 1, state["steps"]
        is_resumed = done > 0 or steps > 0
        self.journal.forget(lambda entry: is_epoch(entry, name) and entry["epoch"] > done)
        details = {"resumed": {"epoch": state["epoch"], "step": steps}} if is_resumed else {}
        if is_resumed:
            log.info("%s: goes on in epoch %d after step %d", name, state["epoch"], steps)
        with (
            self.phase(name, earlier=state["total_seconds"], **details),
            epoch_progress(name, epochs) as progress,
        ):
            progress.advance(steps=done)

            def on_epoch(figures: Mapping[str, Any]) -> None:
                self.journal.record("epoch", **figures)
                text = describe(figures)
                log.info("%s: epoch %d of %d: %s", name, figures["epoch"], epochs, text)
                progress.advance(text)

            yield {
                "seed": self.options.seed,
                "device": self.device,
                "on_epoch": on_epoch,
                "checkpoints": self.checkpoints,
                "on_divergence": self.safety.on_divergence,
            }

    def decide(self, what: str, why: str, **details: Any) -> None:
        """Records a decision."""
        self.journal.record("decision", what=what, why=why, **details)
        log.info("%s: %s", what, why)

    def seconds(self, phase: str) -> float:
        """How long a phase took, when it was run last; NaN if it was not."""
        ends = [entry for entry in self.read_journal() if entry.get("phase") == phase and entry.get("status") == "end"]
        return float(ends[-1]["seconds"]) if ends else float("nan")

    def read_journal(self) -> list[dict[str, Any]]:
        """All entries so far."""
        return read_journal(self.folder.file("journal.jsonl"))


def is_epoch(entry: Mapping[str, Any], phase: str) -> bool:
    """Whether a record of a journal tells of an epoch of a phase."""
    return entry.get("event") == "epoch" and entry.get("phase") == phase and isinstance(entry.get("epoch"), int)


def describe(figures: Mapping[str, Any]) -> str:
    """The figures of an epoch in one short line."""
    parts = [f"loss {figures['loss']:.3f}", f"top-1 {figures['top1']:.1f} %"]
    for key, label in (("test_top1", "test"), ("validation_top1", "validation")):
        if key in figures:
            parts.append(f"{label} {figures[key]:.1f} %")
    for key, value in figures.items():
        kind = key.removeprefix("actual_")
        if kind != key:
            target = figures[f"target_{kind}"]
            said = f"{kind} {value / 1e6:.3f} ms," if kind == "latency" else kind
            parts.append(f"{said} {value / target:.2f} × budget (expected {figures[f'expected_{kind}'] / target:.2f})")
    if "entropy" in figures:
        parts.append(f"entropy {figures['entropy']:.2f}")
    return "  ".join(parts)


def prepare(
    options: RunOptions,
    out: str | Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    safety: Safety | None = None,
) -> Run:
    """Checks everything that can be checked before any training, then makes the run folder.

    Args:
        options: What decides the run.
        out: The run folder.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        overwrite: Start anew where the folder holds a run.
        resume: Go on with the run in the folder; without it, one that is there is taken up, else one begins.
        safety: When to write checkpoints, when to stop, and what to do about numbers that are not finite.

    Raises:
        TranspruneError: Model, data, weights, budget, options or folder cannot be used.
    """

    def prepared(folder: str | Path) -> Run:
        is_asked = folder == out  # else it is the copy of what the first process has prepared
        begin = {"overwrite": overwrite and is_asked, "resume": resume and is_asked}
        return _prepare(options, folder, device=device, safety=safety, **begin)

    return opened_by_all(out, prepared)


def _prepare(
    options: RunOptions, out: str | Path, *, device: str, overwrite: bool, resume: bool, safety: Safety | None
) -> Run:
    if resume and overwrite:
        raise OptionError("cannot use --resume with --overwrite: one goes on with a run, the other removes it")
    if resume:
        RunFolder.open(out)
    chosen = choose_device(device)
    budgets = [Budget.parse(text) for text in dict.fromkeys(itertools.chain(*points(options.budget)))]
    data = _data(options)
    model = _build(options, data)
    weights = _weights(options, model)
    example = torch.zeros(1, *data.image_size)
    space = inspect(
        model,
        example,
        dimensions=options.dimensions,
        keep=options.keep,
        only=options.only,
        divisor=options.divisor,
    )
    _check_logits(model, example, len(data.classes))
    measured = None
    costs: Mapping[str, Cost] = COSTS
    is_measuring = processes.is_first()  # the others get the measurement, and what was checked against it
    if is_measuring and any(budget.kind == "latency" for budget in budgets):
        measured = trusted_latency(model, space, example, options.latency, device=chosen)
        costs = {**COSTS, "latency": measured.model}
    if is_measuring:
        check_attainable(space, [budget.limit(space, costs) for budget in budgets])
    lock = FolderLock(Path(out))
    folder = RunFolder.create(out, asdict(options), overwrite=overwrite)
    run = Run(folder, options, str(chosen), safety, lock)
    run.data, run.model, run.given_weights, run.space = data, model, weights, space
    folder.write_json("environment.json", environment())
    folder.write_json("space.json", space.to_json())
    if measured is not None and not folder.has("latency.json"):  # a run keeps the model that it began with
        folder.write_json("latency.json", model_json(measured.key, space, measured.model))
    limits = [budget.limit(space, run.costs) for budget in budgets]
    run.journal.record("start", command=" ".join(["transprune", *sys.argv[1:]]), version=__version__)
    run.journal.record("configuration", **asdict(options))
    run.journal.record(
        "space",
        groups=len(space.groups),
        stages=len(space.stages),
        architectures=float(space.count()),
        fixed=[asdict(fixed) for fixed in space.fixed],
        budgets=[
            {
                "kind": limit.cost.kind,
                "full": space.cost(limit.cost, space.full_architecture()),
                "smallest": space.cost(limit.cost, space.smallest_architecture()),
                "target": limit.most,
            }
            for limit in limits
        ],
    )
    if measured is not None:
        _record_latency(run, measured)
    return run


def _record_latency(run: Run, measured: LatencyMeasurement) -> None:
    """Says how latency was measured, and how good the model is."""
    validation = measured.model.validation
    run.journal.record(
        "latency",
        measured_for=measured.key,
        seconds=measured.seconds,
        median_error=validation.median,
        worst_error=validation.worst,
        predicted=validation.predicted,
        measured=validation.measured,
    )


def open_run(path: str | Path, *, device: str = "auto", safety: Safety | None = None) -> Run:
    """Takes up the run in a folder.

    Args:
        path: The folder.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        safety: When to write checkpoints, when to stop, and what to do about numbers that are not finite.

    Raises:
        RunFolderError: The folder is missing, holds no run, holds a frontier, or another process is at work on it.
    """
    return opened_by_all(path, lambda folder: _open_run(RunFolder.open(folder), device, safety))


def _open_run(folder: RunFolder, device: str, safety: Safety | None) -> Run:
    options = read_options(folder)
    if len(points(options.budget)) > 1:
        runs = sorted(path.parent.name for path in folder.path.glob("*/config.toml"))
        raise RunFolderError(
            f"cannot do this step in '{folder.path}': it holds a frontier of several runs; name one of them, such as "
            f"'{folder.path / (runs[0] if runs else '...')}' ({', '.join(runs) or 'none has begun'})"
        )
    run = Run(folder, options, device, safety, FolderLock(folder.path))
    run.journal.record("start", command=" ".join(["transprune", *sys.argv[1:]]), version=__version__)
    return run


def resume_run(path: str | Path, *, device: str = "auto", safety: Safety | None = None) -> Run:
    """Goes on with the run in a folder as the command that began it would.

    Raises:
        TranspruneError: The folder is missing or holds no run, or as `prepare`.
    """
    options = processes.from_first(lambda: read_options(RunFolder.open(path)))
    return prepare(options, path, device=device, safety=safety)


def read_options(folder: RunFolder) -> RunOptions:
    """What decides the run in a folder.

    Raises:
        RunFolderError: Its config.toml is malformed.
    """
    return RunOptions.from_config(folder.config, folder.path)


def _data(options: RunOptions) -> ImageData:
    return load_data(
        options.data, image_size=options.image_size, augmentation=options.augment, download=options.download
    )


def _build(options: RunOptions, data: ImageData) -> nn.Module:
    with seeded(options.seed, "model"):
        return build_model(options.model, classes=len(data.classes), image_channels=data.image_size[0])


def _weights(options: RunOptions, model: nn.Module) -> Weights | None:
    if options.weights is not None:
        return load_weights(options.weights, model, partial=options.weights_partial)
    if options.weights_partial:
        raise OptionError("cannot use --weights-partial alone: expected a file to take what fits from (--weights FILE)")
    return None


def _check_logits(model: nn.Module, example: Tensor, classes: int) -> None:
    """Checks that a model in training gives logits [batch, classes], and of auxiliary heads at most the same.

    Raises:
        ModelError: It does not.
    """
    network = copy.deepcopy(model).train()
    with torch.no_grad():
        outputs = network(torch.cat([example, example]))
    found = each_logits(outputs)
    if not found or any(not isinstance(one, Tensor) or list(one.shape) != [2, classes] for one in found):
        raise ModelError(
            f"cannot train the model {type(model).__name__}: of 2 images its forward gives {outline(outputs)}, "
            f"expected the logits [2, {classes}] of the data's {classes} classes; let its function take the number of "
            f"classes (`classes` or `num_classes`)"
        )


@contextmanager
def logging_to(run: Run) -> Iterator[None]:
    """Writes the log of everything inside to `run.log`."""
    with attach_run_log(run.folder.file("run.log")):
        yield
