"""Several processes that work as one job, as `torchrun` starts them; independent of machine learning.

A process started alone is a job of one, for which nothing here has any effect. In a larger job, all processes must call
the functions that exchange something in the same order. Tensors on the CPU are exchanged by gloo, those on CUDA by
nccl; a job that somebody else began with nccl alone gets an additional gloo group.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from itertools import groupby
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, distributed

from transprune.errors import ResourceError, StoppedError

if distributed.is_available():
    # Imported before the group exists: a later import, such as by the first optimizer, binds the group as a default
    # argument and keeps it until the interpreter exits, which the group's threads then sometimes abort.
    import torch.distributed.nn.functional

Value = TypeVar("Value")

CPU = torch.device("cpu")
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others before the job fails; it must cover evaluation and export, which only the
first process does."""

_is_alone: ContextVar[bool] = ContextVar("_is_alone", default=False)

_besides: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""The additional gloo group, by the name of the job's own. Weak, so that its threads end with the job: those still
alive when the interpreter exits may abort it."""


def count() -> int:
    """The number of processes that share the work."""
    return 1 if _is_alone.get() or not _is_joined() else distributed.get_world_size()


def rank() -> int:
    """The index of this process, from 0."""
    return 0 if count() == 1 else distributed.get_rank()


def is_first() -> bool:
    """Whether this process is the one that writes files and prints; unaffected by `alone`."""
    return not _is_joined() or distributed.get_rank() == 0


def share_of(total: int, index: int, parts: int) -> slice:
    """The slice of one of several shares of `total` places; shares differ by at most one place."""
    return slice(index * total // parts, (index + 1) * total // parts)


@contextmanager
def alone() -> Iterator[None]:
    """Makes this process work inside the block as if there were no others."""
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


@contextmanager
def joined() -> Iterator[None]:
    """Joins the job that `torchrun` started for the duration of the block; does nothing without `torchrun`.

    On CUDA, each process of a machine gets its own device.

    Raises:
        ResourceError: The other processes cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or _is_joined():
        yield
        return
    has_cuda = torch.cuda.is_available() and distributed.is_nccl_available()
    if has_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    with _exchange():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if has_cuda else "gloo", timeout=TIMEOUT)
    total(0)  # wait for all: a process without work would leave while others still connect, which would end them
    try:
        yield
    except StoppedError:
        total(0)  # wait for all: torchrun ends the others as soon as one process fails
        distributed.destroy_process_group()
        raise
    # After any other error the group is left alone: destroying it would wait for processes that are gone.
    distributed.destroy_process_group()


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replaces every tensor by its sum over all processes; tensors of one dtype and device are exchanged together."""
    _together(tensors, lambda flat, group: distributed.all_reduce(flat, group=group))


def align(tensors: Iterable[Tensor]) -> None:
    """Replaces every tensor by that of the first process."""
    _together(tensors, lambda flat, group: distributed.broadcast(flat, 0, group=group))


def total(number: int) -> int:
    """The sum of a number over all processes."""
    if count() == 1:
        return number
    value = torch.tensor(number)
    with _exchange():
        distributed.all_reduce(value, group=_group_for(value.device))
    return int(value)


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set in any process."""
    if count() == 1:
        return flags
    value = torch.tensor(flags, dtype=torch.int32)
    with _exchange():
        distributed.all_reduce(value, distributed.ReduceOp.MAX, group=_group_for(value.device))
    return tuple(bool(flag) for flag in value)


def gathered(value: Value) -> list[Value]:
    """The values of all processes, by rank; tensors in them must be on the CPU."""
    if count() == 1:
        return [value]
    packed: list[Any] = [None] * count()
    with _exchange():
        distributed.all_gather_object(packed, _packed(value), group=_group_for(CPU))
    return [_unpacked(each) for each in packed]


def from_first(make: Callable[[], Value]) -> Value:
    """Calls `make` in the first process and returns its result in all; tensors in it must be on the CPU.

    Raises:
        Exception: In the first process, whatever `make` raises.
        ResourceError: In the others, if `make` raised something.
    """
    if count() == 1:
        return make()
    outcome: list[Any] = [None, None]
    failure: Exception | None = None
    if rank() == 0:
        try:
            outcome[0] = _packed(make())
        except Exception as error:
            failure, outcome[1] = error, str(error)
    with _exchange():
        distributed.broadcast_object_list(outcome, 0, group=_group_for(CPU))
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        raise ResourceError(f"cannot go on: the first process of the job failed: {outcome[1]}")
    made: Value = _unpacked(outcome[0])
    return made


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes; differentiable, with gradients flowing back to all of them."""
    result: Tensor = _Summed.apply(tensor)
    return result


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        result = tensor.clone()
        add_up([result])
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        result = gradient.clone()
        add_up([result])
        return result


def _packed(value: Any) -> bytes:
    """A value as bytes; torch's own exchange of objects cannot restore every tensor."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=False)  # trusted: it comes from a process of this job


def _together(tensors: Iterable[Tensor], exchange: Callable[[Tensor, Any], Any]) -> None:
    if count() == 1:
        return

    def kind(tensor: Tensor) -> str:
        return f"{tensor.dtype} {tensor.device}"

    for _, group in groupby(sorted(tensors, key=kind), key=kind):
        several = list(group)
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in several])
        with _exchange():
            exchange(flat, _group_for(flat.device))
        for tensor, part in zip(several, flat.split([tensor.numel() for tensor in several]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))


def _group_for(device: torch.device) -> Any:
    """The group that exchanges tensors on a device; None: the job's own."""
    has_way = device.type != "cpu" or "cpu" in distributed.get_backend_config()
    return None if has_way else _gloo_beside(distributed.group.WORLD)


def _gloo_beside(group: Any) -> Any:
    """The additional gloo group for a job whose own group cannot exchange tensors on the CPU; created on first use."""
    beside = _besides.get(group.group_name)
    if beside is None:
        beside = _besides[group.group_name] = distributed.new_group(backend="gloo", timeout=TIMEOUT)
    return beside


@contextmanager
def _exchange() -> Iterator[None]:
    """Explains errors of an exchange between processes.

    Raises:
        ResourceError: Another process cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:
        raise ResourceError(
            f"cannot go on: another process of the job ended or cannot be reached ({str(error).splitlines()[0]}); what "
            "it printed says why; start the job again, and it goes on from the last checkpoint"
        ) from error


def _is_joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
