"""Training one network: the only loop for teachers, students and baselines."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transprune.errors import DivergenceError, OptionError
from transprune.numerics.annealing import warm_up_then_cosine
from transprune.runtime import seeded
from transprune.training.evaluation import Meter, evaluate_batches, evaluation_mode
from transprune.training.feeding import Batch, Data, feed
from transprune.training.tasks import Task, classification

EpochCallback = Callable[[Mapping[str, Any]], None]
"""Called after every epoch with its figures; see `docs/journal.md` for their names."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How the weights of a network are trained. The defaults are the paper's for CIFAR."""

    epochs: int = 300
    """Passes over the training data."""
    batch_size: int = 256
    """Images a step; `LoaderData` brings its own."""
    learning_rate: float = 0.1
    """Peak learning rate of SGD; it follows half a cosine to zero."""
    warm_up_epochs: float = 5
    """Epochs in which the learning rate rises linearly from zero."""
    momentum: float = 0.9
    """Nesterov momentum."""
    weight_decay: float = 5e-4
    """L2 penalty on all weights."""
    evaluate_every: int = 1
    """Epochs between evaluations on the test data; the last epoch is always evaluated."""

    def __post_init__(self) -> None:
        at_least("epochs", self.epochs, 1)
        at_least("batch_size", self.batch_size, 2)
        at_least("evaluate_every", self.evaluate_every, 1)
        at_least("learning_rate", self.learning_rate, 0)
        if not 0 <= self.warm_up_epochs < self.epochs:
            raise OptionError(
                f"cannot train with warm_up_epochs={self.warm_up_epochs}: expected at least 0 and fewer than "
                f"the {self.epochs} epochs"
            )


@dataclass(frozen=True, kw_only=True)
class DistillationOptions(TrainingOptions):
    """How a student is trained with a teacher. The defaults are the paper's."""

    weight: float = 0.9
    """λ: share of the teacher in the loss; 0 trains on the targets alone. A task's own distillation loss ignores it."""
    distillation_temperature: float = 4.0
    """T: how much logits are softened; outputs that are no logits ignore it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.weight <= 1 or not self.distillation_temperature > 0:
            raise OptionError(
                f"cannot distill with weight={self.weight} and distillation_temperature="
                f"{self.distillation_temperature}; expected a weight in [0, 1] and a temperature above 0"
            )


def at_least(name: str, value: float, least: float) -> None:
    """Checks an option.

    Raises:
        OptionError: The value is below `least` or not a number.
    """
    if not value >= least:
        raise OptionError(f"cannot use {name}={value}: expected at least {least}")


def train(
    network: nn.Module,
    data: Data,
    options: TrainingOptions | None = None,
    *,
    task: Task | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_epoch: EpochCallback | None = None,
    phase: str = "teacher",
) -> nn.Module:
    """Trains a copy of a network on the targets alone.

    Args:
        network: Where training starts; untouched.
        data: Samples to learn from, and to test on.
        options: How to train.
        task: Loss, metrics, and how a batch is taken apart; None: `classification()`.
        seed: Decides the order of the samples and their augmentation.
        device: Where to train.
        on_epoch: Called after every epoch.
        phase: What the epochs are called.

    Raises:
        DataError: The data cannot be read, or a batch not be taken apart.
        OptionError: The task's loss or a metric gives something else than expected.
        DivergenceError: The loss is not finite.
    """
    options, task = options or TrainingOptions(), task or classification()
    with seeded(seed, phase):
        return _fit(network, None, data, options, task, seed=seed, device=device, on_epoch=on_epoch, phase=phase)


def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    options: DistillationOptions | None = None,
    *,
    task: Task | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_epoch: EpochCallback | None = None,
    phase: str = "distill",
) -> nn.Module:
    """Trains a copy of a student on the targets and on a teacher's outputs (`transprune.numerics.distillation`).

    Args:
        student: Where training starts; untouched.
        teacher: The trained network to learn from, in evaluation mode; untouched.
        data: Samples to learn from, and to test on.
        options: How to train.
        task: Loss, metrics, and how a batch is taken apart; None: `classification()`.
        seed: Decides the order of the samples and their augmentation.
        device: Where to train.
        on_epoch: Called after every epoch.
        phase: What the epochs are called.

    Raises:
        DataError: The data cannot be read, or a batch not be taken apart.
        OptionError: The task's loss or a metric gives something else than expected.
        DivergenceError: The loss is not finite.
    """
    options, task = options or DistillationOptions(), task or classification()
    with seeded(seed, phase):
        return _fit(student, teacher, data, options, task, seed=seed, device=device, on_epoch=on_epoch, phase=phase)


def _fit(
    start: nn.Module,
    teacher: nn.Module | None,
    data: Data,
    options: TrainingOptions,
    task: Task,
    *,
    seed: int,
    device: torch.device | str,
    on_epoch: EpochCallback | None,
    phase: str,
) -> nn.Module:
    network = copy.deepcopy(start).to(device)
    loss_function = _loss_function(teacher, options, task, device)
    place = torch.device(device)
    train_batches = feed(data, "train", task, batch_size=options.batch_size, seed=seed, device=place)
    test_batches = feed(data, "test", task, batch_size=options.batch_size, seed=seed, device=place)
    optimizer = sgd(network.parameters(), options.learning_rate, options.momentum, options.weight_decay)
    schedule = cosine_schedule(optimizer, len(train_batches), options.epochs, options.warm_up_epochs)
    for epoch in range(1, options.epochs + 1):
        started = time.perf_counter()
        network.train()
        meter = Meter(task)
        rate = optimizer.param_groups[0]["lr"]
        for batch in train_batches:
            outputs = network(*batch.inputs)
            loss = loss_function(outputs, batch)
            if schedule.last_epoch == 0:
                check_first_loss(loss, phase)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            meter.add(loss, outputs, batch)
        trained = meter.evaluation()
        check_finite(trained.loss, phase, epoch)
        figures: dict[str, Any] = {"phase": phase, "epoch": epoch, "epochs": options.epochs}
        figures |= {**trained.headline(), "learning_rate": rate}
        if epoch % options.evaluate_every == 0 or epoch == options.epochs:
            with evaluation_mode(network):
                tested = evaluate_batches(network, test_batches, task)
            figures |= {f"test_{name}": value for name, value in tested.to_json().items()}
        figures["seconds"] = time.perf_counter() - started
        if on_epoch is not None:
            on_epoch(figures)
    return network.eval()


def _loss_function(
    teacher: nn.Module | None, options: TrainingOptions, task: Task, device: torch.device | str
) -> Callable[[Any, Batch], Tensor]:
    """The loss of the outputs for a batch."""
    if teacher is None or not isinstance(options, DistillationOptions) or task.ignores_teacher(options.weight):
        return lambda outputs, batch: task.loss_of(outputs, batch.targets)
    guide = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
    weight, temperature = options.weight, options.distillation_temperature

    def loss(outputs: Any, batch: Batch) -> Tensor:
        guidance = guide(*batch.inputs)
        return task.distillation_loss_of(outputs, guidance, batch.targets, weight=weight, temperature=temperature)

    return loss


def sgd(parameters: Any, learning_rate: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum (none at momentum 0)."""
    return torch.optim.SGD(
        parameters, lr=learning_rate, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0
    )


def cosine_schedule(
    optimizer: torch.optim.Optimizer, steps_an_epoch: int, epochs: int, warm_up_epochs: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rates step by step: a linear warm-up, then half a cosine to zero."""
    steps = steps_an_epoch * epochs
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_up_then_cosine(min(1.0, (step + 1) / steps), warm_up_epochs / epochs)
    )


def check_first_loss(loss: Tensor, phase: str) -> None:
    """Checks the loss of the first batch, before any step.

    Raises:
        OptionError: No weight can learn from it.
        DivergenceError: It is not a finite number.
    """
    if not loss.requires_grad:
        raise OptionError(
            f"cannot begin phase {phase!r}: the loss does not depend on any weight that may learn; expected one that "
            "is computed from the outputs with torch alone, without detach, item or numpy"
        )
    if not math.isfinite(loss.item()):
        raise DivergenceError(
            f"cannot begin phase {phase!r}: the loss of the first batch is {loss.item()}; look for numbers that are "
            "not finite in the inputs, the targets and the weights"
        )


def check_finite(loss: float, phase: str, epoch: int) -> None:
    """Checks the mean loss of an epoch.

    Raises:
        DivergenceError: It is not a finite number.
    """
    if not math.isfinite(loss):
        raise DivergenceError(
            f"cannot go on with phase {phase!r}: the loss of epoch {epoch} is {loss}; "
            f"lower the learning rate or lengthen the warm-up"
        )


@torch.no_grad()
def estimate_statistics(
    network: nn.Module, data: Data, *, task: Task | None = None, batch_size: int = 256, seed: int = 0
) -> nn.Module:
    """A copy of a network whose batch norms have the statistics of one pass over the training data.

    Wanted after weights come from a supernet, which keeps no running statistics.

    Args:
        network: The network; untouched.
        data: Samples to take the statistics of.
        task: Says how a batch is taken apart; None: `classification()`.
        batch_size: Images a forward, for `ImageData`.
        seed: Decides the order of the samples and their augmentation.
    """
    network = copy.deepcopy(network)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    device = next(network.parameters()).device
    network.train()
    with seeded(seed, "statistics"):
        for batch in feed(data, "train", task or classification(), batch_size=batch_size, seed=seed, device=device):
            network(*batch.inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()
