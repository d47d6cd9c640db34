"""What goes wrong inside a step, said with phase, epoch and step, and with what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from transprune.errors import DataError, ResourceError, TranspruneError
from transprune.runtime.structures import outline
from transprune.training.batches import Batch, worker_died

if TYPE_CHECKING:
    from transprune.training.loop import Loop

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
