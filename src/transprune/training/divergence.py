"""Losses and gradients that are not finite: seen in the step they appear, named by their layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from transprune.errors import DivergenceError
from transprune.options import Policy
from transprune.runtime.structures import on_device, tensors_in

MOST_SKIPPED = 10
"""Steps that may be left out one after the other."""

log = logging.getLogger("transprune.run")


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
