"""An operator as a module of torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from transprune.latency.operators import Operator

_CONVOLUTIONS = {
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "transposed": (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""By the number of spatial axes."""
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


class Product(nn.Module):
    """A product of two matrices that are both computed, as in attention."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """[..., rows, shared] times [..., shared, columns]."""
        return first @ second


def operator_module(operator: Operator, inputs: int, outputs: int) -> nn.Module:
    """The operator at the given widths, in evaluation mode."""
    if not operator.has_weights:
        return Product()
    parts: list[nn.Module] = [_layer(operator, inputs, outputs)]
    if operator.has_norm:
        parts.append(_NORMS[len(operator.extent)](outputs))
    if operator.activation is not None:
        parts.append(_ACTIVATIONS[operator.activation]())
    return nn.Sequential(*parts).eval()


def _layer(operator: Operator, inputs: int, outputs: int) -> nn.Module:
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


def operator_inputs(operator: Operator, batch: int, inputs: int, outputs: int) -> tuple[Tensor, ...]:
    """What the operator reads at the given widths, at random."""
    first = torch.randn(operator.input_shape(batch, inputs, outputs))
    if operator.has_weights:
        return (first,)
    rows = first if first.dim() == 3 else first[:, None]
    return rows, torch.randn(batch, inputs, outputs)
