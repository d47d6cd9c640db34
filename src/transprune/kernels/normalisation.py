"""Batch norms: alone, with a mixture of their channels as one operation, over all processes, or with mean statistics.

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
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from transprune.kernels.feature_maps import map_channels
from transprune.runtime import processes

ROW = 512
"""Length of a row of memory, in numbers, beyond which rows are read no faster."""
VECTOR = 16
"""Numbers in the widest register of a CPU. Torch's loops over the channels of a pixel handle an incomplete register one
number at a time, and its threads contend for cache lines that their sums share."""
PIXELS = 8192
"""Pixels from which this overhead outweighs some 25 operations on small tensors."""


def normalise_and_mix(features: Tensor, mixture: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Normalises every channel with the statistics of the batch, then mixes channels: y = M·(x − μ)/σ + b.

    With r = 1/σ, A = M·diag(r) and n = batch · positions this is y = A·x + (b − A·μ): once μ and σ are known, a single
    linear map of x, so that the normalised features never exist. For a gradient g of y, with sums over batch and
    positions,

        ∂b = Σ g,    ∂M = (Σ g·xᵀ − ∂b·μᵀ)·diag(r),    ∂x = Aᵀ·g − (r/n)·Mᵀ∂b − (r²/n)·s·(x − μ),
        s_c = Σ_t M_tc ∂M_tc,

    the last being batch norm's own backward for the gradient Mᵀ·g. Only x is kept for it, as batch norm does. Inside
    `torch.autocast` everything is computed in float32.

    Args:
        features: x [batch, channels, ...].
        mixture: M [outputs, channels], or the diagonal of one that keeps channels apart [channels].
        shift: b [outputs].
        eps: Added to the variance.

    Returns:
        [batch, outputs, ...].
    """
    if torch.is_autocast_enabled(features.device.type):
        with torch.autocast(features.device.type, enabled=False):
            return normalise_and_mix(features.float(), mixture.float(), shift.float(), eps)
    if mixture.dim() == 1 and not is_faster_in_rows(features):
        return F.batch_norm(features, None, None, mixture, shift, training=True, eps=eps)
    return with_statistics(features, mixture, shift, eps)[0]


def with_statistics(features: Tensor, mixture: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """`normalise_and_mix` in our own kernel, with the mean and biased variance of the batch [channels].

    Its gradient cannot be differentiated.
    """
    mean, variance = _statistics(features)
    mixed: Tensor = _NormaliseAndMix.apply(features, mixture, shift, mean, (variance + eps).rsqrt())
    return mixed, mean, variance


@torch.no_grad()
def follow(
    running: tuple[Tensor | None, Tensor | None], batch: tuple[Tensor, Tensor], samples: int | Tensor, momentum: float
) -> None:
    """Moves the running mean and variance of a batch norm towards those of a batch, in place.

    Args:
        running: Mean and unbiased variance [channels].
        batch: Mean and biased variance [channels].
        samples: Numbers of each channel in the batch.
        momentum: Share of the distance moved.
    """
    mean, variance = batch
    for followed, value in zip(running, (mean, variance * (samples / (samples - 1))), strict=True):
        if followed is not None:
            followed.lerp_(value.to(followed), momentum)


class _NormaliseAndMix(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 (as torch passes them)
        ctx: Any, features: Tensor, mixture: Tensor, shift: Tensor, mean: Tensor, rate: Tensor
    ) -> Tensor:
        is_last = ctx.is_last = _is_channels_last_on_cpu(features)
        rows, repeats = _in_rows(features, is_last)
        scaled = mixture * rate
        ctx.save_for_backward(features, mean, rate, scaled)
        if mixture.dim() == 2:
            return map_channels(features, scaled, torch.addmv(shift, scaled, mean, alpha=-1))
        outcome = torch.empty_like(features)
        its_rows = _in_rows(outcome, is_last)[0]
        offset = torch.addcmul(shift, scaled, mean, value=-1)
        torch.addcmul(_along(offset, rows, repeats), rows, _along(scaled, rows, repeats), out=its_rows)
        return outcome

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        features, mean, rate, scaled = ctx.saved_tensors
        is_last = ctx.is_last  # of the features; a gradient may come in another format
        gradient = _laid_out(gradient, is_last)
        rows, repeats = _in_rows(features, is_last)
        gradients, its_repeats = _in_rows(gradient, is_last)
        if scaled.dim() == 2:
            of_shift = gradients.sum([0, *range(2, gradients.dim())]).view(its_repeats, -1).sum(0)
            of_mixture = torch.addr(_products(gradient, features), of_shift, mean, alpha=-1) * rate
            slope, offset = (scaled * of_mixture).sum(0), of_shift @ scaled
        else:
            of_shift, of_mixture = _sums(gradients, rows, mean, rate, repeats)
            slope, offset = scaled * of_mixture, scaled * of_shift
        if not ctx.needs_input_grad[0]:
            return None, of_mixture, of_shift, None, None
        share = -features.shape[1] / features.numel()
        slope = slope * rate * share
        offset = torch.addcmul(offset * share, slope, mean, value=-1)
        if scaled.dim() == 2:
            of_features = _laid_out(map_channels(gradient, scaled.t(), offset), is_last)
            _in_rows(of_features, is_last)[0].addcmul_(rows, _along(slope, rows, repeats))
        else:
            of_features = torch.empty_like(features)
            its_rows = _in_rows(of_features, is_last)[0]
            torch.addcmul(_along(offset, rows, repeats), rows, _along(slope, rows, repeats), out=its_rows)
            its_rows.addcmul_(gradients, _along(scaled, rows, repeats))
        return of_features, of_mixture, of_shift, None, None


def is_faster_in_rows(features: Tensor) -> bool:
    """Whether a batch norm in training is faster than torch's own if it reads several pixels at once.

    That is so on CPUs with channels last, if the channels of a pixel fill no whole registers.
    """
    channels = features.shape[1]
    return (
        channels % VECTOR > 0
        and channels < ROW
        and features.numel() >= PIXELS * channels
        and features.dtype in (torch.float32, torch.float64)
        and _is_channels_last_on_cpu(features)
    )


def _is_channels_last_on_cpu(features: Tensor) -> bool:
    is_channels_last = features.dim() == 4 and features.is_contiguous(memory_format=torch.channels_last)
    return is_channels_last and features.device.type == "cpu"


def _laid_out(tensor: Tensor, is_last: bool) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if is_last else tensor


def _in_rows(features: Tensor, is_last: bool) -> tuple[Tensor, int]:
    """A view of the same memory with more channels, and how often the channels are repeated in it.

    If the channels of a pixel lie side by side (`is_last`), so do those of several pixels, and these become one row: as
    many as fill registers and make rows long.
    """
    if not is_last:
        return features, 1
    channels = features.shape[1]
    pixels, repeats = features.numel() // channels, 1
    while (repeats * channels < ROW or repeats * channels % VECTOR) and pixels % (2 * repeats) == 0:
        repeats *= 2
    columns = repeats * channels
    return features.as_strided((1, columns, pixels // repeats, 1), (features.numel(), 1, columns, columns)), repeats


def _along(values: Tensor, rows: Tensor, repeats: int) -> Tensor:
    """One number per channel, shaped to broadcast over the rows."""
    return values.repeat(repeats).view(-1, *[1] * (rows.dim() - 2))


@torch.no_grad()
def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel."""
    rows, repeats = _in_rows(features, _is_channels_last_on_cpu(features))
    if rows.device.type != "cpu":
        variance, mean = torch.var_mean(rows, [0, *range(2, rows.dim())], correction=0)
        return mean, variance
    means, variances = torch.batch_norm_update_stats(rows, None, None, 0.0)
    if repeats == 1:
        return means, variances
    between, mean = torch.var_mean(means.view(repeats, -1), 0, correction=0)
    return mean, between + variances.view(repeats, -1).mean(0)


def _sums(gradients: Tensor, rows: Tensor, mean: Tensor, rate: Tensor, repeats: int) -> tuple[Tensor, Tensor]:
    """Σ g and Σ g·(x − μ)/σ of every channel."""
    _, products, sums = torch.ops.aten.native_batch_norm_backward(
        *(gradients, rows, None, None, None, mean.repeat(repeats), rate.repeat(repeats)),
        *(True, 0.0, [False, True, True]),
    )
    return sums.view(repeats, -1).sum(0), products.view(repeats, -1).sum(0)


def _products(gradient: Tensor, features: Tensor) -> Tensor:
    """Σ g·xᵀ over batch and positions [outputs, channels]: the gradient of the matrix of a linear map."""
    if features.dim() == 2:
        return gradient.t() @ features
    rank = features.dim() - 2
    ones, zeros = [1] * rank, [0] * rank
    matrix = features.new_empty(gradient.shape[1], features.shape[1], *ones)
    products: Tensor = torch.ops.aten.convolution_backward(
        *(gradient, features, matrix, None, ones, zeros, ones, False, zeros, 1), [False, True, False]
    )[1]
    return products.flatten(1)


# --- modes: which norm runs, whichever module calls it

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
    mean, variance, _ = _joint_statistics(features)
    normal = (features - _in_channels(mean, features)) * _in_channels((variance + eps).rsqrt(), features)
    if mixture.dim() == 2:
        return map_channels(normal, mixture, shift)
    return normal * _in_channels(mixture, features) + _in_channels(shift, features)


def _batch_norm(call: _Call, *, are_joint: bool) -> Tensor:
    """What `torch.nn.functional.batch_norm` computes."""
    input, weight, bias = call.input, call.weight, call.bias
    samples: int | Tensor
    if call.training and are_joint:
        mean, variance, samples = _joint_statistics(input)
        scale = (variance + call.eps).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        normal = (input * _in_channels(scale, input) + _in_channels(shift, input)).to(input.dtype)
    elif call.training and weight is not None and bias is not None and is_faster_in_rows(input):
        normal, mean, variance = with_statistics(input, weight, bias, call.eps)
        samples = input.numel() // input.shape[1]
    else:
        return F.batch_norm(*call)
    follow((call.running_mean, call.running_var), (mean, variance), samples, call.momentum)
    return normal


def _joint_statistics(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of every channel over all processes, and the number of values behind each."""
    axes, features = [0, *range(2, features.dim())], features.to(torch.promote_types(features.dtype, torch.float32))
    own = features.new_full((1,), features.numel() / features.shape[1])
    sums = processes.summed(torch.cat([features.sum(axes), own]))
    samples = sums[-1].detach()
    mean = sums[:-1] / samples
    squares = processes.summed((features - _in_channels(mean, features)).square().sum(axes))
    return mean, squares / samples, samples


def _in_channels(values: Tensor, features: Tensor) -> Tensor:
    return values.view(-1, *[1] * (features.dim() - 2))
