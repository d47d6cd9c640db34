"""Batch norms in training, whichever module calls them: over all processes, fast on one CPU, or with mean statistics.

Source: Ioffe & Szegedy, 2015, arXiv:1502.03167, Alg. 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from transprune.kernels.feature_maps import map_channels
from transprune.kernels.normalisation import follow, is_faster_in_rows, normalise_and_mix, with_statistics
from transprune.runtime import processes

_are_joint: ContextVar[bool] = ContextVar("_are_joint", default=False)


@contextmanager
def joint_norms(*, enabled: bool = True) -> Iterator[None]:
    """Inside the block, batch norms in training use the statistics of all processes, whichever module calls them."""
    token = _are_joint.set(enabled)
    try:
        with _Norms(partial(_batch_norm, are_joint=True)) if enabled else nullcontext():
            yield
    finally:
        _are_joint.reset(token)


def fast_norms(*, enabled: bool = True) -> AbstractContextManager[Any]:
    """Inside the block, batch norms in training run in rows where that is faster; `joint_norms` takes precedence."""
    return _Norms(partial(_batch_norm, are_joint=_are_joint.get())) if enabled else nullcontext()


def average_norms() -> AbstractContextManager[Any]:
    """Inside the block, running statistics become the mean over all batches, weighted by their sizes.

    This holds for every batch norm, whatever its momentum.
    """
    seen: dict[int, int] = {}  # samples by the id of the running mean

    def averaging(call: _Call) -> Tensor:
        if call.training and call.running_mean is not None:
            size, key = call.input.numel() // call.input.shape[1], id(call.running_mean)
            seen[key] = seen.get(key, 0) + size
            call = call._replace(momentum=size / seen[key])
        return F.batch_norm(*call)

    return _Norms(averaging)


class _Call(NamedTuple):
    """The arguments of `torch.nn.functional.batch_norm`."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


class _Norms(TorchFunctionMode):
    """Calls another function in place of `torch.nn.functional.batch_norm`.

    Unlike a context variable, a mode also holds in the threads of a backward, where checkpointed activations are
    recomputed.
    """

    def __init__(self, batch_norm: Callable[[_Call], Tensor]) -> None:
        super().__init__()
        self._batch_norm = batch_norm

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.batch_norm:
            return self._batch_norm(_Call(*args, **(kwargs or {})))
        return function(*args, **(kwargs or {}))


def normalise_and_mix_over_processes(features: Tensor, mixture: Tensor, shift: Tensor, eps: float) -> Tensor:
    """`normalise_and_mix`, with the statistics of all processes inside `joint_norms`."""
    if not _are_joint.get():
        return normalise_and_mix(features, mixture, shift, eps)
    mean, variance, _ = _statistics(features)
    normal = (features - _along(mean, features)) * _along((variance + eps).rsqrt(), features)
    if mixture.dim() == 2:
        return map_channels(normal, mixture, shift)
    return normal * _along(mixture, features) + _along(shift, features)


def _batch_norm(call: _Call, *, are_joint: bool) -> Tensor:
    """What `torch.nn.functional.batch_norm` computes."""
    input, weight, bias = call.input, call.weight, call.bias
    samples: int | Tensor
    if call.training and are_joint:
        mean, variance, samples = _statistics(input)
        scale = (variance + call.eps).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        normal = (input * _along(scale, input) + _along(shift, input)).to(input.dtype)
    elif call.training and weight is not None and bias is not None and is_faster_in_rows(input):
        normal, mean, variance = with_statistics(input, weight, bias, call.eps)
        samples = input.numel() // input.shape[1]
    else:
        return F.batch_norm(*call)
    follow((call.running_mean, call.running_var), (mean, variance), samples, call.momentum)
    return normal


def _statistics(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of every channel over all processes, and the number of values behind each."""
    axes, features = [0, *range(2, features.dim())], features.to(torch.promote_types(features.dtype, torch.float32))
    own = features.new_full((1,), features.numel() / features.shape[1])
    sums = processes.summed(torch.cat([features.sum(axes), own]))
    samples = sums[-1].detach()
    mean = sums[:-1] / samples
    squares = processes.summed((features - _along(mean, features)).square().sum(axes))
    return mean, squares / samples, samples


def _along(values: Tensor, features: Tensor) -> Tensor:
    return values.view(-1, *[1] * (features.dim() - 2))
