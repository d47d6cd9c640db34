"""What a layer costs, as a function of the widths of its input and output.

Units: one multiply-add is one MAC. Convolutions and linear layers count, their biases too (one MAC an output
element, as in the paper's tables); normalisation, activations, pooling and sums do not count as MACs. Parameters are
all trained parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Operator = Literal["conv", "depthwise", "linear", "norm", "projection"]
CostKind = Literal["macs", "params"]
COST_KINDS: tuple[CostKind, ...] = ("macs", "params")


@dataclass(frozen=True)
class Channels:
    """How many channels a tensor has: a fixed number, or what a group or a stage decides."""

    full: int
    """Channels in the unpruned network."""
    source: str | None = None
    """Name of the deciding group or stage; None: the number is fixed."""
    repeat: int = 1
    """Elements a channel: rows × columns where a feature map was flattened, else 1."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One use of a module with parameters, or a projection that a residual sum may come to need."""

    name: str
    """Path of the module."""
    operator: Operator
    """A `projection` is a 1×1 convolution on the shortcut; it exists only where its two widths differ."""
    inputs: Channels
    outputs: Channels
    kernel: int = 1
    """Elements of the kernel: rows × columns."""
    positions: int = 1
    """Output positions a sample: rows × columns of the output."""
    has_bias: bool = False
    has_norm: bool = False
    """Whether a projection comes with a batch norm."""
    is_mixed: bool = False
    """Whether a supernet mixes the sampled candidates of the output's group here: at the norm that follows a
    convolution, or at the layer itself where none does."""
    is_repeat: bool = False
    """Whether the module was used before: its parameters are counted already."""

    def cost(self, kind: CostKind, inputs: int, outputs: int) -> int:
        """MACs a sample, or parameters, at the given numbers of input and output elements."""
        return self.macs(inputs, outputs) if kind == "macs" else self.params(inputs, outputs)

    def macs(self, inputs: int, outputs: int) -> int:
        """Multiply-adds for one sample."""
        if self.operator == "norm" or (self.operator == "projection" and inputs == outputs):
            return 0
        each = self.kernel * (1 if self.operator == "depthwise" else inputs) + self.has_bias
        return self.positions * outputs * each

    def params(self, inputs: int, outputs: int) -> int:
        """Trained parameters."""
        if self.is_repeat or (self.operator == "projection" and inputs == outputs):
            return 0
        if self.operator == "norm":
            return 2 * outputs if self.has_bias else 0
        each = self.kernel * (1 if self.operator == "depthwise" else inputs) + self.has_bias
        return outputs * (each + 2 * self.has_norm)
