"""What goes wrong while a network learns: memory, data, processes that load it, and numbers that are not finite.

Each is said with phase, epoch and step, and with what to change.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from transprune.errors import DataError, DivergenceError, OptionError, ResourceError, TranspruneError
from transprune.options import Policy
from transprune.runtime.structures import on_device, outline, tensors_in

if TYPE_CHECKING:
    from transprune.training.batches import Batch
    from transprune.training.loop import Loop

MOST_SKIPPED = 10
"""Steps that may be left out one after the other."""

log = logging.getLogger("transprune.run")

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "DefaultCPUAllocator")
"""What torch says in errors of no type of their own."""

_OTHER_TYPES = ("should be the same", "expected scalar type", "expected target dtype", "must have the same dtype")
"""What torch says of types that do not go together."""


@contextmanager
def explained(loop: Loop, batch: Batch | None = None) -> Iterator[None]:
    """Turns errors of torch that speak of memory or of the data into ours; others pass as they are.

    Args:
        loop: The phase that is running.
        batch: What it learns from; None: it is measuring.

    Raises:
        ResourceError: Memory ran out, or a process that loads data died.
        DataError: A label or the number of samples does not suit the network.
    """
    try:
        yield
    except TranspruneError:
        raise
    except (RuntimeError, MemoryError, IndexError, ValueError) as error:
        place = loop.place() if batch else f"phase {loop.phase!r}, the figures of epoch {loop.epoch}"
        shape = f"a batch of {outline(plain_inputs(batch))}" if batch else "a batch of the same size"
        if _is_memory(error):
            raise ResourceError(
                f"cannot go on with {place}: memory ran out for {shape} on {loop.device}; lower the batch size "
                f"(--{loop.phase}.batch-size, or that of your own loader), or the size of the images"
            ) from error
        died = worker_died(f"the data of {place}", error)  # the news may arrive in the middle of a step
        if died is not None:
            raise died from error
        problem = data_problem(error)
        if problem is None or batch is None:
            raise
        raise DataError(f"cannot learn from the batch of {place}: {problem}") from error


def plain_inputs(batch: Batch) -> Any:
    """The inputs, or the only one."""
    return batch.inputs[0] if len(batch.inputs) == 1 else batch.inputs


def _is_memory(error: Exception) -> bool:
    is_known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_known or any(words in str(error) for words in _NO_MEMORY)


def data_problem(error: Exception) -> str | None:
    """What an error of torch says of the data, in words; None if it speaks of something else."""
    text = str(error)
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
    """The error of a process that died while it loaded data; None if the error is another one."""
    if "DataLoader worker" not in str(error):
        return None
    return ResourceError(
        f"cannot load {what}: a process that loads data died ({str(error).splitlines()[0]}); the system may have "
        "ended it because memory ran out: lower the batch size or the number of processes that load data"
    )


def check_first_loss(loss: Tensor, phase: str) -> None:
    """Checks the loss of the first batch, before any step.

    Raises:
        OptionError: No weight can learn from it.
        DivergenceError: It is not a finite number.
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


class Sentinel:
    """Watches every step of a phase, before the step changes a weight.

    On the CPU, and wherever steps may be skipped, a step is judged at once. On CUDA that would make the processor wait
    for the device in every step; there the judgement of a step is read in the next one, and no checkpoint is written in
    between (`settle`).

    Args:
        place: Names the running step, for messages.
        network: What learns.
        device: Where it learns.
        policy: What to do.
    """

    def __init__(self, place: Callable[[], str], network: nn.Module, device: torch.device, policy: Policy) -> None:
        self._place, self._network, self._policy = place, network, policy
        self._is_late = device.type != "cpu" and policy == "stop"
        self._pending: tuple[_OnItsWay, Callable[[], str]] | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._in_row = 0
        self.skipped = 0
        """Steps left out so far."""

    def remember(self) -> None:
        """Called before a step: a forward whose step is skipped must leave no trace in the statistics."""
        if self._policy == "skip":
            self._buffers = [(buffer, buffer.clone()) for buffer in self._network.buffers()]

    def passes(self, loss: Tensor, gradients: Sequence[Tensor | None], forward: Callable[[], Any]) -> bool:
        """Whether a step may be made; called between the backward and the step.

        Args:
            loss: Of the step.
            gradients: What the step would use.
            forward: Computes the outputs again, to find the layer.

        Raises:
            DivergenceError: The policy is to stop, or too many steps were skipped in a row.
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
        """Waits for the judgement of the last step, if it is still to come.

        Raises:
            DivergenceError: Its loss or gradient was not finite.
        """
        if self._pending is not None:
            is_fine, reason = self._pending
            self._pending = None
            if not is_fine.arrived():
                self._stop(reason())

    def figures(self) -> dict[str, int]:
        """What to report of the steps that were left out, if there were any."""
        return {"skipped": self.skipped} if self.skipped else {}

    def state_dict(self) -> dict[str, int]:
        """How many steps were left out."""
        return {"skipped": self.skipped, "in_row": self._in_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from what `state_dict` gave."""
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
    """A flag of a CUDA device that the host is going to read.

    Args:
        flag: bool, without dimensions.
    """

    def __init__(self, flag: Tensor) -> None:
        self._flag = torch.empty((), dtype=torch.bool, pin_memory=True)
        self._flag.copy_(flag, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(flag.device))

    def arrived(self) -> bool:
        """Waits for what the device had to do before, but for nothing that it was given since."""
        self._event.synchronize()
        return bool(self._flag)


def _largest(gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """The largest absolute value of each; not a number if one of its values is not."""
    found = [gradient for gradient in gradients if gradient is not None and gradient.numel()]
    return list(torch._foreach_norm(found, float("inf"))) if found else []


@torch.no_grad()
def _first_bad(network: nn.Module, forward: Callable[[], Any]) -> str:
    """Where the first number that is not finite stands: a weight, the output of a layer, or a gradient."""
    named = list(network.named_parameters())
    for name, parameter in named:
        if not parameter.isfinite().all():
            return f"the weights {name!r} are not finite"
    watch = _Watch(named)
    with watch:
        forward()
    if watch.found is not None:
        return f"the output of the layer {watch.found!r} is the first that is not finite"
    for name, parameter in reversed(named):  # the backward begins at the end
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name!r} is the first that is not finite"
    return "all weights, outputs and gradients of the network are finite, so look at the loss itself"


class _Watch(TorchDispatchMode):
    """Notes the first operation with a parameter whose output is not finite, whatever module or graph calls it."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        self._names = {parameter.untyped_storage().data_ptr(): name for name, parameter in named}
        self._casts: list[Any] = []
        self.found: str | None = None

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = operator(*args, **(kwargs or {}))
        used = [self._names.get(tensor.untyped_storage().data_ptr()) for tensor in tensors_in(args)]
        names = [name for name in used if name is not None]
        if names and operator is torch.ops.aten._to_copy.default:  # at lower precision layers read copies
            self._casts.append(outputs)
            self._names[outputs.untyped_storage().data_ptr()] = names[0]
        if self.found is None and names:
            floats = [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]
            if not all(tensor.isfinite().all() for tensor in floats):
                self.found = names[0].rpartition(".")[0] or names[0]
        return outputs
