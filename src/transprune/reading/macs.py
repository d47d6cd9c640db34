"""MACs of a network, counted while it runs, and the share of them at widths that hardware runs badly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from transprune.architecture import Architecture
from transprune.costs import Channels
from transprune.errors import ModelError, first_line
from transprune.reading.networks import check_copyable, in_evaluation, untouched
from transprune.reading.trace import (
    Example,
    check_example,
    check_forward,
    in_parts,
    inputs_to_run,
    letters_of,
    rebatched,
    sample_axes,
)
from transprune.runtime.seeds import seeded
from transprune.runtime.structures import called, tensors_in
from transprune.space import SearchSpace

MULTIPLE = 8
"""Kernels process channels in multiples of this, or of half or twice it; other widths are padded or run slower code."""


def count_macs(model: nn.Module, example: Example) -> int:
    """Multiply-adds of one forward pass for one sample, counted while the model runs.

    Convolutions and products of matrices, those of attention and of recurrent layers among them, count as torch's
    `FlopCounterMode` sees them (halved: it counts a multiply-add as two operations), or by their shapes where it cannot
    look into an operator. A bias of a convolution, linear or recurrent layer adds one MAC an output element, as in the
    paper's tables.

    Args:
        model: The network; untouched.
        example: An input batch [batch, ...], or a tuple of the forward's positional arguments; its first sample is run.
            Inputs without a common first axis count as one sample.

    Raises:
        ModelError: It cannot be copied, or does not run on the example, or not where products are counted.
    """
    check_copyable(model)
    check_example(model, example)
    inputs = inputs_to_run(model, example)
    axes = sample_axes(model, inputs)
    if axes is None:
        return _counted(model, inputs)
    pairs = zip(tensors_in(inputs), axes, strict=True)
    samples = next(tensor.shape[axis] for tensor, axis in pairs if axis is not None)
    return _counted_for_one(model, rebatched(inputs, 1, axes), inputs, samples)


def count_traced(model: nn.Module, example: Example, batch: int | None, axes: tuple[int | None, ...]) -> int:
    """Multiply-adds as a trace predicts them: for one sample, or for the whole example if no axis counts samples."""
    inputs = inputs_to_run(model, example)
    if batch is None:
        return _counted(model, inputs)
    return _counted_for_one(model, rebatched(inputs, 1, axes), rebatched(inputs, batch, axes), batch)


def _counted_for_one(model: nn.Module, single: Example, several: Example, samples: int) -> int:
    try:
        return _counted(model, single)
    except Exception:  # the forward may insist on more than one sample
        return _counted(model, several) // samples


def _counted(model: nn.Module, inputs: Example) -> int:
    network = in_evaluation(model).requires_grad_(False)
    try:
        with untouched(model), counting() as counter:
            called(network, inputs)
    except Exception as error:  # a user's forward may raise anything
        check_forward(model, inputs)
        raise ModelError(
            f"cannot count the MACs of {type(model).__name__}: its forward runs, but not where each operator is "
            f"watched ({first_line(error)}); expected operators that torch's FlopCounterMode can see"
        ) from error
    return counter.macs


@contextmanager
def counting() -> Iterator[MacCounter]:
    """Counts the multiply-adds of what runs inside, in `macs`; it draws no random numbers from the caller's."""
    counter = MacCounter()
    with torch.no_grad(), seeded(0, "counting"), counter.products, counter, in_parts():
        yield counter


class MacCounter(TorchFunctionMode):
    """Counts products as torch's own counter does, and what that one does not see: biases and opaque operators."""

    def __init__(self) -> None:
        super().__init__()
        self.products = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        self.unseen = 0
        """Multiply-adds that `products` does not see, less those that it sees and should not."""

    @property
    def macs(self) -> int:
        """Multiply-adds so far."""
        return int(self.products.get_total_flops()) // 2 + self.unseen

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        name = _own_name(function)
        before = self.macs
        outcome = function(*args, **named)
        whole = WHOLE[name](args, named, outcome) if name in WHOLE else None
        if whole is not None:
            self.unseen += whole - (self.macs - before)
        if name in WITH_BIAS:
            bias = args[WITH_BIAS[name]] if len(args) > WITH_BIAS[name] else named.get("bias")
            self.unseen += prod(outcome.shape) if bias is not None else 0
        elif function is F.multi_head_attention_forward:  # its linear layers run out of this counter's sight
            self.unseen += _attention_biases(*args, **named)
        return outcome


def _own_name(function: Any) -> str:
    """Name of a function of torch or operator of its libraries; empty for any other function."""
    if isinstance(function, torch._ops.OpOverload):
        return str(function._schema.name.removeprefix("aten::"))
    if isinstance(function, torch._ops.OpOverloadPacket):
        return str(function._qualified_op_name.removeprefix("aten::"))
    is_torchs = str(getattr(function, "__module__", None) or "torch").split(".")[0] == "torch"
    return str(getattr(function, "__name__", "")) if is_torchs else ""


def _attention_biases(*args: Any, **named: Any) -> int:
    """Biases that attention adds when it projects queries, keys, values and the result."""
    call = signature(F.multi_head_attention_forward).bind(*args, **named).arguments
    queries, keys = (prod(call[name].shape[:-1]) for name in ("query", "key"))
    inside, outside = (
        0 if call[name] is None else int(call[name].numel()) for name in ("in_proj_bias", "out_proj_bias")
    )
    return int((queries + 2 * keys) * inside // 3 + queries * outside)


def _recurrent(args: Any, named: Any, outcome: Any) -> int:
    """A recurrent layer, of any number of layers and directions: each step of each sample meets each weight once."""
    values = [*args, *named.values()]
    weights = [value for value in values if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor)]
    return int(prod(args[0].shape[:-1]) * sum(weight.numel() for weight in weights[-1]))


def _cell(args: Any, named: Any, outcome: Any) -> int:
    values = [*args, *named.values()][2:6]
    return int(prod(args[0].shape[:-1]) * sum(value.numel() for value in values if isinstance(value, Tensor)))


def _bilinear(args: Any, named: Any, outcome: Any) -> int:
    """Each pair of an entry of the first and of the second input meets a weight for each output."""
    first, _, weight = [*args, *named.values()][:3]
    return int(prod(first.shape[:-1]) * int(weight.numel()))


def _distances(args: Any, named: Any, outcome: Any) -> int:
    first, second = [*args, *named.values()][:2]
    before = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    return int(prod((*before, first.shape[-2], second.shape[-2], second.shape[-1])))


def _deformed(args: Any, named: Any, outcome: Any) -> int:
    """A deformable convolution; where it has no bias, torchvision gives it one of zeros, which is no parameter."""
    weight, bias = args[1], args[4]
    return int(outcome.numel() * (prod(weight.shape[1:]) + isinstance(bias, nn.Parameter)))


def _pair(args: Any, named: Any, outcome: Any) -> int | None:
    """A sum over two tensors, whichever operators torch makes of it; None for any other einsum."""
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        return None
    terms, output = letters_of(equation, [tensor.dim() for tensor in operands])
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, operands, strict=True):
        for letter, size in zip(term, tensor.shape, strict=True):
            sizes[letter] = max(int(size), sizes.get(letter, 1))
    return prod(sizes[letter] for letter in multiplied(terms, output)) if summed(terms, output) else 0


def summed(terms: Sequence[str], output: str) -> list[str]:
    """The letters along which an einsum of two tensors sums products."""
    return [letter for letter in dict.fromkeys(terms[0]) if letter in terms[1] and letter not in output]


def multiplied(terms: Sequence[str], output: str) -> list[str]:
    """The letters along which it multiplies; what a single tensor has to itself is summed before."""
    letters = dict.fromkeys("".join(terms))
    return [letter for letter in letters if letter in output or all(letter in each for each in terms)]


WHOLE: dict[str, Callable[[Any, Any, Any], int | None]] = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell),
    "bilinear": _bilinear,
    "cdist": _distances,
    "einsum": _pair,
    "torchvision::deform_conv2d": _deformed,
}
"""Operators that count by their arguments, whatever runs inside."""
WITH_BIAS = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "conv_tbc", "_convolution", "convolution"), 2),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), 2),
    "bilinear": 3,
}
"""Operators that may add a bias, and its place among their arguments."""


def _attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _vector(matrix: Any, vector: Any, *rest: Any, **named: Any) -> int:
    return int(2 * prod(matrix))


def _added_vector(added: Any, matrix: Any, vector: Any, *rest: Any, **named: Any) -> int:
    return int(2 * prod(matrix))


def _added_batches(added: Any, first: Any, second: Any, *rest: Any, **named: Any) -> int:
    return int(2 * prod(first) * int(second[-1]))


def _rows(first: Any, second: Any, *rest: Any, out_shape: Any, **named: Any) -> int:
    """Products in which each entry of the result sums over the last axis of the first tensor."""
    return int(2 * prod(out_shape) * int(first[-1]))


def _over_time(inputs: Any, weight: Any, *rest: Any, out_shape: Any, **named: Any) -> int:
    return int(2 * prod(out_shape) * prod(weight[:2]))


FORMULAS: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten.mv: _vector,
    torch.ops.aten.dot: _vector,
    torch.ops.aten.vdot: _vector,
    torch.ops.aten.addmv: _added_vector,
    torch.ops.aten.addbmm: _added_batches,
    torch.ops.aten._int_mm: _rows,
    torch.ops.aten.conv_tbc: _over_time,
}
"""Operations, in torch's sense, of products that its counter does not know: by the shapes of their arguments."""


@dataclass(frozen=True, kw_only=True)
class Friendliness:
    """The layers of an architecture whose chosen widths are not multiples of a number."""

    multiple_of: int
    layers: int
    """Number of kept layers with MACs."""
    unfriendly: tuple[str, ...]
    """Paths of those with a chosen input or output width that is not a multiple."""
    share_of_macs: float
    """The share of the unfriendly layers in all MACs."""


def friendliness(space: SearchSpace, architecture: Architecture, *, multiple: int = MULTIPLE) -> Friendliness:
    """Finds layers that read or write a chosen number of channels that is not a multiple of `multiple`.

    Widths that no choice decides, such as image channels or classes, do not count.
    """
    macs: dict[str, int] = {}
    unfriendly = set()
    for layer in space.layers:
        if not space.is_kept(layer.name, architecture):
            continue
        ends = layer.inputs, layer.outputs
        cost = layer.macs(*(space.resolve(end, architecture) for end in ends))
        if cost:
            macs[layer.name] = macs.get(layer.name, 0) + cost
            if any(_is_odd(space, end, architecture, multiple) for end in ends):
                unfriendly.add(layer.name)
    share = sum(macs[name] for name in unfriendly) / sum(macs.values()) if macs else 0.0
    named = tuple(name for name in macs if name in unfriendly)
    return Friendliness(multiple_of=multiple, layers=len(macs), unfriendly=named, share_of_macs=share)


def _is_odd(space: SearchSpace, channels: Channels, architecture: Architecture, multiple: int) -> bool:
    return bool(channels.sources) and space.resolve(channels, architecture) % multiple != 0
