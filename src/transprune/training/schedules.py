"""How learning rates and temperatures move over a run."""

from __future__ import annotations

import math

import torch

from transprune.options import Schedule


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

    Deviation: the reference cuts its cosine short by the length of the warm-up and trains its last epochs at rate
    zero; here the cosine ends with the run.

    Args:
        progress: Share of the run that is done, in [0, 1].
        warm_up: Share of the run that warms up, in [0, 1).
    """
    if progress < warm_up:
        return progress / warm_up
    return anneal(1.0, 0.0, (progress - warm_up) / (1 - warm_up), "cosine")


def cosine_schedule(
    optimizer: torch.optim.Optimizer, steps_an_epoch: int, epochs: int, warm_up_epochs: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rates step by step: a linear warm-up, then half a cosine, at zero one step after the end."""
    end = steps_an_epoch * epochs + 1
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_up_then_cosine(min(1.0, (step + 1) / end), warm_up_epochs * steps_an_epoch / end)
    )
