"""How long a phase of training will take, from a few of its own steps."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from transprune.tas.bilevel import Bilevel
from transprune.tas.sampling import Selection
from transprune.training.batches import Batch, Feed
from transprune.training.evaluation import evaluate_batches, evaluation_mode
from transprune.training.loop import Loop
from transprune.training.train import Fit


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast a phase goes."""

    step: float
    """Seconds a step, the batch included."""
    evaluation: float
    """Seconds of an evaluation at the end of an epoch."""


def pace_of(loop: Loop, *, steps: int) -> Pace:
    """Measures a loop on its own batches, after a step that warms up. The loop has learned from them then.

    Args:
        loop: A `Fit` or a `Bilevel` that has not begun; of a search, the last epoch is measured, where the architecture
            learns too.
        steps: How many steps are measured, and batches of an evaluation.
    """
    loop.epoch = loop.epochs
    step = _seconds(loop.batches, loop.step, steps, loop.device)
    network, forward, batches = _measured(loop)
    with evaluation_mode(network):
        batch = _seconds(batches, lambda batch: evaluate_batches(forward, [batch], loop.task), steps, loop.device)
    return Pace(step=step, evaluation=batch * len(batches))


def _measured(loop: Loop) -> tuple[nn.Module, Callable[..., Any], Feed]:
    """What is evaluated at the end of an epoch: its module, its forward, and on which batches."""
    if isinstance(loop, Bilevel):
        likeliest = loop.probabilities().most_probable(loop.space)
        selection = Selection.of(loop.space, likeliest, loop.device)
        return loop.supernet, partial(loop.supernet, selection), loop.validation_batches
    assert isinstance(loop, Fit)
    return loop.network, loop.network, loop.test_batches


def _seconds(batches: Iterable[Batch], act: Callable[[Batch], object], count: int, device: torch.device) -> float:
    """Median seconds of getting a batch and doing something with it; the first one only warms up."""
    times = []
    with closing(iter(batches)) as stream:  # type: ignore[type-var]
        for _ in range(count + 1):
            begun = time.perf_counter()
            for batch in itertools.islice(stream, 1):
                act(batch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - begun)
    return statistics.median(times[1:] or times)
