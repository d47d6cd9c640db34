"""The operators that are timed: a layer together with what runtimes fuse into it.

A runtime folds a batch norm into the weights before it and applies an activation as part of the layer before it, so
these belong to the layer. Everything else in a network (sums, pools, conversions of memory layout) lies between
operators; see `transprune.latency.latency_model`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from torch import fx

from transprune.costs import Layer
from transprune.errors import SpaceError
from transprune.models.resnet import ResidualSum
from transprune.reading.coupling import bound_arguments
from transprune.reading.reading import LayerFacts, Reading
from transprune.reading.trace import operator, shape
from transprune.space import SearchSpace

BLOCK, UNIT = 16, 4
"""Runtimes keep feature maps in blocks of `BLOCK` channels if the convolution before reads less than a block or a
multiple of `UNIT` (onnxruntime with AVX-512; other processors use blocks of 8, which makes little difference)."""
ACTIVATIONS = {
    "relu": "relu",
    "hardtanh": "relu6",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "hardswish": "hardswish",
    "silu": "silu",
    "gelu": "gelu",
}
"""Activations that are timed with the layer before them, by the name of torch's operator."""


@dataclass(frozen=True, kw_only=True)
class TimedOperator:
    """A layer and what is fused into it, at any widths; layers with equal operators are timed once."""

    kind: Literal["conv", "transposed", "product"]
    """A convolution, a transposed convolution, or a matrix product (linear layers, and the products of attention)."""
    extent: tuple[int, ...] = ()
    """Rows and columns of a convolution's input."""
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    """Groups of a convolution; 0: the number grows with the width, as in a depthwise convolution."""
    group_width: int = 1
    """Output channels per group, if the number of groups grows with the width."""
    positions: int = 1
    """Rows per sample of a product's first matrix."""
    has_weights: bool = True
    """Whether a product's second matrix is a parameter."""
    has_bias: bool = False
    has_norm: bool = False
    """Whether a batch norm follows."""
    activation: str | None = None
    """The activation that follows, a value of `ACTIVATIONS`; None: none."""
    needs_change: bool = False
    """Whether it exists only if its two widths differ, as a projection on a shortcut."""

    def groups_at(self, outputs: int) -> int:
        """The groups of a convolution with this many outputs."""
        return self.groups or max(1, outputs // self.group_width)

    def input_shape(self, batch: int, inputs: int, outputs: int) -> tuple[int, ...]:
        """The shape of its input: [batch, channels, *extent], [batch, positions, inputs] or [batch, inputs]."""
        if self.kind == "product":
            return (batch, self.positions, inputs) if self.positions > 1 else (batch, inputs)
        return (batch, inputs * self.groups_at(outputs), *self.extent)

    def weight_shape(self, inputs: int, outputs: int) -> tuple[int, ...]:
        """The shape of its weight in torch."""
        if self.kind == "conv":
            return (outputs, inputs, *self.kernel)
        if self.kind == "transposed":
            groups = self.groups_at(outputs)
            return (inputs * groups, outputs // groups, *self.kernel)
        return (outputs, inputs)

    def traffic(self, batch: int, inputs: int, outputs: int) -> int:
        """The number of elements that it reads and writes."""
        if self.kind == "product":
            return batch * self.positions * (inputs + outputs)
        read = prod(self.input_shape(batch, inputs, outputs))
        return read + batch * outputs * prod(self.output_extent())

    def handed_on(self, batch: int, inputs: int, outputs: int) -> int:
        """The number of output elements that the next operator may read in blocks, without conversion."""
        channels = inputs * self.groups_at(outputs)
        is_blocked = self.kind == "conv" and (channels < BLOCK or channels % UNIT == 0)
        is_read_so = outputs >= BLOCK and outputs % UNIT == 0
        return batch * outputs * prod(self.output_extent()) if is_blocked and is_read_so else 0

    def output_extent(self) -> list[int]:
        """Rows and columns of a convolution's output."""
        sizes = zip(self.extent, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        if self.kind == "transposed":
            return [(size - 1) * step - 2 * pad + wide * (kernel - 1) + 1 for size, kernel, step, pad, wide in sizes]
        return [(size + 2 * pad - wide * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, wide in sizes]


def operators_of(reading: Reading, space: SearchSpace) -> dict[Layer, TimedOperator]:
    """The operator to time for each layer of a space; norms, bare parameters and constants have none.

    Args:
        reading: The reading of a model.
        space: A search space of this model.

    Raises:
        SpaceError: The space is another model's.
    """
    facts = iter(reading.layers)
    found = {}
    for layer in space.layers:
        if layer.operator in ("parameter", "constant"):
            continue
        fact = next(
            (each for each in facts if (each.use.name, each.use.operator) == (layer.name, layer.operator)), None
        )
        if fact is None:
            raise SpaceError(
                f"cannot measure the latency of this space: its layer {layer.name!r} is none of this model; "
                f"expected the space that `inspect` reads from the model"
            )
        if layer.operator != "norm":
            found[layer] = _operator(fact, layer, reading)
    return found


def _operator(fact: LayerFacts, layer: Layer, reading: Reading) -> TimedOperator:
    name = operator(fact.use.node)
    if layer.operator == "projection":
        return _projection(fact, reading)
    if not name.startswith(("conv", "linear")) or not _is_of_its_weight(fact, layer):
        return TimedOperator(kind="product", positions=layer.positions, has_weights=False)
    has_norm, activation = _followers(fact.use.node)
    if name == "linear":
        return TimedOperator(
            kind="product", positions=layer.positions, has_bias=layer.has_bias, has_norm=has_norm, activation=activation
        )
    return _convolution(fact, layer, has_norm, activation)


def _is_of_its_weight(fact: LayerFacts, layer: Layer) -> bool:
    """Whether the two axes of a layer's weight are its inputs and outputs; if not, it is timed as a plain product."""
    arguments = bound_arguments(fact.use.node)
    one, other, *_ = *(shape(arguments["weight"]) or ()), 0, 0
    groups = int(arguments.get("groups") or 1)
    channels = [layer.outputs.total, layer.inputs.total]
    return channels in ([one, other], [other * groups, one // groups])


def _projection(fact: LayerFacts, reading: Reading) -> TimedOperator:
    extent = (shape(fact.use.node) or ())[2:]
    total = reading.trace.model.get_submodule(fact.use.name.removesuffix(".shortcut"))
    rank = len(extent)
    return TimedOperator(
        kind="conv",
        extent=extent,
        kernel=(1,) * rank,
        stride=(1,) * rank,
        padding=(0,) * rank,
        dilation=(1,) * rank,
        has_norm=isinstance(total, ResidualSum) and total.has_norm,
        needs_change=True,
    )


def _convolution(fact: LayerFacts, layer: Layer, has_norm: bool, activation: str | None) -> TimedOperator:
    arguments = bound_arguments(fact.use.node)
    kernel = (shape(arguments["weight"]) or ())[2:]
    rank, groups = len(kernel), int(arguments["groups"])
    dilation = _each(arguments["dilation"], rank)
    is_scaled = groups > 1 and not layer.inputs.sources and bool(layer.outputs.sources)
    return TimedOperator(
        kind="transposed" if operator(fact.use.node).startswith("conv_transpose") else "conv",
        extent=(shape(arguments["input"]) or ())[-rank:],
        kernel=kernel,
        stride=_each(arguments["stride"], rank),
        padding=_padding(arguments["padding"], kernel, dilation),
        dilation=dilation,
        groups=0 if is_scaled else groups,
        group_width=layer.outputs.total // groups if is_scaled else 1,
        has_bias=layer.has_bias,
        has_norm=has_norm,
        activation=activation,
    )


def _each(value: Any, rank: int) -> tuple[int, ...]:
    """One number per axis, from one number or several."""
    values = [int(each) for each in value] if isinstance(value, list | tuple) else [int(value)]
    return tuple(values * rank)[:rank]


def _padding(value: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    if value == "same":
        return tuple(step * (size - 1) // 2 for size, step in zip(kernel, dilation, strict=True))
    return _each(0 if value == "valid" else value, len(kernel))


def _followers(node: fx.Node) -> tuple[bool, str | None]:
    """Whether a batch norm follows a layer, and the activation that follows then."""
    following = _only_user(node)
    has_norm = following is not None and operator(following) == "batch_norm"
    if has_norm and following is not None:
        following = _only_user(following)
    return has_norm, ACTIVATIONS.get(operator(following)) if following is not None else None


def _only_user(node: fx.Node) -> fx.Node | None:
    users = [user for user in node.users if user.op == "call_function"]
    return users[0] if len(users) == 1 and len(node.users) == 1 else None
