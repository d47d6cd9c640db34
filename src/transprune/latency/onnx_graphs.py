"""An operator as an ONNX graph, written node by node: an exporter would take longer than the measurement."""

from __future__ import annotations

from typing import Any

import numpy as np

from transprune.latency.operators import Operator

OPSET = 20
IR_VERSION = 9
"""Read by every onnxruntime since 1.17."""
_ACTIVATIONS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "relu": (("Relu", ("layer",)),),
    "relu6": (("Clip", ("layer", "zero", "six")),),
    "sigmoid": (("Sigmoid", ("layer",)),),
    "tanh": (("Tanh", ("layer",)),),
    "hardswish": (("HardSwish", ("layer",)),),
    "silu": (("Sigmoid", ("layer",)), ("Mul", ("layer", "active"))),
    "gelu": (("Gelu", ("layer",)),),
}
"""Nodes of each activation; each reads what it names, and what the node before it gave is called `active`."""


def operator_onnx(operator: Operator, batch: int, inputs: int, outputs: int) -> bytes:
    """The ONNX file of an operator at the given widths, with weights at random and the batch norm folded in.

    Its inputs are `input` and, of a product without weights, `other`.
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
    """Nodes and weights so far."""

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

    def convolution(self, operator: Operator, inputs: int, outputs: int) -> None:
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

    def product(self, operator: Operator, inputs: int, outputs: int) -> None:
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
        for position, (kind, inputs) in enumerate(_ACTIVATIONS[name]):
            read = [f"active{position - 1}" if each == "active" else each for each in inputs]
            self.add(kind, *read, output=f"active{position}")
