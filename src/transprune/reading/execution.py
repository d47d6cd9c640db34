"""Runs a trace at any widths and with any blocks.

The operators run one by one, as torch would run them. Size arguments are computed from the sizes in use
(`Reading.rewrites`): with 6 of 8 channels, `view(batch, 8 * 16)` runs as `view(batch, 6 * 16)`. Blocks that are not in
use are skipped: who reads one gets what the block before it hands on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx

from transprune.errors import ModelError
from transprune.reading.coupling import Function, OperatorRule, bound_arguments
from transprune.reading.layouts import Layout, Sizes, size_of
from transprune.reading.reading import Reading
from transprune.reading.rules import rule_of
from transprune.reading.stages import BlockRun, is_in_place
from transprune.reading.trace import Example, operator, shape
from transprune.runtime.structures import filled


@dataclass(frozen=True)
class Value:
    """Placeholder among the arguments of a call: the value of a node, or by its name the output of a stage."""

    key: object


@dataclass(frozen=True)
class Step:
    """One operator call."""

    node: fx.Node
    operator: str
    constants: Mapping[str, Any]
    """Arguments that never change, by name."""
    reads: Mapping[str, Any]
    """Arguments that change from run to run, by name."""
    sizes: Mapping[str, Layout | tuple[Layout, ...]]
    """Arguments that are sizes, by name."""
    function: Function
    rule: OperatorRule
    block: tuple[str, int] | None
    """Stage and position of the block that makes the call."""
    serves: tuple[str, frozenset[int]] | None = None
    """Stage and positions of the blocks that need the call; None if it is always made."""
    last_reads: tuple[object, ...] = ()
    """Values that no later call reads."""
    ends: BlockRun | None = None
    """The stage that this call ends."""


class Surroundings:
    """What a program asks while it runs: which calls to make, with which tensors, and what a stage gives.

    Subclasses define at least `state`.

    Args:
        sizes: Widths and blocks in use; the number of samples comes from the inputs.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def runs(self, step: Step) -> bool:
        """Whether a call is made with the blocks in use."""
        if step.serves is None:
            return True
        stage, positions = step.serves
        return stage not in self.sizes.blocks or any(
            position in positions for position in chain(*self.sizes.blocks[stage])
        )

    def share(self, stage: BlockRun, position: int) -> Tensor | None:
        """The weight p with which a block that runs is mixed with what it reads, x + p (block(x) − x); None: wholly."""
        return None

    def state(self, name: str) -> Tensor:
        """A parameter, buffer or constant at the sizes in use."""
        raise NotImplementedError

    def function(self, step: Step) -> Function:
        """The function that computes a call."""
        return step.function

    def stage_end(self, stage: BlockRun, handed_on: Sequence[Tensor]) -> Tensor:
        """What the readers of a stage get, from the outputs of the last blocks of the candidates in use."""
        return handed_on[-1]


class Program:
    """A reading, ready to run.

    Args:
        reading: The reading of a model.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        trace = reading.trace
        self._blocks = {
            node: (stage.name, position)
            for stage in reading.stages
            for position, nodes in enumerate(stage.members)
            for node in nodes
        }
        self._served = {node: (name, frozenset([position])) for node, (name, position) in self._blocks.items()}
        for stage in reading.stages:
            for node in frozenset[fx.Node]().union(*stage.shared):
                needing = (position for position, nodes in enumerate(stage.shared) if node in nodes)
                self._served[node] = (stage.name, frozenset(needing))
        placeholders = {node.name: node for node in trace.graph.nodes if node.op == "placeholder"}
        self._inputs = tuple(placeholders[name] for name in trace.inputs)
        self.input_shapes = tuple(shape(node) or () for node in self._inputs)
        """Shapes of the traced inputs."""
        self._ends = {stage.exits[-1]: stage for stage in reading.stages}
        self._exits = {node: (stage, place) for stage in reading.stages for place, node in enumerate(stage.exits)}
        self._free = {(stage.name, place) for stage in reading.stages for place in reading.free[stage.name]}
        self._entries = {
            stage.name: self._template(stage.entry, stage.exits[0])
            for stage in reading.stages
            if 0 in reading.free[stage.name]
        }
        self._written_over = frozenset(
            node
            for stage in reading.stages
            for node in stage.exits[:-1]
            if any(is_in_place(user, node) for user in node.users)
        )
        self.steps = tuple(self._step(node) for node in trace.calls)
        self.outputs = [self._template(source, trace.graph.output_node()) for source in trace.outputs]
        self.steps = self._with_last_reads()

    def without_reads(self, unread: Mapping[fx.Node, Collection[str]]) -> Program:
        """The same program, in which certain calls do not read certain arguments."""
        changed = object.__new__(Program)
        changed.__dict__.update(self.__dict__)
        changed.steps = tuple(
            replace(step, reads={name: read for name, read in step.reads.items() if name not in unread[step.node]})
            if step.node in unread
            else step
            for step in self.steps
        )
        changed.steps = changed._with_last_reads()
        return changed

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self  # immutable, and keyed by the nodes of a graph

    def __reduce__(self) -> Any:
        raise ModelError(
            f"cannot pickle the operators that were traced from {type(self.reading.trace.model).__name__}, which its "
            f"smaller network runs; expected its state_dict() alone, which shrink(model, architecture, example) or "
            f"load(run) makes room for, or an exported file (student.pt2, torch.export)"
        )

    def _step(self, node: fx.Node) -> Step:
        arguments = bound_arguments(node) if isinstance(node.target, torch._ops.OpOverload) else _plain(node)
        templates = {name: self._template(value, node) for name, value in arguments.items()}
        changing = {name for name, template in templates.items() if _changes(template)}
        return Step(
            node=node,
            operator=operator(node),
            constants={name: template for name, template in templates.items() if name not in changing},
            reads={name: template for name, template in templates.items() if name in changing},
            sizes=self.reading.rewrites.get(node, {}),
            function=_function(node),
            rule=rule_of(node),
            block=self._blocks.get(node),
            serves=self._served.get(node),
            ends=self._last_calls.get(node),
        )

    @cached_property
    def free_sums(self) -> Mapping[fx.Node, str]:
        """Path of the shortcut of each residual sum with free sides, by the call that adds them."""
        return {
            facts.use.node: facts.use.name
            for facts in self.reading.layers
            if facts.use.operator == "projection" and facts.inputs != facts.outputs
        }

    @cached_property
    def aliases(self) -> Mapping[str, tuple[str, ...]]:
        """All paths of each shared parameter or buffer, by any one of them."""
        model = self.reading.trace.model
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        paths: dict[int, list[str]] = {}
        for path, tensor in named:
            paths.setdefault(id(tensor), []).append(path)
        return {path: tuple(each) for each in paths.values() if len(each) > 1 for path in each}

    @cached_property
    def _last_calls(self) -> dict[fx.Node, BlockRun]:
        order = {node: place for place, node in enumerate(self.reading.trace.calls)}
        return {max(stage.inside, key=order.__getitem__): stage for stage in self.reading.stages}

    def _template(self, value: Any, reader: fx.Node) -> Any:
        if isinstance(value, fx.Node):
            # Inside a stage the last exit is that block's own output; outside, that of the last block in use.
            stage = self._ends.get(value)
            return Value(stage.name if stage is not None and reader not in stage.inside else value)
        if isinstance(value, list | tuple):
            return [self._template(each, reader) for each in value]
        return value

    def _with_last_reads(self) -> tuple[Step, ...]:
        # A value is dropped after its last reader, so that a forward does not hold all features at once. The exits of a
        # stage are dropped by `run` when the stage ends, since the depth decides which of them is read.
        kept = {value.key for value in _values(self.outputs)}
        kept |= {node for stage in self.reading.stages for node in stage.exits}
        seen: set[object] = set(kept)
        steps = []
        for step in reversed(self.steps):
            reads = {value.key for value in _values(list(step.reads.values()))}
            if step.ends is not None and step.ends.name in self._entries:
                reads.add(self._entries[step.ends.name].key)
            steps.append(replace(step, last_reads=tuple(reads - seen)))
            seen |= reads
        return tuple(reversed(steps))

    def run(self, surroundings: Surroundings, inputs: Example) -> Any:
        """What the model's forward returns for the inputs.

        Args:
            surroundings: What it runs with.
            inputs: The inputs of the forward, as the example gave them.

        Raises:
            DataError: They have another structure than the example.
        """
        trace = self.reading.trace
        tensors = trace.tensors_of(inputs)
        sizes = surroundings.sizes
        if trace.batch is not None:
            sizes = Sizes(sizes.widths, sizes.blocks, trace.samples_in(tensors), sizes.is_supernet)
        lasts = {
            stage.name: [max(kept) for kept in sizes.blocks.get(stage.name, ((len(stage.blocks) - 1,),))]
            for stage in self.reading.stages
        }
        values: dict[object, Any] = dict(zip(self._inputs, tensors, strict=True))
        device = tensors[0].device
        kept: dict[fx.Node, Tensor] = {}

        def value_of(key: object) -> Any:
            if key not in values:
                assert isinstance(key, fx.Node)
                values[key] = surroundings.state(str(trace.state(key)))
            return values[key]

        for step in self.steps:
            if surroundings.runs(step):
                read = {name: _filled(template, value_of, device) for name, template in step.reads.items()}
                arguments = {**step.constants, **read}
                for name, layout in step.sizes.items():
                    sized = [size_of(each, sizes) for each in (layout if isinstance(layout, tuple) else (layout,))]
                    arguments[name] = sized if isinstance(layout, tuple) else sized[0]
                values[step.node] = surroundings.function(step)(arguments)
                if step.node in self._written_over and step.block is not None:
                    position, in_use = step.block[1], lasts[step.block[0]]
                    if position in in_use and position < max(in_use):  # a mix reads it after the next block overwrites
                        kept[step.node] = values[step.node].clone()
            if step.node in self._exits and step.block in self._free:
                self._hand_on(surroundings, step, values, value_of)
            for key in step.last_reads:
                values.pop(key, None)
            if step.ends is not None:
                stage = step.ends
                exits = [stage.exits[last] for last in lasts[stage.name]]
                handed_on = [kept.pop(node) if node in kept else values[node] for node in exits]
                values[stage.name] = surroundings.stage_end(stage, handed_on)
                for node in stage.exits:
                    values.pop(node, None)
        flat = [_filled(template, value_of, device) for template in self.outputs]
        return filled(trace.returned, flat)

    def _hand_on(
        self, surroundings: Surroundings, step: Step, values: dict[object, Any], value_of: Callable[[object], Any]
    ) -> None:
        """Puts what a block reads in place of its output if it is skipped, and mixes the two if it has a share."""
        stage, position = self._exits[step.node]
        is_run = surroundings.runs(step)
        share = surroundings.share(stage, position) if is_run else None
        if is_run and share is None:
            return
        read = value_of(stage.exits[position - 1] if position else self._entries[stage.name].key)
        values[step.node] = read if share is None else read + share * (values[step.node] - read)


def _filled(template: Any, value_of: Callable[[object], Any], device: torch.device | None) -> Any:
    """An argument with its values filled in.

    Not a closure: a recursive one is a reference cycle, which would keep the features of a forward alive.
    """
    if isinstance(template, Value):
        return value_of(template.key)
    if isinstance(template, list):
        return [_filled(each, value_of, device) for each in template]
    return device if isinstance(template, torch.device) else template


def _plain(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call without a schema, by position or name."""
    return {str(position): argument for position, argument in enumerate(node.args)} | dict(node.kwargs)


def _values(template: Any) -> list[Value]:
    if isinstance(template, Value):
        return [template]
    if isinstance(template, list | tuple):
        return [value for each in template for value in _values(each)]
    return []


def _changes(template: Any) -> bool:
    """Whether an argument changes from run to run: it holds a value or a device."""
    if isinstance(template, list):
        return any(map(_changes, template))
    return isinstance(template, Value | torch.device)


def _function(node: fx.Node) -> Function:
    """The function that computes a call from its arguments by name."""
    own = rule_of(node).run
    if own is not None:
        return own
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        positions = [str(position) for position in range(len(node.args))]
        return lambda arguments: target(
            *(arguments[name] for name in positions),
            **{name: value for name, value in arguments.items() if name not in positions},
        )
    schema = target._schema.arguments
    plain = [argument.name for argument in schema if not argument.kwarg_only]
    named = [argument.name for argument in schema if argument.kwarg_only]
    return lambda arguments: target(*(arguments[name] for name in plain), **{name: arguments[name] for name in named})
