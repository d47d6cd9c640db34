"""Everything that a model's trace says about its widths and depths, as frozen values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from torch import fx, nn

from transprune.costs import Layer
from transprune.errors import ModelError
from transprune.reading.axes import Axis, Concatenation, atoms, factors_of, fixed, searchable, settle, units
from transprune.reading.coupling import PRODUCERS, Axes, Coupling, Use, couple
from transprune.reading.freedom import decide
from transprune.reading.layouts import Constant, Layout, Searched, channels_of, freeze, is_searched, product
from transprune.reading.macs import count_traced
from transprune.reading.networks import blueprint, has_caches, unwrapped
from transprune.reading.stages import BlockRun, added_one_by_one, find_stages, is_in_place
from transprune.reading.trace import BATCHES, OTHER_BATCH, Example, Trace, check_forward, is_own, trace
from transprune.runtime.structures import as_inputs
from transprune.space import SearchSpace


@dataclass(frozen=True)
class GroupFacts:
    """Layers that must share one width."""

    name: str
    """Path of the first layer that produces these channels."""
    width: int
    """Units in the unpruned network."""
    unit: int
    """Channels per unit in the first layer."""
    layers: tuple[str, ...]
    is_ordered: bool
    """Whether the channels must not be permuted, because neighbours are read together."""
    is_inexact: bool
    """Whether dropping channels differs from zeroing them, because a statistic is taken over all of them."""


@dataclass(frozen=True)
class LayerFacts:
    """One use of a layer, with the layouts that decide its cost."""

    use: Use
    inputs: Layout
    outputs: Layout
    positions: int
    bias_positions: int
    is_counted: bool
    """Whether this use counts the parameters, rather than an earlier one."""
    has_bias: bool

    @property
    def macs(self) -> int:
        """Multiply-adds for one sample in the unpruned network."""
        layer = self.layer(Searched())
        return 0 if layer is None else layer.macs(layer.inputs.total, layer.outputs.total)

    def layer(self, searched: Searched, *, has_norm: bool = False) -> Layer | None:
        """What it costs if the rest keeps its full size; None for a projection that is never needed."""
        use = self.use
        inputs, outputs = channels_of(self.inputs, searched), channels_of(self.outputs, searched)
        if use.operator == "projection" and inputs == outputs:
            return None
        return Layer(
            name=use.name,
            operator=use.operator,
            inputs=inputs,
            outputs=outputs,
            kernel=use.kernel,
            positions=self.positions,
            bias_positions=None if self.bias_positions == self.positions else self.bias_positions,
            has_bias=self.has_bias,
            has_norm=has_norm,
            is_repeat=not self.is_counted and use.operator not in ("matmul", "projection", "constant", "cache"),
        )


@dataclass(frozen=True)
class ParameterFacts:
    """A parameter that no layer counts."""

    name: str
    axes: tuple[Layout, ...]


@dataclass(frozen=True)
class Reading:
    """What a model's trace says: its groups and stages, its layers, and the layout of every tensor."""

    trace: Trace
    stages: tuple[BlockRun, ...]
    groups: tuple[GroupFacts, ...]
    layers: tuple[LayerFacts, ...]
    rest: tuple[ParameterFacts, ...]
    """Parameters that no layer counts."""
    fixed: tuple[tuple[str, str], ...]
    """Layers whose width is fixed, and containers whose depth is, with the reason."""
    costs: tuple[tuple[str, str], ...]
    """Calls whose cost is a constant, or not counted, with the reason."""
    values: Mapping[fx.Node, Any] = field(repr=False)
    """Layouts of the axes of each tensor, nested where a call returns several tensors."""
    states: Mapping[str, tuple[Layout, ...]] = field(repr=False)
    """Layouts of the axes of each parameter, buffer and constant."""
    rewrites: Mapping[fx.Node, Mapping[str, Layout | tuple[Layout, ...]]] = field(repr=False)
    """Size arguments of calls, and the layouts that they follow."""
    ends: Mapping[str, tuple[Layout, ...]] = field(repr=False)
    """For each stage, the channels of each block's output."""
    free: Mapping[str, tuple[int, ...]] = field(repr=False)
    """For each stage, the positions of the blocks that may go before those behind them, because what they hand on has
    the layout of what they read."""
    parts: Mapping[str, tuple[tuple[str, ...], ...]] = field(repr=False)
    """For each stage that can be read in branches, the layers and parameters of each branch."""
    blueprint: tuple[Any, ...] = field(repr=False)
    """The `blueprint` of the model."""
    counted: int = 0
    """Multiply-adds of the unpruned network for one sample, counted while it ran."""
    whole: Reading | None = field(default=None, repr=False)
    """The reading in which blocks are whole; None if they are in this one."""

    def is_of(self, model: nn.Module, example: Example) -> bool:
        """Whether a model and an example would read the same: at most weights and samples may differ."""
        return self.trace.is_with(as_inputs(example)) and self.blueprint == blueprint(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> Reading:
        return self  # immutable, and keyed by the nodes of a graph

    @property
    def in_blocks(self) -> Reading:
        """The same with stages of whole blocks."""
        return self.whole or self

    @cached_property
    def in_branches(self) -> Reading:
        """The same with stages of branches, where blocks are several residual sums."""
        finer = {stage.name: stage.branches for stage in self.stages if stage.branches is not None}
        if not finer:
            return self
        ends, free = dict(self.ends), dict(self.free)
        for name, run in finer.items():
            ends[name] = ends[name][:1] * len(run.blocks)
            free[name] = tuple(range(0 if 0 in free[name] else 1, len(run.blocks)))
        stages = tuple(finer.get(stage.name, stage) for stage in self.stages)
        return replace(self, stages=stages, ends=ends, free=free, whole=self)

    def naming(self, blocks: Mapping[str, Collection[str]]) -> Reading:
        """The same with stages of whole blocks or of branches, whichever has the given ones.

        Args:
            blocks: Paths of blocks or branches, by the name of their stage; if there are none, nothing changes.
        """
        for reading in (self, self.in_branches, self.in_blocks):
            known = {stage.name: stage.blocks for stage in reading.stages}
            if all(set(paths) <= set(known.get(name, ())) for name, paths in blocks.items()):
                return reading
        return self

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of the unpruned network for one sample, as predicted."""
        return sum(facts.macs for facts in self.layers)

    def first_units(self, group: str) -> np.ndarray:
        """The units of a group in their own order."""
        return np.arange(self._widths[group])

    @cached_property
    def _widths(self) -> dict[str, int]:
        return {group.name: group.width for group in self.groups}


def read(model: nn.Module, example: Example, known: Reading | None = None) -> Reading:
    """Reads a model, unless a known reading fits it. The model is untouched.

    Reading is slow: `torch.export` traces the model. A reading does not depend on weights, so it serves every copy of
    the model, sorted or trained.

    Args:
        model: Any module that `torch.export` can read.
        example: An input batch, or a tuple of the forward's positional arguments.
        known: An earlier reading, which is returned if the model and the example differ from those it was made of only
            in weights and samples.

    Raises:
        ModelError: The model does not run on the example, cannot be traced, or does not compute what was traced.
    """
    model = unwrapped(model)
    if known is not None and known.is_of(model, example):
        return known
    traced, in_training, reading, counted = _read_with(model, example, BATCHES)
    if reading.macs != counted and traced.batch == BATCHES[0]:
        other = _read_with(model, example, (OTHER_BATCH,))
        if other[0].batch == OTHER_BATCH and other[2].macs == other[3]:
            traced, in_training, reading, counted = other
    constants: Mapping[fx.Node, int] = {}
    if reading.macs != counted:
        from transprune.reading.equality import counted_calls

        # Nothing is guessed here either: where a rule is missing or wrong, what was counted holds, and the widths that
        # it might depend on are fixed.
        try:
            constants = counted_calls(reading)
        except Exception:  # the forward may write down how many samples there are, which `inspect` refuses
            constants = {}
        reading = _reading(model, traced, in_training, constants)
    if has_caches(model):
        from transprune.reading.equality import cached_calls

        cached = cached_calls(model, example, reading)
        if cached:
            reading = _reading(model, traced, in_training, constants, cached)
    return replace(reading, counted=counted)


def _read_with(model: nn.Module, example: Example, batches: Sequence[int]) -> tuple[Trace, Trace | None, Reading, int]:
    """A trace, that of training where it is needed, and what is read of them with the MACs that are counted."""
    traced = added_one_by_one(trace(model, example, batches=batches))
    in_training = _training_trace(model, example, traced, batches)
    return traced, in_training, _reading(model, traced, in_training, {}), _counted(model, example, traced)


def read_for(model: nn.Module, example: Example, space: SearchSpace) -> Reading:
    """Reads a model as `read` does, with the blocks or branches that a space names; `space.reading` is used if it fits.

    Raises:
        ModelError: As `read`.
    """
    return read(model, example, space.reading).naming({stage.name: stage.blocks for stage in space.stages})


def _reading(
    model: nn.Module,
    traced: Trace,
    in_training: Trace | None,
    constants: Mapping[fx.Node, int],
    cached: Mapping[fx.Node, Sequence[int]] | None = None,
) -> Reading:
    found = find_stages(traced)
    stages = list(found.runs)
    states: dict[str, Axes] = {}
    extra = None
    if in_training is not None:
        others = {stage.name: stage for stage in find_stages(in_training).runs}
        stages = [stage for stage in stages if stage.name in others]
    coupling = couple(traced, stages, states, constants)
    for node, kept in (cached or {}).items():
        coupling.add(_cache_of(coupling, node, kept))
    if in_training is not None:
        extra = couple(in_training, [others[stage.name] for stage in stages], states)
    frozen = _Freezing(model, coupling, extra).reading()
    return replace(frozen, fixed=(*frozen.fixed, *found.missed))


def _cache_of(coupling: Coupling, node: fx.Node, kept: Sequence[int]) -> Use:
    """What it takes to keep the result of a call, or the last entries of it, for the network's next call."""
    path, reason = coupling.trace.module_path(node), "it is kept for the next call"
    axes = [
        axis if axis.is_batch or settle(axis).size == size else fixed(size, reason)
        for axis, size in zip(map(settle, coupling.values[node]), kept, strict=True)
    ]
    *others, outputs = sorted(axes, key=lambda axis: any(searchable(axis)))
    return Use(
        name=f"{path or 'network'}.cache.{node.name}",
        operator="cache",
        node=node,
        inputs=fixed(1, reason),
        outputs=outputs,
        positions=tuple(others),
        kernel=node.meta["val"].element_size(),
    )


def _counted(model: nn.Module, example: Example, traced: Trace) -> int:
    try:
        return count_traced(model, example, traced.batch, traced.axes)
    except Exception:  # a user's forward may raise anything
        check_forward(model, example)
        raise


def check_macs(model: nn.Module, reading: Reading) -> None:
    """Checks the cost that was read against the one that was counted, apart from operators that cannot be counted.

    Raises:
        ModelError: They differ.
    """
    unseen = sum(facts.macs for facts in reading.layers if is_own(facts.use.node))
    if reading.counted not in (reading.macs, reading.macs - unseen):
        raise ModelError(
            f"cannot read the model {type(model).__name__}: its forward takes {reading.counted:,} MACs for one "
            f"sample, and the operators that were traced from it take {reading.macs:,}; expected a forward "
            f"that computes the same whenever it is called, whatever the number of samples"
        )


def _training_trace(model: nn.Module, example: Example, reading: Trace, batches: Sequence[int]) -> Trace | None:
    """The trace in training mode, if evaluation leaves parameters unused that training may use."""
    parameters = {node for node in reading.graph.nodes if node.name in reading.parameters}
    if parameters <= _behind(reading):
        return None
    try:
        return added_one_by_one(trace(model, example, training=True, batches=batches))
    except ModelError:
        return None


def _behind(reading: Trace) -> set[fx.Node]:
    """What the outputs depend on, and what is written into tensors that they may depend on."""
    written = [node for node in reading.calls if any(is_in_place(node, source) for source in node.all_input_nodes)]
    found: set[fx.Node] = set()
    waiting = [*(node for node in reading.outputs if isinstance(node, fx.Node)), *written]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


class _Freezing:
    """Turns the axes of a coupling into layouts of named groups."""

    def __init__(self, model: nn.Module, coupling: Coupling, extra: Coupling | None) -> None:
        self.model = model
        self.coupling = coupling
        self.extra = extra
        self.names: dict[int, str] = {}
        self.layouts: dict[int, Layout] = {}

    def reading(self) -> Reading:
        decide(self.coupling)
        groups = self._name_groups()
        coupling = self.coupling
        layers, rest = self._layers()
        free = {stage.name: self._free(stage) for stage in coupling.stages}
        parts = {stage.name: self._branch_parts(stage, free[stage.name], rest) for stage in coupling.stages}
        return Reading(
            trace=coupling.trace,
            stages=tuple(stage if parts[stage.name] else replace(stage, branches=None) for stage in coupling.stages),
            groups=groups,
            layers=layers,
            rest=rest,
            fixed=self._fixed(),
            costs=tuple(coupling.costs),
            values={node: self._nested(value) for node, value in coupling.values.items()},
            states={name: tuple(map(self.layout, axes)) for name, axes in coupling.states.items()},
            rewrites={
                node: {
                    name: tuple(map(self.layout, value)) if isinstance(value, list) else self.layout(value)
                    for name, value in arguments.items()
                }
                for node, arguments in coupling.rewrites.items()
            },
            ends={stage.name: self._end(stage) for stage in coupling.stages},
            free=free,
            parts={name: each for name, each in parts.items() if each},
            blueprint=blueprint(self.model),
        )

    def _name_groups(self) -> tuple[GroupFacts, ...]:
        with_parameters = {
            id(atom) for axes in self.coupling.states.values() for axis in axes for atom in searchable(axis)
        }
        uses = [use for use in self.coupling.uses if use.operator in PRODUCERS]
        order = {use.name: position for position, use in reversed(list(enumerate(uses)))}
        groups: list[GroupFacts] = []
        taken: dict[str, int] = {}
        for use in uses:
            for atom in searchable(use.outputs):
                if id(atom) in self.names or id(atom) not in with_parameters:
                    continue
                layers = tuple(sorted(set(atom.layers) & order.keys(), key=order.__getitem__))
                name = layers[0] if layers else use.name
                taken[name] = taken.get(name, 0) + 1
                name = name if taken[name] == 1 else f"{name}:{taken[name]}"
                self.names[id(atom)] = name
                groups.append(
                    GroupFacts(
                        name=name,
                        width=atom.size,
                        unit=units(use.outputs, atom),
                        layers=layers or (use.name,),
                        is_ordered=atom.is_ordered,
                        is_inexact=atom.is_inexact,
                    )
                )
        return tuple(groups)

    def layout(self, axis: Axis) -> Layout:
        return freeze(axis, self.names, self.layouts)

    def _nested(self, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(self._nested(each) for each in value)
        return self.layout(value)

    def _end(self, stage: BlockRun) -> tuple[Layout, ...]:
        exits = [[self.layout(axis) for axis in self.coupling.values[node]] for node in stage.exits]
        rank = len(exits[-1])
        searched = [place for place in range(rank) if any(is_searched(axes[place]) for axes in exits)]
        # Channels are axis 1 if that is searched, else the first axis that is, such as the features of tokens.
        place = 1 if rank > 1 and (1 in searched or not searched) else (searched or [0])[0]
        return tuple(axes[place] for axes in exits)

    def _free(self, stage: BlockRun) -> tuple[int, ...]:
        ends = [self._nested(self.coupling.values[node]) for node in stage.exits]
        handed_on = [*stage.exits, *([stage.entry] if stage.entry is not None else [])]
        is_changed = any(is_in_place(user, node) for node in handed_on for user in node.users)
        if is_changed or any(end != ends[0] for end in ends):
            return ()
        has_entry = stage.entry is not None and self._nested(self.coupling.axes(stage.exits[0], stage.entry)) == ends[0]
        return tuple(range(0 if has_entry else 1, len(ends)))

    def _branch_parts(
        self, stage: BlockRun, free: tuple[int, ...], rest: Sequence[ParameterFacts]
    ) -> tuple[tuple[str, ...], ...]:
        """The layers and parameters of each branch of a stage; empty if not every branch can be left out."""
        run = stage.branches
        if run is None or len(free) < len(stage.blocks) - 1 or len(self._free(run)) < len(run.blocks) - 1:
            return ()
        if self._nested(self.coupling.values[run.exits[0]]) != self._nested(self.coupling.values[stage.exits[0]]):
            return ()
        unnamed = {facts.name for facts in rest}
        parts, owners = [], dict[str, int | None]()
        for place, (members, shared) in enumerate(zip(run.members, run.shared, strict=True)):
            needed = members | shared
            uses = [use for use in self.coupling.uses if use.node in needed]
            for use in uses:
                owner = place if use.node in members else None
                if owners.setdefault(use.name, owner) != owner:  # a layer that runs in several branches
                    return ()
            read = [self.coupling.trace.parameter(source) for node in needed for source in node.all_input_nodes]
            names = [use.name for use in uses]
            parts.append(tuple(dict.fromkeys([*names, *sorted(name for name in read if name in unnamed)])))
        return tuple(parts)

    def _fixed(self) -> tuple[tuple[str, str], ...]:
        found: dict[str, str] = {}
        searched: set[str] = set()
        for coupling in (self.coupling, *([self.extra] if self.extra is not None else [])):
            for use in coupling.uses:
                if use.operator not in PRODUCERS:
                    continue
                inner = list(atoms(use.outputs))
                if any(id(atom) in self.names for atom in inner):
                    searched.add(use.name)
                    continue
                inner.sort(key=lambda atom: atom.size, reverse=True)  # of a factor that is fixed anyway, no word
                reasons = [atom.reason for atom in inner if atom.reason is not None]
                other = (
                    "it has a single channel" if use.outputs.size == 1 else "nothing else reads or writes its channels"
                )
                found.setdefault(use.name, reasons[0] if reasons else other)
        return tuple((name, reason) for name, reason in found.items() if name not in searched)

    def _layers(self) -> tuple[tuple[LayerFacts, ...], tuple[ParameterFacts, ...]]:
        counted: set[int] = set()
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        layers: list[LayerFacts] = []
        for use in self.coupling.uses:
            layers += self._facts(use, parameters, counted)
        rest: dict[int, ParameterFacts] = {}
        for name, parameter in parameters.items():
            axes = self.coupling.states.get(name)  # of a shared one, under the only path that was traced
            if id(parameter) not in counted and (axes is not None or id(parameter) not in rest):
                layouts = tuple(map(self.layout, axes)) if axes is not None else tuple(map(Constant, parameter.shape))
                rest[id(parameter)] = ParameterFacts(name, layouts)
        return tuple(layers), tuple(rest.values())

    def _facts(self, use: Use, parameters: Mapping[str, nn.Parameter], counted: set[int]) -> Iterator[LayerFacts]:
        varying = [axis for axis in use.positions if searchable(axis)]
        constant = _count(axis for axis in use.positions if not searchable(axis))
        own = [parameters[name] for name in (use.weight, use.bias) if name is not None]
        expected = {"matmul": 0, "projection": 0, "constant": 0, "cache": 0, "norm": 2 * use.has_bias}.get(
            use.operator, 1 + use.has_bias
        )
        is_counted = not varying and len(own) == expected and not any(id(parameter) in counted for parameter in own)
        if is_counted:
            counted.update(id(parameter) for parameter in own)
        inputs, outputs = self.layout(use.inputs), self.layout(use.outputs)
        # A cost is a table over the widths of inputs and outputs, so positions that vary (heads) join one of the two. A
        # bias is added at each position, whatever the inputs, and becomes a product of its own.
        for axis in varying:
            if is_searched(inputs):
                outputs = product([self.layout(axis), outputs])
            else:
                inputs = product([self.layout(axis), inputs])
        # A depthwise convolution reads one channel for each of its own, so its cost has no place for another width.
        is_product = bool(varying) and use.operator == "depthwise"
        yield LayerFacts(
            use=replace(use, operator="matmul") if is_product else use,
            inputs=inputs,
            outputs=outputs,
            positions=constant,
            bias_positions=_count(use.bias_positions),
            is_counted=is_counted,
            has_bias=use.has_bias and not varying,
        )
        if varying and use.has_bias and use.operator != "norm":
            yield LayerFacts(
                use=_as_product(use),
                inputs=product([self.layout(axis) for axis in use.bias_positions if searchable(axis)]),
                outputs=self.layout(use.outputs),
                positions=_count(axis for axis in use.bias_positions if not searchable(axis)),
                bias_positions=0,
                is_counted=True,
                has_bias=False,
            )


def _as_product(use: Use) -> Use:
    return Use(name=f"{use.name}.bias", operator="matmul", node=use.node, inputs=use.inputs, outputs=use.outputs)


def _count(axes: Iterable[Axis]) -> int:
    """Entries of several axes together, per sample."""
    return prod(_per_sample(factor) for axis in axes for factor in factors_of(settle(axis)))


def _per_sample(axis: Axis) -> int:
    """Entries of one axis per sample; two batches, one after the other, have two."""
    axis = settle(axis)
    if isinstance(axis.form, Concatenation):
        return sum(_count([part]) for part in axis.form.parts)
    return 1 if axis.is_batch else axis.size
