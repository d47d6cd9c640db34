"""One optimizer step on a batch (mixed precision, accumulation, several processes), and schedules over the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from transprune.errors import OptionError
from transprune.kernels.feature_maps import SoundConvolutions
from transprune.kernels.normalisation import fast_norms, joint_norms
from transprune.options import (
    HINTS,
    DistillationOptions,
    Precision,
    Schedule,
    SearchOptions,
    StepOptions,
    TrainingOptions,
)
from transprune.runtime import UserFunction, processes
from transprune.runtime.structures import SampleAxes
from transprune.training.batches import Batch
from transprune.training.faults import Sentinel
from transprune.training.parts import Part

Recipe = TypeVar("Recipe", bound=TrainingOptions | SearchOptions)


def settled(options: Recipe, network: nn.Module) -> Recipe:
    """The options with the optimizer, the learning rate and the hints that they leave to the kind of network.

    Networks normed as transformers are (by LayerNorm or RMSNorm, also those of other libraries, rather than by batch
    norms) learn by AdamW, and so do parts of detectors and the like, whose losses are steep; all others by SGD. Those
    with batch norms learn from hints: without norms a step along hints is easily too long, and transformers were not
    seen to gain.
    """
    optimizer = options.optimizer or usual_optimizer(network)[0]
    usual = options.usual_rates.get(optimizer, options.usual_rates["sgd"])
    rate = usual if options.learning_rate is None else options.learning_rate
    found = replace(options, optimizer=optimizer, learning_rate=rate)
    if isinstance(found, DistillationOptions) and found.hints is None:
        tokens, batches = _norms(network)
        return replace(found, hints=HINTS if batches > tokens else 0.0)
    return found


def _norms(network: nn.Module) -> tuple[int, int]:
    """Norms of tokens and norms of batches, told apart by their classes."""
    names = [type(module).__name__ for module in network.modules()]
    return sum("LayerNorm" in name or "RMSNorm" in name for name in names), sum("BatchNorm" in name for name in names)


def usual_optimizer(network: nn.Module) -> tuple[str, str]:
    """The optimizer that suits a network, and why."""
    if isinstance(network, Part):
        return "adamw", "it learns by the losses of the whole that it is a part of, which may be steep"
    tokens, batches = _norms(network)
    counted = f"it has {tokens} layer or RMS norms and {batches} batch norms"
    if tokens > batches:
        return "adamw", f"{counted}, as transformers have"
    return "sgd", f"{counted}, so it is not taken for a transformer"


def optimizer_of(
    parameters: list[nn.Parameter], options: TrainingOptions | SearchOptions, make: MakeOptimizer | None = None
) -> torch.optim.Optimizer:
    """The optimizer of the weights.

    Args:
        parameters: The weights.
        options: Name the optimizer and its figures, and leave none of them open.
        make: Makes it instead, from the parameters and the peak learning rate.

    Raises:
        OptionError: The function that is named is missing or fails, or makes something else.
    """
    rate, decay = options.learning_rate, options.weight_decay
    assert rate is not None
    assert options.optimizer is not None
    if make is not None:
        if not callable(make):
            raise OptionError(
                f"cannot make an optimizer by {make!r}: expected a function of the parameters and the learning rate; "
                "by name it is an option: optimizer='adamw'"
            )
        found = make(parameters, rate)
        return _checked(found, f"{getattr(make, '__qualname__', type(make).__qualname__)}")
    if options.optimizer == "sgd":
        return sgd(parameters, rate, options.momentum, decay)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, betas=(options.momentum, 0.999), weight_decay=decay)
    function = UserFunction(name=options.optimizer, purpose="make the optimizer", error=OptionError)
    with function.imported() as maker, function.reported("calling it"):
        found = maker(parameters, lr=rate, weight_decay=decay)
    return _checked(found, options.optimizer)


def _checked(found: Any, name: str) -> torch.optim.Optimizer:
    if not isinstance(found, torch.optim.Optimizer):
        raise OptionError(
            f"cannot use the optimizer {name!r}: it is a {type(found).__name__}; expected a torch.optim.Optimizer"
        )
    return found


def sgd(parameters: Any, learning_rate: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum (none at momentum 0)."""
    return torch.optim.SGD(
        parameters, lr=learning_rate, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0
    )


MakeOptimizer = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
"""Makes an optimizer from parameters and the peak learning rate."""


class Learned(NamedTuple):
    """The result of one part of a batch."""

    loss: Tensor
    outputs: Any
    batch: Batch


class Update:
    """Makes the steps of an optimizer.

    The gradients are those of the mean loss over the batch of all processes. Running statistics are averaged over the
    processes too, so that all of them hold the same network after every step.

    Args:
        optimizer: The optimizer.
        network: The network; parameters that the optimizer does not hold get no gradient.
        options: Precision, accumulation and synchronised norms.
        device: Where the network computes.
        sentinel: Checks loss and gradients of every step.
        has_fast_norms: Whether batch norms are computed inside `fast_norms`.
        clip: Norm to which the gradient is shortened; None: never.
        axes: The axes of inputs that count samples; None: that of the batch.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        network: nn.Module,
        options: StepOptions,
        device: torch.device,
        sentinel: Sentinel,
        *,
        has_fast_norms: bool = False,
        clip: float | None = None,
        axes: SampleAxes | None = None,
    ) -> None:
        self.optimizer, self._network, self._options, self._sentinel = optimizer, network, options, sentinel
        self.has_fast_norms, self._clip, self._axes = has_fast_norms, clip, axes
        self._device = device
        self._learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        own = set(self._learning)
        self._is_all_that_learns = all(each in own for each in network.parameters() if each.requires_grad)
        self._scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "float16")
        # The scaler keeps its scale on the device of its first use. Use it first on the device of the parameters, or
        # unscaling would have to copy it there and wait.
        self._scaler.scale(torch.zeros((), device=self._learning[0].device))
        processes.align([*self._learning, *network.parameters(), *network.buffers()])

    def step(self, batch: Batch, forward: Callable[[Batch], tuple[Tensor, Any]]) -> Sequence[Learned]:
        """Makes one step.

        Args:
            batch: This process's share of the batch.
            forward: Returns mean loss and outputs for a part of the batch.

        Returns:
            The results of the parts; empty if the step was skipped.

        Raises:
            DivergenceError: A loss or a gradient is not finite.
        """
        batch = batch._replace(axes=self._axes)
        self._sentinel.remember()
        self.optimizer.zero_grad()
        samples = processes.total(batch.samples)
        learned = [self._backward(part, forward, samples) for part in parts_of(batch, self._count(batch))]
        loss = _mean(learned, samples)
        gradients = [parameter.grad for parameter in self._learning]
        self._share([loss, *(gradient for gradient in gradients if gradient is not None)])
        if self._scaler.is_enabled():
            self._scaler.unscale_(self.optimizer)
            gradients = []  # the scaler itself skips steps whose gradients overflow, and lowers the scale
        passes = self._sentinel.passes(loss, gradients, lambda: self._computed(batch, forward))
        if passes:
            if self._clip is not None:
                nn.utils.clip_grad_norm_(self._learning, self._clip)
            self._scaler.step(self.optimizer)
        self._scaler.update()
        return learned if passes else []

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer and of the gradient scaler."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        # Loaded tensors are contiguous. In another memory format than their parameters, they would be updated by other
        # kernels, and a resumed run would differ in the last bits.
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter).copy_(value)

    def _count(self, batch: Batch) -> int:
        """The number of parts of a batch; equal in all processes if norms are synchronised in every part."""
        count = self._options.accumulate
        if count > 1 and self._are_norms_joint:
            count = min(count, *processes.gathered(batch.samples))
        return count

    @property
    def _are_norms_joint(self) -> bool:
        return self._options.sync_norms and processes.count() > 1

    def _backward(self, part: Batch, forward: Callable[[Batch], tuple[Tensor, Any]], samples: int) -> Learned:
        with (
            SoundConvolutions(),
            fast_norms(enabled=self.has_fast_norms),
            joint_norms(enabled=self._are_norms_joint),
        ):
            loss, outputs = self._computed(part, forward)
            share = loss if part.samples == samples else loss * (part.samples / samples)
            # torch.utils.checkpoint repeats forwards inside the backward, where these contexts must still be active:
            # `Tensor.backward` leaves them, a backward from a gradient edge does not. Checkpointing also refuses
            # `inputs`, so they are passed only where the optimizer does not hold all trainable parameters.
            scaled = self._scaler.scale(share)
            inputs = None if self._is_all_that_learns else [each for each in self._learning if each.requires_grad]
            torch.autograd.backward(get_gradient_edge(scaled), torch.ones_like(scaled), inputs=inputs)
        return Learned(loss.detach(), outputs, part)

    def _computed(self, part: Batch, forward: Callable[[Batch], tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
        with autocast(self._options.precision, self._device):
            return forward(part)

    def _share(self, tensors: list[Tensor]) -> None:
        """Sums loss and gradients over all processes, and averages the running statistics."""
        if processes.count() == 1:
            return
        buffers = [buffer for buffer in self._network.buffers() if buffer.is_floating_point()]
        for buffer in buffers:
            buffer.div_(processes.count())
        processes.add_up([*tensors, *buffers])


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Runs convolutions and matrix products inside the block in the given precision."""
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


def parts_of(batch: Batch, count: int) -> list[Batch]:
    """Splits a batch into `count` parts, or into single samples if it has fewer.

    Raises:
        DataError: Something in it cannot be split.
    """
    samples = batch.samples
    count = min(count, samples)
    if count == 1:
        return [batch]
    places = [processes.share_of(samples, index, count) for index in range(count)]
    return [batch.part(place) for place in places]


def _mean(learned: Sequence[Learned], samples: int) -> Tensor:
    """This process's contribution to the mean loss over the whole batch."""
    if len(learned) == 1 and learned[0].batch.samples == samples:
        return learned[0].loss
    return torch.stack([part.loss * (part.batch.samples / samples) for part in learned]).sum()


def anneal(start: float, end: float, progress: float, schedule: Schedule = "linear") -> float:
    """The value at `progress` in [0, 1] on the way from `start` to `end`.

    Example:
        >>> anneal(10.0, 0.0, 0.25), anneal(2.0, 0.0, 0.5, "cosine")
        (7.5, 1.0)
    """
    if schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return start + (end - start) * progress


def warm_up_then_cosine(progress: float, warm_up: float) -> float:
    """Learning rate as a share of its peak: linear from 0 during the first `warm_up` of a run, then cosine to 0.

    Deviation: in the authors' code, the cosine ends early by the length of the warm-up, and the last epochs train at
    rate zero; here the cosine ends with the run.

    Args:
        progress: Share of the run completed, in [0, 1].
        warm_up: Share of the run that warms up, in [0, 1).
    """
    if progress < warm_up:
        return progress / warm_up
    return anneal(1.0, 0.0, (progress - warm_up) / (1 - warm_up), "cosine")


def cosine_schedule(
    optimizer: torch.optim.Optimizer, steps_an_epoch: int, epochs: int, warm_up_epochs: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """A learning rate for every step: a linear warm-up, then half a cosine that reaches zero one step after the end."""
    end = steps_an_epoch * epochs + 1
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_up_then_cosine(min(1.0, (step + 1) / end), warm_up_epochs * steps_an_epoch / end)
    )
