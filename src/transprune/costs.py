"""Kinds of cost that a budget may limit.

The cost of an architecture is a sum of whole numbers, one for each pair of an input part and an output part of each
kept layer (`SearchSpace.cost`); most layers have one pair. A kind of cost defines these numbers, which is all that the
expected cost, the derivation and the budgets need: MACs and parameters follow from the shapes of a `Layer`, other kinds
may be measured.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal


class Cost(ABC):
    """One kind of cost."""

    kind: str
    """Its name in budgets, figures and files, such as `macs`."""
    name: str
    """Its name in sentences and tables, such as `MACs`."""
    is_monotone = True
    """Whether larger sizes never cost less."""

    @abstractmethod
    def of_part(self, layer: Layer, part: tuple[int, int], inputs: int, outputs: int) -> int:
        """The cost of one input part of a layer together with one output part; at least 0.

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
        return layer.macs(inputs, outputs) - (layer.macs(0, outputs) if part[0] else 0)


class Params(Cost):
    """Trained parameters."""

    kind, name = "params", "parameters"

    def of_part(self, layer: Layer, part: tuple[int, int], inputs: int, outputs: int) -> int:
        return layer.params(inputs, outputs) - (layer.params(0, outputs) if part[0] else 0)


class Cache(Cost):
    """Keys and values that a network keeps of one sample for its next call, in bytes.

    As many tokens are kept as the example has, in the type in which the network computes.
    """

    kind, name = "cache", "bytes of cache"

    def of_part(self, layer: Layer, part: tuple[int, int], inputs: int, outputs: int) -> int:
        return layer.positions * layer.kernel * inputs * outputs if layer.operator == "cache" else 0

    def written(self, amount: float) -> str:
        return in_bytes(amount)


MACS, PARAMS, CACHE = Macs(), Params(), Cache()
COSTS: Mapping[str, Cost] = {cost.kind: cost for cost in (MACS, PARAMS)}
"""The kinds that follow from the search space alone, and that every network has. A `CACHE` few have."""


IN_BYTES = ("file", CACHE.kind)
"""Kinds whose amounts are sizes in bytes."""


def with_kinds(others: Iterable[Cost]) -> Mapping[str, Cost]:
    """All costs by kind: those that follow from the space, and others that were measured."""
    return {**COSTS, **{cost.kind: cost for cost in others}}


@dataclass(frozen=True, kw_only=True)
class FileSize(Cost):
    """Size of the file that a runtime reads, in bytes: its weights, and what describes the graph.

    Some runtimes fold norms into the layers before them. In 8 bits each channel has a scale beside its weights. And
    every layer has a name and attributes. What each of these takes is fitted to files (`transprune.file_size`).
    """

    kind, name = "file", "bytes"

    weight: float
    """Bytes of each parameter that is no norm's."""
    norm: float
    """Bytes of each channel of a norm."""
    channel: float
    """Bytes of each output of a layer that has parameters, beside these."""
    layer: float
    """Bytes of each layer."""
    product: float
    """Bytes of each product of features, beside these."""
    rest: float
    """Bytes of all else."""
    bearer: str
    """The layer that the rest is counted with; every network of the space has it."""
    runtime: str = "onnxruntime"
    """What reads the file."""
    int8: bool = False
    """Whether its weights and activations have 8 bits."""
    errors: tuple[float, ...] = ()
    """Of files that it was not fitted to, as shares of their sizes; above 0 where it says more than they have."""

    def of_part(self, layer: Layer, part: tuple[int, int], inputs: int, outputs: int) -> int:
        factors = self.weight, self.norm, self.channel, self.layer, self.product
        counts = self._counts(layer, part, inputs, outputs)
        own = sum(factor * count for factor, count in zip(factors, counts, strict=True))
        return math.ceil(own + (self.rest if layer.name == self.bearer and part == (0, 0) else 0.0))

    @staticmethod
    def _counts(layer: Layer, part: tuple[int, int], inputs: int, outputs: int) -> tuple[int, ...]:
        """Parameters, channels of norms, outputs, layers and products, as `of_part` counts them."""
        if layer.operator == "cache" or (layer.operator == "projection" and inputs == outputs):
            return (0,) * 5
        is_first_input, one = part[0] == 0, int(part == (0, 0))
        has_norm = layer.operator == "norm" or layer.has_norm
        norms = outputs if has_norm and is_first_input else 0
        weights = 0 if layer.operator == "norm" else PARAMS.of_part(layer, part, inputs, outputs) - 2 * norms
        channels = outputs if weights and is_first_input else 0
        return weights, norms, channels, one, one if layer.operator == "matmul" else 0

    def written(self, amount: float) -> str:
        return in_bytes(amount)


FILE_FACTORS = ("weight", "norm", "channel", "layer", "product", "rest")
"""The fields of a `FileSize` that are fitted: what it says is a sum of these, each times how often it occurs."""


def in_bytes(amount: float) -> str:
    """A size in bytes, with its unit.

    Example:
        >>> in_bytes(64_200), in_bytes(812)
        ('64.2 kB', '812 B')
    """
    for worth, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if amount >= worth:
            return f"{amount / worth:,.1f} {unit}"
    return f"{amount:,.0f} B"


LayerKind = Literal["conv", "depthwise", "linear", "norm", "projection", "matmul", "parameter", "constant", "cache"]


@dataclass(frozen=True)
class Channels:
    """The number of channels of a tensor: fixed, decided by a group or a stage, or a sum of these.

    A layout (`transprune.reading.layouts`) nests, and says which entries an axis keeps. Channels say only how many, as
    a flat sum: Σ repeat · source. This is what costs are linear in, and what people read in `space.json`.
    """

    full: int
    """Channels in the unpruned network (of the first part)."""
    source: str | None = None
    """Name of the deciding group or stage; None if the number is fixed."""
    repeat: int = 1
    """Elements per channel: rows × columns of a flattened feature map, channels per unit of the group, else 1."""
    beside: tuple[Channels, ...] = ()
    """The other parts of a concatenation."""

    @property
    def parts(self) -> tuple[Channels, ...]:
        """All parts, each without the others."""
        return (replace(self, beside=()), *self.beside) if self.beside else (self,)

    @property
    def total(self) -> int:
        """Elements in the unpruned network, over all parts."""
        return sum(part.full * part.repeat for part in self.parts)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the groups and stages that decide the number."""
        return tuple(part.source for part in self.parts if part.source is not None)


def added(channels: Iterable[Channels]) -> Channels:
    """The sum of several, as in a concatenation; the parts of one group or stage are merged.

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
    """`count` elements for each channel, as when a feature map is flattened."""
    return added(
        Channels(part.total * count) if part.source is None else replace(part, repeat=part.repeat * count)
        for part in channels.parts
    )


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One use of a module with parameters, a matrix product, a parameter, or a projection that may be added."""

    name: str
    """Path of the module; for a matrix product, that of the module that computes it and the product's own name."""
    operator: LayerKind
    """A `projection` is a 1×1 convolution on the shortcut; it exists only where its two widths differ. A `parameter`
    costs nothing to run: it stands for weights that no other layer counts. A `constant` costs the same whatever is
    chosen: it was counted, since no rule says what it depends on. A
    `cache` costs no arithmetic: it stands for keys or values that are kept for the next call."""
    inputs: Channels
    outputs: Channels
    kernel: int = 1
    """Elements of the kernel: rows × columns. Of a cache: bytes of a number."""
    positions: int = 1
    """Runs per sample: rows × columns of the output, or tokens."""
    bias_positions: int | None = None
    """Additions of the bias per sample; None for as many as `positions`."""
    has_bias: bool = False
    has_norm: bool = False
    """Whether a projection comes with a batch norm."""
    is_repeat: bool = False
    """Whether its parameters are counted elsewhere: the module was used before, or computes its weights."""

    def macs(self, inputs: int, outputs: int) -> int:
        """Multiply-adds for one sample, at the given numbers of input and output elements."""
        if self.operator in ("norm", "parameter", "cache") or (self.operator == "projection" and inputs == outputs):
            return 0
        each = self.kernel * (1 if self.operator == "depthwise" else inputs)
        biases = self.positions if self.bias_positions is None else self.bias_positions
        return outputs * (self.positions * each + self.has_bias * biases)

    def params(self, inputs: int, outputs: int) -> int:
        """Parameters, at the given numbers of input and output elements."""
        if self.operator == "parameter":
            return self.kernel * inputs * outputs
        if self.is_repeat or self.operator in ("matmul", "constant", "cache"):
            return 0
        if self.operator == "projection" and inputs == outputs:
            return 0
        if self.operator == "norm":
            return 2 * outputs if self.has_bias else 0
        each = self.kernel * (1 if self.operator == "depthwise" else inputs) + self.has_bias
        return outputs * (each + 2 * self.has_norm)
