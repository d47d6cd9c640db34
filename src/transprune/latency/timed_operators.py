"""The operators that are timed: a layer together with what runtimes fuse into it, and each as a network of its own.

A runtime folds a batch norm into the weights before it and applies an activation as part of the layer before it, so
these belong to the layer. Everything else in a network (sums, pools, conversions of memory layout) lies between
operators; see `transprune.latency.latency_model`.

As a network, an operator is a torch module or an ONNX graph; the graph is built node by node, because exporting it
would take longer than timing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

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
    """The operator to time for each layer of a space; norms, bare parameters, constants and caches have none.

    Args:
        reading: The reading of a model.
        space: A search space of this model.

    Raises:
        SpaceError: The space is another model's.
    """
    facts = iter(reading.layers)
    found = {}
    for layer in space.layers:
        if layer.operator in ("parameter", "constant", "cache"):
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


# --- an operator as a network

_CONVOLUTIONS = {
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "transposed": (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Indexed by the number of spatial axes."""
_MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
OPSET = 20
IR_VERSION = 9
"""Supported since onnxruntime 1.17."""
_NODES: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "relu": (("Relu", ("layer",)),),
    "relu6": (("Clip", ("layer", "zero", "six")),),
    "sigmoid": (("Sigmoid", ("layer",)),),
    "tanh": (("Tanh", ("layer",)),),
    "hardswish": (("HardSwish", ("layer",)),),
    "silu": (("Sigmoid", ("layer",)), ("Mul", ("layer", "active"))),
    "gelu": (("Gelu", ("layer",)),),
}
"""The nodes of each activation: operators and the names of their inputs; `active` is the output of the node before."""


class Product(nn.Module):
    """A product of two computed matrices, as in attention."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The product [..., rows, columns] of [..., rows, shared] and [..., shared, columns]."""
        return first @ second


def operator_module(operator: TimedOperator, inputs: int, outputs: int) -> nn.Module:
    """The operator at the given widths, in evaluation mode."""
    if not operator.has_weights:
        return Product()
    parts: list[nn.Module] = [_layer(operator, inputs, outputs)]
    if operator.has_norm:
        parts.append(_NORMS[len(operator.extent)](outputs))
    if operator.activation is not None:
        parts.append(_MODULES[operator.activation]())
    return nn.Sequential(*parts).eval()


def _layer(operator: TimedOperator, inputs: int, outputs: int) -> nn.Module:
    if operator.kind == "product":
        return nn.Linear(inputs, outputs, bias=operator.has_bias)
    groups = operator.groups_at(outputs)
    made: nn.Module = _CONVOLUTIONS[operator.kind][len(operator.extent) - 1](
        inputs * groups,
        outputs,
        operator.kernel,
        operator.stride,
        operator.padding,
        dilation=operator.dilation,
        groups=groups,
        bias=operator.has_bias,
    )
    return made


def operator_inputs(operator: TimedOperator, batch: int, inputs: int, outputs: int) -> tuple[Tensor, ...]:
    """Random inputs of the operator at the given widths."""
    first = torch.randn(operator.input_shape(batch, inputs, outputs))
    if operator.has_weights:
        return (first,)
    rows = first if first.dim() == 3 else first[:, None]
    return rows, torch.randn(batch, inputs, outputs)


def operator_onnx(operator: TimedOperator, batch: int, inputs: int, outputs: int) -> bytes:
    """The ONNX file of an operator at the given widths, with random weights and its batch norm folded in.

    Its inputs are `input` and, for a product without weights, `other`.
    """
    from onnx import TensorProto, helper

    graph = _Graph()
    if operator.has_weights:
        (graph.product if operator.kind == "product" else graph.convolution)(operator, inputs, outputs)
    else:
        graph.add("MatMul", "input", "other")
    if operator.activation is not None:
        graph.activation(operator.activation)
    shapes = {"input": operator.input_shape(batch, inputs, outputs)}
    if not operator.has_weights:
        shapes = {"input": (batch, operator.positions, inputs), "other": (batch, inputs, outputs)}
    made = helper.make_graph(
        graph.nodes,
        "operator",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, each) for name, each in shapes.items()],
        [helper.make_tensor_value_info(graph.last, TensorProto.FLOAT, None)],
        graph.weights,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    content: bytes = model.SerializeToString()
    return content


class _Graph:
    """An ONNX graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.last = "input"

    def add(self, kind: str, *inputs: str, output: str = "layer", **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        self.last = output

    def weight(self, name: str, *shape: int) -> str:
        self._constant(name, np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * np.float32(0.05))
        return name

    def _constant(self, name: str, value: np.ndarray) -> None:
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(value, name))

    def convolution(self, operator: TimedOperator, inputs: int, outputs: int) -> None:
        groups = operator.groups_at(outputs)
        names = ["input", self.weight("weight", *operator.weight_shape(inputs, outputs))]
        if operator.has_bias or operator.has_norm:
            names.append(self.weight("bias", outputs))
        self.add(
            "Conv" if operator.kind == "conv" else "ConvTranspose",
            *names,
            kernel_shape=operator.kernel,
            strides=operator.stride,
            pads=operator.padding * 2,
            dilations=operator.dilation,
            group=groups,
        )

    def product(self, operator: TimedOperator, inputs: int, outputs: int) -> None:
        has_bias = operator.has_bias or operator.has_norm
        if operator.positions == 1:
            names = ["input", self.weight("weight", outputs, inputs)]
            self.add("Gemm", *names, *([self.weight("bias", outputs)] if has_bias else []), transB=1)
            return
        self.add("MatMul", "input", self.weight("weight", inputs, outputs), output="product" if has_bias else "layer")
        if has_bias:
            self.add("Add", "product", self.weight("bias", outputs))

    def activation(self, name: str) -> None:
        if name == "relu6":
            self._constant("zero", np.array(0, np.float32))
            self._constant("six", np.array(6, np.float32))
        for position, (kind, inputs) in enumerate(_NODES[name]):
            read = [f"active{position - 1}" if each == "active" else each for each in inputs]
            self.add(kind, *read, output=f"active{position}")
