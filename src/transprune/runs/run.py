"""A run in its folder: what all of its steps share."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from time import perf_counter
from typing import Any, Self

import torch
from torch import nn

from transprune import __version__
from transprune.architecture import Architecture
from transprune.budget import points
from transprune.costs import Cost, with_kinds
from transprune.errors import StoppedError
from transprune.latency.measurement import load_model
from transprune.latency.stopwatch import UNTIMED, Timekeeper, timekeeper
from transprune.models.weights import Weights
from transprune.reading.reading import Reading, read, read_for
from transprune.reading.trace import Example
from transprune.runs.material import (
    DETECTION,
    Given,
    data_of,
    detector_of,
    known_file_size,
    model_of,
    task_of,
    weights_of,
)
from transprune.runs.run_options import MakeTracker, RunOptions, Safety
from transprune.runtime import (
    Checkpoints,
    FolderLock,
    Journal,
    RunFolder,
    announce,
    attach_run_log,
    choose_device,
    is_epoch,
    processes,
    read_journal,
)
from transprune.space import SearchSpace
from transprune.training.batches import Data, example_of
from transprune.training.loop import Setup, described
from transprune.training.tasks import Task

log = logging.getLogger("transprune.run")
CHECK = "latency_check"
"""The event in the journal that says what a network takes that was chosen for a budget of time."""


class Run:
    """A run folder with what its steps need: options, data, model, journal and checkpoints.

    No other process can use the folder until `close`, which a `with` block calls at its end.

    Args:
        folder: The folder.
        options: The options that decide the result of the run.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        safety: When to save checkpoints, when to stop, and what to do about numbers that are not finite.
        lock: The lock on the folder.
    """

    def __init__(
        self,
        folder: RunFolder,
        options: RunOptions,
        device: torch.device | str,
        safety: Safety | None,
        lock: FolderLock,
    ) -> None:
        self.folder = folder
        self.options = options
        self.device = choose_device(device)
        self.safety = safety or Safety()
        self.journal = Journal(folder.file("journal.jsonl"))
        self.checkpoints = Checkpoints(
            folder.path,
            self.safety,
            go_on=f"give the same command again, or `transprune run --resume {folder.in_shell}`",
        )
        self.trackers: tuple[MakeTracker, ...] = ()
        """The functions that make the run's trackers from its folder."""
        self._lock = lock
        folder.tidy()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unlocks the folder."""
        self._lock.release()

    def followed_by(self, trackers: Iterable[MakeTracker]) -> Self:
        """Attaches trackers, which receive all records of the journal, in the first process; returns the run.

        Args:
            trackers: Functions that make a tracker from the run folder.
        """
        self.trackers = tuple(trackers)
        for make in self.trackers if processes.is_first() else ():
            self.journal.follow(make(self.folder.path))
        return self

    @cached_property
    def data(self) -> Data:
        """The data set, read as it was when the run began."""
        return data_of(self.options, self.folder) if self._detector is None else self._detector.data

    @cached_property
    def _detector(self) -> Given | None:
        """The network, data and task of a detector, which are made together."""
        return detector_of(self.options) if self.options.task == DETECTION else None

    @cached_property
    def task(self) -> Task:
        """What the networks are trained for."""
        return task_of(self.options) if self._detector is None else self._detector.task

    @cached_property
    def model(self) -> nn.Module:
        """The unpruned network with new weights."""
        return model_of(self.options, self.data) if self._detector is None else self._detector.model

    @cached_property
    def weights(self) -> Weights | None:
        """The weights in the file of `--weights` that fit; None if no file is given."""
        return weights_of(self.options, self.model, self.data)

    @cached_property
    def space(self) -> SearchSpace:
        """The search space in `space.json`."""
        return SearchSpace.from_json(self.folder.read_json("space.json"))

    def keep_space(self, space: SearchSpace) -> None:
        """Writes the search space down, with the orders of blocks that were found."""
        self.space = replace(space, reading=None)
        self.folder.write_json("space.json", self.space.to_json())

    @cached_property
    def reading(self) -> Reading:
        """The reading of the network, made once for all steps."""
        return (
            read_for(self.model, self.example, self.space)
            if self.folder.has("space.json")
            else read(self.model, self.example)
        )

    @cached_property
    def costs(self) -> Mapping[str, Cost]:
        """How each kind of cost is counted; latency, if the run has a model of it, by the model it began with."""
        return costs_in(self.folder, self.space)

    @cached_property
    def keeper(self) -> Timekeeper:
        """Holds what is chosen for a budget of time against the clock; what it measures is kept in the journal."""
        if "latency" not in self.costs:
            return UNTIMED
        checks = [entry for entry in self.read_journal() if entry["event"] == CHECK]
        return timekeeper(
            self.model,
            replace(self.space, reading=self.reading),
            self.example,
            self.options.latency,
            device=self.device,
            known={Architecture.from_json(check["architecture"]): check["measured"] for check in checks},
            on_check=lambda figures: self.journal.record(CHECK, **figures),
        )

    @property
    def is_frontier(self) -> bool:
        """Whether the run is a frontier: several runs, each in its own folder."""
        return len(points(self.options.budget)) > 1

    @property
    def example(self) -> Example:
        """An image of zeros [1, channels, rows, columns], or the inputs of the data's example."""
        found = example_of(self.data)
        return found[0] if type(found) is tuple and len(found) == 1 else found

    @contextmanager
    def phase(self, name: str, *, earlier: float = 0.0, said: str = "", **details: Any) -> Iterator[None]:
        """Records the beginning and end of a phase, with its duration.

        Args:
            name: The phase.
            earlier: Seconds that it took before an interruption.
            said: What it does, if it does not begin to learn or compute.
            details: Other fields of the record of its beginning.
        """
        started = perf_counter() - earlier
        self.journal.record("phase", phase=name, status="begin", device=str(self.device), **details)
        said = f"{name}: {said or f'begins on {self.device}'}"
        log.info("%s", said)
        announce(said)
        try:
            yield
        except StoppedError as error:
            self.journal.record("phase", phase=name, status="stopped", reason=error.reason)
            raise
        seconds = perf_counter() - started
        self.journal.record("phase", phase=name, status="end", seconds=seconds)
        log.info("%s: done in %.1f s", name, seconds)

    @contextmanager
    def training(self, name: str, epochs: int) -> Iterator[Setup]:
        """A phase of epochs: yields a setup with which `train`, `search` or `distill` record and resume it.

        Epochs after the last checkpoint are removed from the journal, because they run again.
        """
        state = self.checkpoints.find(name) or {"epoch": 1, "steps": 0, "total_seconds": 0.0}
        done, steps = state["epoch"] - 1, state["steps"]
        is_resumed = done > 0 or steps > 0
        self.journal.forget(lambda entry: is_epoch(entry, name) and entry["epoch"] > done)
        details: dict[str, Any] = {"resumed": {"epoch": state["epoch"], "step": steps}} if is_resumed else {}
        if is_resumed:
            log.info("%s: goes on in epoch %d after step %d", name, state["epoch"], steps)
            self._compare_processes(name, before=len(state["processes"]))
        with self.phase(name, earlier=state["total_seconds"], **details):

            def on_epoch(figures: Mapping[str, Any]) -> None:
                self.journal.record("epoch", **figures)
                log.info("%s: epoch %d of %d: %s", name, figures["epoch"], epochs, described(figures))

            yield Setup(
                seed=self.options.seed,
                device=self.device,
                phase=name,
                on_epoch=on_epoch,
                checkpoints=self.checkpoints,
                on_divergence=self.safety.on_divergence,
            )

    def _compare_processes(self, phase: str, *, before: int) -> None:
        """Records a decision if a phase resumes with another number of processes."""
        now = processes.count()
        if now != before:
            self.decide(
                f"Phase {phase!r} goes on with {now} {'process' if now == 1 else 'processes'} instead of {before}",
                "weights, optimizers, schedule, figures, candidates and the place in the data are kept; each batch is "
                "divided in other shares, so that sums have another order, batch norms see other shares, and what a "
                "process draws for itself differs: the result is not that of one run left alone bit for bit",
                processes=now,
                processes_before=before,
            )

    def decide(self, what: str, why: str, *, is_aloud: bool = False, **details: Any) -> None:
        """Records a decision; `is_aloud` also prints it, for decisions that nobody asked for."""
        self.journal.record("decision", what=what, why=why, **details)
        log.log(logging.WARNING if is_aloud else logging.INFO, "%s: %s", what, why)

    def seconds(self, phase: str) -> float:
        """The duration of a phase when it last ran; NaN if it never did."""
        ends = [entry for entry in self.read_journal() if entry.get("phase") == phase and entry.get("status") == "end"]
        return float(ends[-1]["seconds"]) if ends else float("nan")

    def read_journal(self) -> list[dict[str, Any]]:
        """All records in the journal so far."""
        return read_journal(self.folder.file("journal.jsonl"))


def costs_in(folder: RunFolder, space: SearchSpace) -> Mapping[str, Cost]:
    """The costs, by kind, of the run in a folder."""
    measured = load_model(folder.file("latency.json"), None, space), known_file_size(folder)
    return with_kinds([each for each in measured if each is not None])


def record_start(run: Run) -> None:
    """Records the command that starts or resumes the run."""
    run.journal.record("start", command=" ".join(["transprune", *sys.argv[1:]]), version=__version__)


@contextmanager
def logging_to(run: Run) -> Iterator[None]:
    """Appends the log messages of the block to `run.log`."""
    with attach_run_log(run.folder.file("run.log")):
        yield
