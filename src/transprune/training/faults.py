"""Faults during training: memory, unsuitable data, dead data workers, and loss or gradients that are not finite.

Each error names phase, epoch and step, and says what to change.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from transprune.errors import DataError, DivergenceError, OptionError, ResourceError, TranspruneError, first_line
from transprune.options import Policy
from transprune.runtime.structures import called, on_device, outline, tensors_in
from transprune.runtime.user_code import own_place

if TYPE_CHECKING:
    from transprune.training.batches import Batch
    from transprune.training.loop import Loop

MOST_SKIPPED = 10
"""Steps in a row that may be skipped."""

log = logging.getLogger("transprune.run")

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "DefaultCPUAllocator")
"""Messages of torch errors that have no type of their own."""

_OTHER_TYPES = ("should be the same", "expected scalar type", "expected target dtype", "must have the same dtype")
"""Messages of torch errors about mismatched dtypes."""

_OTHER_SHAPES = (
    "multi-target not supported",
    "0D or 1D target",
    "target with class probabilities",
    "to match target batch_size",
    "must match the size of tensor",
)
"""Parts of torch's messages about targets of another shape."""


@contextmanager
def explained(loop: Loop, batch: Batch | None = None) -> Iterator[None]:
    """Turns torch errors about memory or data into ours; others pass unchanged.

    Args:
        loop: The phase in progress.
        batch: The batch that it learns from; None while it evaluates.

    Raises:
        ResourceError: Memory ran out, or a data worker died.
        DataError: A label, a dtype or the number of samples does not suit the network, or its forward fails.
    """
    try:
        yield
    except TranspruneError:
        raise
    except Exception as error:  # a user's forward or loss may raise anything
        place = loop.place() if batch else f"phase {loop.phase!r}, the figures of epoch {loop.epoch}"
        shape = f"a batch of {outline(plain_inputs(batch))}" if batch else "a batch of the same size"
        if _is_memory(error):
            raise ResourceError(
                f"cannot go on with {place}: memory ran out for {shape} on {loop.device}; lower the batch size "
                f"(--{loop.phase}.batch-size, or that of your own loader), or the size of the images"
            ) from error
        died = worker_died(f"the data of {place}", error)  # may be reported in the middle of a step
        if died is not None:
            raise died from error
        problem = data_problem(error, batch) if batch else None
        if problem is None:
            raise
        raise DataError(f"cannot learn from the batch of {place}: {problem}") from error


def plain_inputs(batch: Batch) -> Any:
    """The inputs of a batch; a single input without its tuple."""
    is_one = isinstance(batch.inputs, tuple) and len(batch.inputs) == 1
    return batch.inputs[0] if is_one else batch.inputs


def _is_memory(error: Exception) -> bool:
    is_known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_known or any(words in str(error) for words in _NO_MEMORY)


def data_problem(error: Exception, batch: Batch) -> str | None:
    """Explains an error about the data; None if the error is about something else."""
    return (
        _form_problem(error, batch)
        or _values_problem(str(error))
        or _forward_problem(error)
        or _gradient_problem(error)
        or _task_problem(error, batch)
    )


def _is_of_forward(error: Exception) -> bool:
    """Whether an error was raised while a network ran, rather than a loss."""
    return any(frame.name == called.__name__ and frame.filename == called.__code__.co_filename for frame in _way(error))


def _way(error: Exception) -> traceback.StackSummary:
    return traceback.extract_tb(error.__traceback__)


def _forward_problem(error: Exception) -> str | None:
    """Explains any other error of a network."""
    if not _is_of_forward(error):
        return None
    place = own_place(error)
    return (
        f"the network fails on it{f' at {place}' if place else ''} ({first_line(error)}); expected as many samples, of "
        "such sizes and values, as its forward takes"
    )


def _gradient_problem(error: Exception) -> str | None:
    """Explains an error of torch's in the backward."""
    if not any(frame.name == "_engine_run_backward" for frame in _way(error)):
        return None
    return (
        f"the gradients of its loss cannot be computed ({first_line(error)}); expected a forward and a loss that write "
        "over no result that a gradient needs (`x = x + y` rather than `x += y`, and no inplace=True behind it)"
    )


def _task_problem(error: Exception, batch: Batch) -> str | None:
    """Explains any other error of a function of the task; None where no code of a user's or of the task's ran."""
    place = own_place(error)
    if place is None and not any(frame.name in ("loss_of", "distillation_loss_of") for frame in _way(error)):
        return None
    return (
        f"a loss or metric of the task fails on the outputs for it{f' at {place}' if place else ''} "
        f"({first_line(error)}); expected functions of what the network returns and of the targets, "
        f"{outline(batch.targets)}"
    )


def _form_problem(error: Exception, batch: Batch) -> str | None:
    """Explains an error about the parts of a batch and the form of its targets."""
    text = str(error)
    if isinstance(error, TypeError) and "positional argument" in text:
        return (
            f"the network takes other inputs ({text}): the last part of a batch is the targets, and all before it are "
            "inputs; for batches of another form give the task a split, such as Task(split=lambda batch: (batch[0], "
            "batch[1]), ...)"
        )
    if isinstance(error, TypeError | AttributeError) and next(tensors_in(batch.targets), None) is None:
        return (
            f"its targets are {outline(batch.targets)}, and a loss computes with tensors; number the classes in the "
            "data set, and give labels of torch.int64 [batch]"
        )
    if any(words in text for words in _OTHER_SHAPES) and not _is_of_forward(error):
        return (
            f"its targets {outline(batch.targets)} do not suit the outputs ({text.strip().splitlines()[0]}); a "
            "classification expects labels of torch.int64 [batch]: squeeze an axis of length 1 away "
            "(labels.squeeze(1)), and take argmax(1) of one-hot rows"
        )
    return None


def _values_problem(text: str) -> str | None:
    """Explains an error about the number of samples, the range of labels and the types of numbers."""
    if "Expected more than 1 value per channel" in text:
        return (
            "it has one sample, and batch norm cannot learn from one; leave incomplete batches out (drop_last=True of "
            "a DataLoader), or choose another batch size"
        )
    if "is out of bounds" in text and "Target" in text:
        return f"a label is out of range ({text.strip().rstrip('.')}); expected 0 to the number of classes minus one"
    if any(words in text for words in _OTHER_TYPES):
        return (
            f"its types do not suit the network or the loss ({text.strip().splitlines()[0].rstrip('.')}); expected "
            "inputs of the type of the weights, usually torch.float32, and labels of torch.int64"
        )
    return None


def worker_died(what: str, error: Exception) -> ResourceError | None:
    """The error to raise if a process that loads data died; None if `error` is about something else."""
    if "DataLoader worker" not in str(error) or "in DataLoader worker process" in str(error):
        return None  # the second is an error of the data set, raised in such a process
    return ResourceError(
        f"cannot load {what}: a process that loads data died ({str(error).splitlines()[0]}); the system may have "
        "ended it because memory ran out: lower the batch size or the number of processes that load data"
    )


def check_first_loss(loss: Tensor, phase: str) -> None:
    """Checks the loss of the first batch, before any step.

    Raises:
        OptionError: It does not depend on any trainable weight.
        DivergenceError: It is not finite.
    """
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise OptionError(
            f"cannot begin phase {phase!r}: the loss does not depend on any weight that may learn; expected weights "
            "that may (requires_grad), and a loss computed from the outputs with torch alone, without detach, item "
            "or numpy"
        )
    if not math.isfinite(loss.item()):
        raise DivergenceError(
            f"cannot begin phase {phase!r}: the loss of the first batch is {loss.item()}; look for numbers that are "
            "not finite in the inputs, the targets and the weights"
        )


def warn_of_one_class(targets: object, phase: str) -> None:
    """Says that all labels of the first batch are equal, of which nothing can be learned."""
    if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.is_floating_point() or len(targets) < _HARDLY:
        return
    if bool((targets == targets[0]).all()):
        log.warning(
            "phase %r: all %d labels of the first batch are %d, so there is nothing to tell apart; the data need "
            "several classes, in random order (DataLoader(…, shuffle=True))",
            phase,
            len(targets),
            int(targets[0]),
        )


_HARDLY = 16
"""Labels that are hardly equal by chance."""


class Sentinel:
    """Checks loss and gradients of every step before the step changes a weight.

    On the CPU, and with the policy `skip`, a step is checked at once. With `stop` on CUDA, the host would have to wait
    for the device in every step, so the check of a step is read during the next one, and `settle` reads it before a
    checkpoint is written.

    Args:
        place: Describes the current step, for messages.
        network: The network in training.
        device: Where it computes.
        policy: What to do about a loss or gradient that is not finite.
    """

    def __init__(self, place: Callable[[], str], network: nn.Module, device: torch.device, policy: Policy) -> None:
        self._place, self._network, self._policy = place, network, policy
        self._is_late = device.type != "cpu" and policy == "stop"
        self._pending: tuple[_OnItsWay, Callable[[], str]] | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._in_row = 0
        self.skipped = 0
        """Steps skipped so far."""

    def remember(self) -> None:
        """Keeps the buffers before a step, so that skipping it also undoes its update of the running statistics."""
        if self._policy == "skip":
            self._buffers = [(buffer, buffer.clone()) for buffer in self._network.buffers()]

    def passes(self, loss: Tensor, gradients: Sequence[Tensor | None], forward: Callable[[], Any]) -> bool:
        """Whether the optimizer may step; called after the backward.

        Args:
            loss: The loss of the step.
            gradients: The gradients that the step would use.
            forward: Repeats the forward, to find the first layer whose output is not finite.

        Raises:
            DivergenceError: The policy is `stop`, or too many steps in a row were skipped.
        """
        self.settle()
        largest = on_device(_largest(gradients), loss.device)
        is_fine = torch.stack([loss.detach(), *largest]).isfinite().all()

        def reason() -> str:
            return f"the loss is {loss.item():g}; {_first_bad(self._network, forward)}"

        if self._is_late:
            self._pending = _OnItsWay(is_fine), reason
            return True
        if is_fine:
            self._in_row = 0
            return True
        self._skip(reason())
        return False

    def settle(self) -> None:
        """Waits for the check of the last step, if it is still pending.

        Raises:
            DivergenceError: Its loss or gradient was not finite.
        """
        if self._pending is not None:
            is_fine, reason = self._pending
            self._pending = None
            if not is_fine.arrived():
                self._stop(reason())

    def figures(self) -> dict[str, int]:
        """The number of skipped steps, for the journal; empty if there are none."""
        return {"skipped": self.skipped} if self.skipped else {}

    def state_dict(self) -> dict[str, int]:
        """The counts of skipped steps."""
        return {"skipped": self.skipped, "in_row": self._in_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restores what `state_dict` returned."""
        self.skipped, self._in_row = state["skipped"], state["in_row"]

    def _skip(self, reason: str) -> None:
        if self._policy == "stop":
            self._stop(reason)
        self.skipped, self._in_row = self.skipped + 1, self._in_row + 1
        if self._in_row > MOST_SKIPPED:
            self._stop(f"{reason}, and {MOST_SKIPPED} steps before it were left out")
        log.warning("left out %s: %s", self._place(), reason)
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)

    def _stop(self, reason: str) -> None:
        skip = "" if self._policy == "skip" else " or leave such steps out (on_divergence=skip)"
        raise DivergenceError(
            f"cannot go on with {self._place()}: {reason}; lower the learning rate{skip}; the last checkpoint, if one "
            "was written, is from before it"
        )


class _OnItsWay:
    """A flag on a CUDA device, copied to the host without waiting.

    Args:
        flag: A bool scalar.
    """

    def __init__(self, flag: Tensor) -> None:
        self._flag = torch.empty((), dtype=torch.bool, pin_memory=True)
        self._flag.copy_(flag, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(flag.device))

    def arrived(self) -> bool:
        """The flag; waits only for work that the device was given before it."""
        self._event.synchronize()
        return bool(self._flag)


def _largest(gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """The largest absolute value of each gradient; NaN if one of its values is."""
    found = [gradient for gradient in gradients if gradient is not None and gradient.numel()]
    return list(torch._foreach_norm(found, float("inf"))) if found else []


@torch.no_grad()
def _first_bad(network: nn.Module, forward: Callable[[], Any]) -> str:
    """Names the first weights, layer output or gradient that is not finite."""
    named = list(network.named_parameters())
    for name, parameter in named:
        if not parameter.isfinite().all():
            return f"the weights {name!r} are not finite"
    watch = _Watch(named)
    with watch:
        forward()
    if watch.found is not None:
        return f"the output of the layer {watch.found!r} is the first that is not finite"
    for name, parameter in reversed(named):  # the backward runs from the last layer to the first
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name!r} is the first that is not finite"
    return "all weights, outputs and gradients of the network are finite, so look at the loss itself"


class _Watch(TorchDispatchMode):
    """Records the first operator that reads a parameter and whose output is not finite, in any module or graph."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        self._names = {parameter.untyped_storage().data_ptr(): name for name, parameter in named}
        self._casts: list[Any] = []
        self.found: str | None = None

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = operator(*args, **(kwargs or {}))
        used = [self._names.get(tensor.untyped_storage().data_ptr()) for tensor in tensors_in(args)]
        names = [name for name in used if name is not None]
        if names and operator is torch.ops.aten._to_copy.default:  # under autocast, layers read casts of their weights
            self._casts.append(outputs)
            self._names[outputs.untyped_storage().data_ptr()] = names[0]
        if self.found is None and names:
            floats = [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]
            if not all(tensor.isfinite().all() for tensor in floats):
                self.found = names[0].rpartition(".")[0] or names[0]
        return outputs
