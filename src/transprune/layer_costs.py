"""What a layer costs, as a function of the widths of its input and output.

Units: one multiply-add is one MAC. Convolutions, linear layers and products of matrices count, the biases of the former
two too (one MAC an output element, as in the paper's tables); normalisation, activations, pooling and sums do not
count as MACs. Parameters are all parameters of the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Operator = Literal["conv", "depthwise", "linear", "norm", "projection", "matmul", "parameter"]


@dataclass(frozen=True)
class Channels:
    """How many channels a tensor has: a fixed number, what a group or a stage decides, or several of these together."""

    full: int
    """Channels in the unpruned network (of the first part)."""
    source: str | None = None
    """Name of the deciding group or stage; None: the number is fixed."""
    repeat: int = 1
    """Elements a channel: rows × columns where a feature map was flattened, channels a unit of the group, else 1."""
    beside: tuple[Channels, ...] = ()
    """The other parts where several are concatenated."""

    @property
    def parts(self) -> tuple[Channels, ...]:
        """All parts, each without the others."""
        return (Channels(self.full, self.source, self.repeat), *self.beside) if self.beside else (self,)

    @property
    def total(self) -> int:
        """Elements in the unpruned network, of all parts."""
        return sum(part.full * part.repeat for part in self.parts)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the groups and stages that decide."""
        return tuple(part.source for part in self.parts if part.source is not None)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One use of a module with parameters, a product of matrices, a parameter, or a projection that may come to be."""

    name: str
    """Path of the module; of a product of matrices the module that computes it and the product's own name."""
    operator: Operator
    """A `projection` is a 1×1 convolution on the shortcut; it exists only where its two widths differ. A `parameter`
    costs nothing to run: it stands for weights that no other layer counts."""
    inputs: Channels
    outputs: Channels
    kernel: int = 1
    """Elements of the kernel: rows × columns."""
    positions: int = 1
    """How often a sample runs it: rows × columns of the output, tokens."""
    bias_positions: int | None = None
    """How often a sample adds the bias; None: as often as `positions`."""
    has_bias: bool = False
    has_norm: bool = False
    """Whether a projection comes with a batch norm."""
    is_repeat: bool = False
    """Whether its parameters are counted elsewhere: the module was used before, or computes its weights."""

    def macs(self, inputs: int, outputs: int) -> int:
        """Multiply-adds for one sample, at the given numbers of input and output elements."""
        if self.operator in ("norm", "parameter") or (self.operator == "projection" and inputs == outputs):
            return 0
        each = self.kernel * (1 if self.operator == "depthwise" else inputs)
        biases = self.positions if self.bias_positions is None else self.bias_positions
        return outputs * (self.positions * each + self.has_bias * biases)

    def params(self, inputs: int, outputs: int) -> int:
        """Parameters, at the given numbers of input and output elements."""
        if self.operator == "parameter":
            return self.kernel * inputs * outputs
        if self.is_repeat or self.operator == "matmul" or (self.operator == "projection" and inputs == outputs):
            return 0
        if self.operator == "norm":
            return 2 * outputs if self.has_bias else 0
        each = self.kernel * (1 if self.operator == "depthwise" else inputs) + self.has_bias
        return outputs * (each + 2 * self.has_norm)
