"""The loop of epochs and steps; it can stop after any step and resume to the same result."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from transprune.costs import IN_BYTES, in_bytes
from transprune.on_demand import check_fields
from transprune.options import Policy
from transprune.runtime import Checkpoints, choose_device, phase_seed, processes, random_states, set_random_states
from transprune.runtime.terminal import milliseconds, phase_progress
from transprune.training.batches import Batch, Feed
from transprune.training.evaluation import Meter
from transprune.training.faults import Sentinel, explained
from transprune.training.tasks import Task
from transprune.training.update import MakeOptimizer

log = logging.getLogger("transprune.run")

LONG = 100
"""Epochs from which on it is said beforehand how many there are."""

EpochCallback = Callable[[Mapping[str, Any]], None]
"""Called after every epoch with its figures; see `docs/journal.md` for their names."""
StepCallback = Callable[["Loop"], None]
"""Called after every step with the loop: see its `epoch`, `steps`, `steps_an_epoch` and `meter`."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a loop runs: seed, device, callbacks and checkpoints, for `train`, `search` and `distill` alike.

    Example:
        >>> setup = Setup(seed=3, on_epoch=lambda figures: print(figures["epoch"], figures["loss"]))
        >>> teacher = transprune.train(model, data, setup=setup)  # doctest: +SKIP
    """

    seed: int = 0
    """Decides the order of samples, their augmentation, and which candidates a search draws."""
    device: torch.device | str | None = None
    """Where to compute: a device or its name, such as `cuda:1`, or `auto`; None: where the model is."""
    phase: str = ""
    """The name of the phase in figures and checkpoints; empty: `teacher` for `train`, `search`, or `distill`."""
    progress: bool = True
    """Whether progress is shown on standard error: a bar on a terminal and in a notebook, else a line an epoch."""
    on_epoch: EpochCallback | None = None
    """Called after every epoch."""
    on_step: StepCallback | None = None
    """Called after every step."""
    checkpoints: Checkpoints | None = None
    """Where to save checkpoints, and to resume from if there is one; None: nowhere."""
    optimizer: MakeOptimizer | None = None
    """Makes the optimizer of the weights from them and the peak learning rate; None: the options name it."""
    on_divergence: Policy = "stop"
    """What to do about a loss or gradient that is not finite: `stop`, or `skip` the step."""

    def __post_init__(self) -> None:
        check_fields(self)

    def named(self, phase: str, model: nn.Module) -> Setup:
        """This setup with defaults for the name of its phase, and for the device."""
        return replace(self.placed(model), phase=self.phase or phase)

    def placed(self, model: nn.Module) -> Setup:
        """This setup with the device that it means for a model."""
        return replace(self, device=choose_device(self.device, model))


class Loop(ABC):
    """A phase of training in progress; a checkpoint of it is its progress and the state of its `parts`.

    Args:
        epochs: Passes over the batches.
        batches: The batches to learn from.
        task: Loss and metrics.
        network: The network in training.
        setup: Phase, seed, device, callbacks and checkpoints.
    """

    def __init__(self, *, epochs: int, batches: Feed, task: Task, network: nn.Module, setup: Setup) -> None:
        self.setup, self.epochs, self.task = setup, epochs, task
        self.phase, self.device = setup.phase, choose_device(setup.device, network)
        self.epoch = 1
        """The current epoch, from 1; between epochs, the next one."""
        self.steps = 0
        """Steps done in the current epoch."""
        self.steps_an_epoch = len(batches)
        self.meter = Meter(task, training=True)
        """Loss and metrics of the current epoch so far."""
        self.history: list[Mapping[str, Any]] = []
        """Figures of the epochs before."""
        self.sentinel = Sentinel(self.place, network, self.device, setup.on_divergence)
        self._batches = batches
        self._rate = 0.0
        self._seconds = 0.0
        self._total_seconds = 0.0

    @property
    def batches(self) -> Feed:
        """The batches to learn from."""
        return self._batches

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """Everything that a step changes, by name: objects with `state_dict` and `load_state_dict`."""

    @abstractmethod
    def step(self, batch: Batch) -> None:
        """Learns from a batch."""

    @abstractmethod
    def learning_rate(self) -> float:
        """The learning rate of the next step."""

    @abstractmethod
    def end_of_epoch(self) -> dict[str, Any]:
        """Figures of the epoch in addition to loss and metrics on the training batches."""

    def place(self) -> str:
        """Describes the current step, for messages."""
        return f"phase {self.phase!r}, epoch {self.epoch}, step {self.steps + 1}"

    def run(self) -> None:
        """Runs all epochs, from the last checkpoint if there is one.

        Raises:
            StoppedError: A signal or the time limit ended it; a checkpoint is written.
            DivergenceError: The loss or a gradient is not finite.
            ResourceError: Memory ran out, or a data worker died.
        """
        if processes.rank() > 0:  # random draws in a forward, such as dropout, must differ between processes
            torch.manual_seed(phase_seed(torch.initial_seed(), f"process {processes.rank()}"))
        setup, checkpoints = self.setup, self.setup.checkpoints
        state = checkpoints.find(self.phase) if checkpoints is not None else None
        if state is not None:
            self.load_state_dict(state)

        def after_step() -> None:
            if progress is not None:
                progress.step(
                    self.epoch, self.steps, self.steps_an_epoch, lambda: described(self.meter.evaluation().headline())
                )
            if setup.on_step is not None:
                setup.on_step(self)
            keep()

        def keep() -> None:
            if checkpoints is not None:
                checkpoints.after_step(self.phase, self.state_dict)

        self._say_if_long()
        with (
            checkpoints.listening() if checkpoints is not None else nullcontext(),
            phase_progress(self.phase, self.epochs, self.epoch - 1) if setup.progress else nullcontext() as progress,
        ):
            while self.epoch <= self.epochs:
                figures = self.run_epoch(after_step)
                if setup.on_epoch is not None:
                    setup.on_epoch(figures)
                if progress is not None:
                    progress.epoch(figures["epoch"], described(figures), figures["seconds"], brief=brief(figures))
                keep()

    def _say_if_long(self) -> None:
        if self.epochs >= LONG and self.epoch == 1 and self.steps == 0 and processes.is_first():
            log.warning(
                "%s: %d epochs of %d steps lie ahead; the preset medium makes do with a tenth of the paper's epochs",
                *(self.phase, self.epochs, self.steps_an_epoch),
            )

    def run_epoch(self, after_step: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Runs one epoch, or the rest of it after `load_state_dict`.

        Args:
            after_step: Called after every step.

        Returns:
            The figures of the epoch.
        """
        begun = time.perf_counter()
        earlier, total = self._seconds, self._total_seconds
        if self.steps == 0:
            self.meter, self._rate = Meter(self.task, training=True), self.learning_rate()
        for batch in self._batches:
            with explained(self, batch):
                self.step(batch)
            self.steps += 1
            self._seconds = earlier + time.perf_counter() - begun
            self._total_seconds = total + self._seconds - earlier
            after_step()
        figures = self._figures()
        seconds = time.perf_counter() - begun
        figures["seconds"] = earlier + seconds
        self._total_seconds, self._seconds = total + seconds, 0.0
        self.history.append(figures)
        self.epoch, self.steps = self.epoch + 1, 0
        return figures

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to resume after this step."""
        self.sentinel.settle()  # never save a state that a bad step has spoilt
        return {
            "epoch": self.epoch,
            "steps": self.steps,
            "learning_rate": self._rate,
            "seconds": self._seconds,
            "total_seconds": self._total_seconds,
            "history": list(self.history),
            "parts": {name: part.state_dict() for name, part in self._all_parts().items()},
            "processes": processes.gathered({"meter": self.meter.state_dict(), "random": random_states()}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned, even with another number of processes.

        Additional processes keep the random state that `run` seeded.
        """
        self.epoch, self.steps, self._rate = state["epoch"], state["steps"], state["learning_rate"]
        self._seconds, self._total_seconds = state["seconds"], state["total_seconds"]
        self.history = list(state["history"])
        kept = state["processes"]
        self.meter = Meter(self.task, training=True)
        for own in kept[processes.rank() :: processes.count()]:
            self.meter.load_state_dict(own["meter"], self.device)
        for name, part in self._all_parts().items():
            part.load_state_dict(state["parts"][name])
        if processes.rank() < len(kept):
            set_random_states(kept[processes.rank()]["random"])

    def _figures(self) -> dict[str, Any]:
        self.sentinel.settle()
        with explained(self):
            ended = self.end_of_epoch()
        return {
            "phase": self.phase,
            "epoch": self.epoch,
            "epochs": self.epochs,
            **self.meter.evaluation().headline(),
            "learning_rate": self._rate,
            **self.sentinel.figures(),
            **ended,
        }

    def _all_parts(self) -> dict[str, Any]:
        return {"batches": self._batches, "sentinel": self.sentinel, **self.parts()}


_SAID: Mapping[str, Callable[[float], str]] = {"latency": milliseconds, **dict.fromkeys(IN_BYTES, in_bytes)}
"""How the figures of some kinds of cost are said."""


def described(figures: Mapping[str, Any]) -> str:
    """The figures of an epoch, or of a part of one, as one line."""
    parts = [f"loss {figures['loss']:.4g}", *_measured(figures)]
    for kind, value in _costs(figures).items():
        target = figures[f"target_{kind}"]
        said = f"{kind} {_SAID[kind](value)}," if kind in _SAID else kind
        parts.append(f"{said} {value / target:.2f} × budget (expected {figures[f'expected_{kind}'] / target:.2f})")
    if "entropy" in figures:
        parts.append(f"entropy {figures['entropy']:.2f}")
    return "  ".join(parts)


def brief(figures: Mapping[str, Any]) -> str:
    """The figures of an epoch in few enough words for a line of 80 columns: `described` has more in a search alone.

    There it is the metric on samples that the weights did not learn from, and what of each budget is spent.
    """
    costs = _costs(figures)
    shares = [f"{kind} {value / figures[f'target_{kind}']:.2f} × budget" for kind, value in costs.items()]
    measured = [f"loss {figures['loss']:.4g}", *_measured(figures)]
    return "  ".join([*(measured[-1:] if costs else measured), *shares])


def _costs(figures: Mapping[str, Any]) -> dict[str, float]:
    """By kind, what the most probable architecture costs; empty but in a search."""
    return {key.removeprefix("actual_"): value for key, value in figures.items() if key.startswith("actual_")}


def _measured(figures: Mapping[str, Any]) -> list[str]:
    """The main metric on what is learned from and what is measured on; empty if the task has none."""
    names = list(figures)
    main = names[names.index("loss") + 1 : names.index("loss") + 2]
    return [
        _shown(name, label, figures[key])
        for name in main
        if name != "learning_rate"
        for key, label in (
            (name, "top-1" if name == "top1" else name),
            (f"test_{name}", "test"),
            (f"validation_{name}", "validation"),
        )
        if key in figures
    ]


def _shown(metric: str, label: str, value: float) -> str:
    return f"{label} {value:.1f} %" if metric == "top1" else f"{label} {value:.4g}"
