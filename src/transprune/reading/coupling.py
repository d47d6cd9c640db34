"""Carries axes through a trace, operator by operator.

The rules of the operators are in `transprune.reading.rules`. Nothing is guessed about an operator without a rule: the
axes that reach it keep their size, and the reason names the operator and the line of the user's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from transprune.costs import LayerKind
from transprune.reading.axes import Axis, StageEnd, fix, fixed, produce, settle
from transprune.reading.stages import BlockRun
from transprune.reading.trace import BATCHES, OTHER_BATCH, Trace, operator, shape, source_line
from transprune.reading.unification import unify

Axes = list[Axis]
Arguments = dict[str, Any]
"""The arguments of a call, by name."""
Function = Callable[[Arguments], Any]
"""Computes the result of a call."""
PRODUCERS = ("conv", "depthwise", "linear")
"""Operators that produce the entries of their outputs."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """One use of a convolution, linear layer, norm or matrix product."""

    name: str
    operator: LayerKind
    node: fx.Node
    inputs: Axis
    outputs: Axis
    kernel: int = 1
    """Elements of the kernel."""
    positions: tuple[Axis, ...] = ()
    """Axes along which the layer is repeated, samples included."""
    bias_positions: tuple[Axis, ...] = ()
    """Axes along which the bias is added."""
    weight: str | None = None
    """Path of the weight; None if it is computed or there is none."""
    bias: str | None = None
    has_bias: bool = False
    along: int = -1
    """Position of the outputs among the axes of the result."""


class Coupling:
    """The axes of all tensors of a trace.

    Args:
        trace: The operators.
        stages: Runs of blocks that can be cut from the end.
        states: Axes of parameters, buffers and constants by name; filled here, and shared by all traces of a model.
        constants: Calls whose cost was counted, with their MACs for one sample: whatever they read keeps its size.
    """

    def __init__(
        self,
        trace: Trace,
        stages: Sequence[BlockRun],
        states: dict[str, Axes],
        constants: Mapping[fx.Node, int] | None = None,
    ) -> None:
        self.trace = trace
        self.stages = stages
        self.states = states
        self.constants = {} if constants is None else constants
        self.values: dict[fx.Node, Any] = {}
        """Axes of each result; a list of them for calls that return several tensors."""
        self.uses: list[Use] = []
        self.rewrites: dict[fx.Node, dict[str, Axis | Axes]] = {}
        """For the size arguments of each call, by name, the axes that they count."""
        self.created: list[Axis] = []
        """New axes as long as the batch, which count samples unless they turn out to be something else."""
        self.preferred: list[Axis] = []
        """Axes to search rather than those that they are multiplied with."""
        self.costs: list[tuple[str, str]] = []
        """Calls whose cost is a constant, or not counted, with the reason."""
        self._ends = {stage.exits[-1]: stage for stage in stages}
        self._behind: dict[str, Axes] = {}
        self._names: dict[int, str] = {}

    def axes(self, reader: fx.Node, source: fx.Node) -> Axes:
        """The axes of a value as its reader sees it; after a stage they depend on its depth."""
        name = self.trace.state(source)
        if name is not None:
            return self.state(name, source)
        stage = self._ends.get(source)
        if stage is not None and reader not in stage.inside:
            return self._behind_stage(stage)
        found: Axes = self.values[source]
        return found

    def state(self, name: str, node: fx.Node) -> Axes:
        """The axes of a parameter, buffer or constant; a shared parameter has the same axes under all its names."""
        if name not in self.states:
            tensor = self._tensor(name)
            twin = self._names.setdefault(id(tensor), name) if tensor is not None else name
            self.states[name] = self.states[twin] if twin in self.states else [Axis(size) for size in shape(node) or ()]
        return self.states[name]

    def _tensor(self, name: str) -> Tensor | None:
        try:
            return self.trace.model.get_parameter(name)
        except AttributeError:
            return None

    def _behind_stage(self, stage: BlockRun) -> Axes:
        if stage.name not in self._behind:
            exits = [self.values[node] for node in stage.exits]
            axes = []
            for position, each in enumerate(zip(*exits, strict=True)):
                settled = [settle(axis) for axis in each]
                # Blocks may differ in width, and the depth decides which one the reader gets. Samples, rows and columns
                # must be equal, because nothing could align them.
                if all(axis is settled[0] for axis in settled):
                    axes.append(settled[0])
                elif position == 1:
                    axes.append(Axis(settled[-1].size, StageEnd(stage.name, tuple(settled)), is_unbound=False))
                else:
                    for other in settled[1:]:
                        unify(settled[0], other)
                    axes.append(settle(settled[0]))
            self._behind[stage.name] = axes
        return self._behind[stage.name]

    def may_count_samples(self, axis: Axis) -> bool:
        """Whether an axis is a new one as long as the batch, about which nothing is known yet."""
        return settle(axis).is_unbound and any(settle(axis) is settle(other) for other in self.created)

    def rewrite(self, node: fx.Node, **arguments: Axis | Axes) -> None:
        """Records which axes the size arguments of a call count."""
        self.rewrites.setdefault(node, {}).update(arguments)

    def add(self, use: Use) -> None:
        """Records one use of a layer, which produces its outputs."""
        self.uses.append(use)
        if use.operator in PRODUCERS:
            produce(use.outputs, use.name)


@dataclass(frozen=True)
class Call:
    """One operator call, with its arguments by name."""

    coupling: Coupling
    node: fx.Node
    arguments: dict[str, Any]

    @classmethod
    def of(cls, coupling: Coupling, node: fx.Node) -> Call:
        """Binds the arguments of a call to the names of the operator's schema."""
        return cls(coupling, node, bound_arguments(node))

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def operator(self) -> str:
        """Name of the operator."""
        return operator(self.node)

    @property
    def where(self) -> str:
        """The operator and the line of the user's code, for messages."""
        return f"'{self.operator}' ({source_line(self.node)})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return shape(self.node) or ()

    @property
    def samples(self) -> int:
        """Samples in the traced batch, for counts per sample."""
        return self.coupling.trace.batch or 1

    def axes(self, name: str = "self") -> Axes | None:
        """Axes of a tensor argument; None if it is not a tensor."""
        return self.axes_of(self[name])

    def axes_of(self, source: object) -> Axes | None:
        """Axes of a tensor; None for anything else."""
        return self.coupling.axes(self.node, source) if isinstance(source, fx.Node) else None

    def tensors(self) -> list[Axes]:
        """Axes of all tensors that the call reads, in order."""
        return [self.coupling.axes(self.node, source) for source in self.node.all_input_nodes]

    def unify(self, first: Axis, second: Axis) -> None:
        """Makes two axes the same; if that is impossible, both are fixed, with this call as the reason."""
        unify(first, second, f"its uses do not fit together in {self.where}")

    def fix(self, axis: Axis, why: str = "needs all of it") -> None:
        """Keeps an axis at its full size."""
        fix(axis, f"the operator {self.where} {why}")

    def fixed(self, size: int) -> Axis:
        """A new axis of a fixed size."""
        return fixed(size, f"the operator {self.where} fixes its size")

    def new_axis(self, place: int, size: int) -> Axis:
        """An axis of a created or expanded tensor, which becomes whatever axis it is combined with."""
        axis, batch = Axis(size), self.coupling.trace.batch
        if size == batch and (place == 0 or batch in (BATCHES[0], OTHER_BATCH)):
            self.coupling.created.append(axis)
        return axis

    def rewrite(self, **arguments: Axis | Axes) -> None:
        """Records which axes the size arguments count."""
        self.coupling.rewrite(self.node, **arguments)

    def add_layer(
        self,
        kind: LayerKind,
        *,
        inputs: Axis,
        outputs: Axis,
        positions: Sequence[Axis] = (),
        bias_positions: Sequence[Axis] | None = None,
        kernel: int = 1,
        weight: str | None = "weight",
        bias: str | None = "bias",
        along: int = -1,
        name: str | None = None,
    ) -> None:
        """Records what the call costs, and which of its parameters count towards it.

        Args:
            kind: `conv` or `linear`: each output reads all inputs, and the outputs are a width that may be chosen.
                `depthwise`: each output reads the input of its own channel. `matmul`: a product without weights.
                `norm`: no MACs, and a scale and a shift for each channel.
            inputs: The axis that is summed over.
            outputs: The axis that is produced.
            positions: The axes along which that is repeated: samples, rows, columns, tokens.
            bias_positions: The axes along which the bias is added; None for the positions.
            kernel: Multiply-adds for each pair of an input and an output, at each position.
            weight: Name of the weight among the arguments; None if there is none.
            bias: Name of the bias among the arguments, if the call has one.
            along: Position of the outputs among the axes of the result, where a supernet mixes candidates: the last
                (-1) in a linear layer, the second in a convolution.
            name: Name of the layer; None to name it after its weight.
        """
        trace, path = self.coupling.trace, self.coupling.trace.module_path(self.node)
        own = [None if name is None else self[name] for name in (weight, bias)]
        parameters = [trace.parameter(source) for source in own]
        if name is None and weight is None:
            name = f"{path or 'network'}.{self.node.name}"
        elif name is None and parameters[0] is not None:
            name = parameters[0].removesuffix(".weight")
        self.coupling.add(
            Use(
                name=name or path or self.node.name,
                operator=kind,
                node=self.node,
                inputs=inputs,
                outputs=outputs,
                kernel=kernel,
                positions=tuple(positions),
                bias_positions=() if bias is None else tuple(positions if bias_positions is None else bias_positions),
                weight=parameters[0],
                bias=parameters[1],
                has_bias=own[1] is not None and (kind != "norm" or own[0] is not None),
                along=along,
            )
        )


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by the names of the operator's schema, defaults included."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return dict(node.kwargs)
    bound: dict[str, Any] = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        elif position < len(node.args) and not argument.kwarg_only:
            bound[argument.name] = node.args[position]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


def origin_of(source: Any) -> Any:
    """What a tensor is, or is a view of."""
    while isinstance(source, fx.Node) and source.op == "call_function" and operator(source) in VIEWS:
        source = source.all_input_nodes[0]
    return source


VIEWS = (
    *("swapaxes", "swapdims", "movedim", "moveaxis", "mH", "adjoint", "matrix_H"),
    *("t", "transpose", "permute", "numpy_T", "mT", "contiguous", "to", "_to_copy", "unsqueeze", "expand", "squeeze"),
    *("view", "reshape", "flatten", "clone", "detach", "alias", "select", "unbind", "getitem", "index", "index_select"),
    *("lift_fresh", "lift_fresh_copy"),
)
"""Operators through which a parameter is seen."""


@dataclass(frozen=True, kw_only=True)
class OperatorRule:
    """All that is known about an operator; `transprune.register_rule` makes one."""

    axes: Callable[[Call], Any]
    """What it does to axes: records which must agree and what it costs, and returns the axes of the result."""
    run: Function | None = None
    """Computes it at any sizes from its arguments by name; None for the operator itself."""
    in_training: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that differ in training; a trace has those of evaluation."""
    weight_outputs: int | None = None
    """For an operator that is linear in `weight` and `bias`, the axis of `weight` that becomes the outputs: a supernet
    mixes candidates there, which is cheaper than mixing results. None to mix results."""


def couple(
    trace: Trace,
    stages: Sequence[BlockRun],
    states: dict[str, Axes],
    constants: Mapping[fx.Node, int] | None = None,
) -> Coupling:
    """Carries axes through a trace, operator by operator; the arguments are those of `Coupling`."""
    from transprune.reading.rules import constant_cost, rule_of

    coupling = Coupling(trace, stages, states, constants)
    for node in trace.graph.nodes:
        if node.op == "placeholder" and node.name in trace.inputs:
            coupling.values[node] = _input_axes(trace, node)
    for node in trace.calls:
        axes = constant_cost if node in coupling.constants else rule_of(node).axes
        coupling.values[node] = axes(Call.of(coupling, node))
    for axis in map(settle, coupling.created):
        axis.is_batch |= axis.is_unbound
    for source in trace.outputs:
        if isinstance(source, fx.Node):
            for axis in coupling.axes(trace.graph.output_node(), source):
                fix(axis, "it is an output of the network")
    return coupling


def _input_axes(trace: Trace, node: fx.Node) -> Axes:
    sizes = shape(node) or ()
    axes = [fixed(size, "it is an input of the network") for size in sizes]
    place = trace.axes[trace.inputs.index(node.name)]
    if place is not None:
        axes[place] = Axis(sizes[place], is_batch=True, is_unbound=False)
    return axes
