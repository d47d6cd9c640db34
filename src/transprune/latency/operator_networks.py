"""An operator as a network of its own, for each backend: a torch module or an ONNX graph.

The graph is built node by node, because exporting it would take longer than timing it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transprune.latency.timed_operators import TimedOperator

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
