"""Kinds of cost: what an architecture may be asked to keep small.

The cost of an architecture is a sum of whole numbers, one for every part of the input and every part of the output of
every kept layer (`SearchSpace.cost`); most layers have one of each. A kind of cost says what each of them is, and that
is all that the expected cost, the derivation and the budgets need to know: MACs and parameters follow from the shapes
of a `Layer`, another kind may come from measurements.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal


class Cost(ABC):
    """One kind of cost."""

    kind: str
    """The word for it in budgets, figures and files, such as `macs`."""
    name: str
    """The word for it in sentences and tables, such as `MACs`."""
    is_monotone = True
    """Whether larger sizes never cost less."""

    @abstractmethod
    def of_part(self, layer: Layer, part: tuple[int, int], inputs: int, outputs: int) -> int:
        """What a part of a layer's input costs together with a part of its output; at least 0.

        Args:
            layer: The layer.
            part: Positions among `layer.inputs.parts` and `layer.outputs.parts`.
            inputs: Elements of the part of the input.
            outputs: Elements of the part of the output.
        """

    def written(self, amount: float) -> str:
        """An amount with its unit, for a sentence."""
        return f"{amount:,.0f} {self.name}"


class Macs(Cost):
    """Multiply-adds for one sample."""

    kind, name = "macs", "MACs"

    def of_part(self, layer: Layer, part: tuple[int, int], inputs: int, outputs: int) -> int:
        """MACs are linear in the output, and in the input but for a bias, which goes with the first part."""
        return layer.macs(inputs, outputs) - (layer.macs(0, outputs) if part[0] else 0)


class Params(Cost):
    """Trained parameters."""

    kind, name = "params", "parameters"

    def of_part(self, layer: Layer, part: tuple[int, int], inputs: int, outputs: int) -> int:
        """Parameters are linear in the output, and in the input but for a bias and a norm."""
        return layer.params(inputs, outputs) - (layer.params(0, outputs) if part[0] else 0)


MACS, PARAMS = Macs(), Params()
COSTS: Mapping[str, Cost] = {cost.kind: cost for cost in (MACS, PARAMS)}
"""The kinds that need nothing but the search space."""


Operator = Literal["conv", "depthwise", "linear", "norm", "projection", "matmul", "parameter"]


@dataclass(frozen=True)
class Channels:
    """How many channels a tensor has: a fixed number, what a group or a stage decides, or several of these together.

    A layout (`transprune.reading.layouts`) nests, and says which entries an axis keeps. Channels say only how many
    these are, which makes them a flat sum: Σ repeat · source. They are a record of their own because that sum is what
    a cost is linear in, and what people read in `space.json`.
    """

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
        return (replace(self, beside=()), *self.beside) if self.beside else (self,)

    @property
    def total(self) -> int:
        """Elements in the unpruned network, of all parts."""
        return sum(part.full * part.repeat for part in self.parts)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the groups and stages that decide."""
        return tuple(part.source for part in self.parts if part.source is not None)


def added(channels: Iterable[Channels]) -> Channels:
    """Several together, as those of a concatenation: what one group or stage decides is one part.

    Example:
        >>> added([Channels(4, "stem"), Channels(3), Channels(4, "stem", repeat=2)])
        Channels(full=4, source='stem', repeat=3, beside=(Channels(full=3, source=None, repeat=1, beside=()),))
    """
    merged: dict[str | None, Channels] = {}
    for part in (part for each in channels for part in each.parts):
        known = merged.get(part.source)
        if known is None:
            merged[part.source] = part
        elif part.source is None:
            merged[None] = Channels(known.total + part.total)
        else:
            merged[part.source] = replace(part, repeat=known.repeat + part.repeat)
    first, *others = merged.values() or [Channels(0)]
    return replace(first, beside=tuple(others))


def times(channels: Channels, count: int) -> Channels:
    """As many for each channel, as where a feature map is flattened."""
    return added(
        Channels(part.total * count) if part.source is None else replace(part, repeat=part.repeat * count)
        for part in channels.parts
    )


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
