"""Which layers must share a width: coupling carried through the operators of a trace.

Every convolution and linear layer produces a new set of channels. Operators hand channels on, join two sets into one
(a sum), or need them whole. An operator without a rule never guesses: the channels that reach it keep their width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import fx, nn

from transprune.analysis.stages import BlockRun, is_inside
from transprune.analysis.trace import Trace, operator, shape, source_line
from transprune.residual import ResidualSum


@dataclass
class ChannelSet:
    """Channels of one or several layers, which keep one width. Sets that are joined point to the first of them."""

    width: int
    layers: list[str]
    reason: str | None = None
    """Why the width is fixed; None: it may be searched."""
    joined: ChannelSet | None = None

    def root(self) -> ChannelSet:
        """The set that stands for all that were joined."""
        return self if self.joined is None else self.joined.root()


@dataclass(frozen=True)
class Stream:
    """The channels along one axis of a tensor."""

    axis: int
    source: ChannelSet | BlockRun
    """A stage stands for whatever its last kept block hands on."""
    repeat: int = 1
    """Elements a channel."""


@dataclass(frozen=True)
class Use:
    """A module with parameters at work on streams; None: a fixed width."""

    module: str
    node: fx.Node
    inputs: Stream | None
    outputs: Stream | None
    is_free_sum: bool = False
    """Whether this is the shortcut of a residual sum with free sides, where a projection may come to stand."""


@dataclass
class Coupling:
    """The outcome of carrying channels through a trace."""

    trace: Trace
    stages: list[BlockRun]
    streams: dict[fx.Node, Stream | None] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    uncovered: list[str] = field(default_factory=list)
    """Parameters that no rule covers: their cost is not counted."""

    def read(self, reader: fx.Node, source: object) -> Stream | None:
        """The stream of a value as its reader sees it: behind a stage it depends on the stage's depth."""
        if not isinstance(source, fx.Node):
            return None
        stream = self.streams.get(source)
        for stage in self.stages:
            if source is not stage.exits[-1] or is_inside(self.trace.module_path(reader), stage.name):
                continue
            if stream is not None and all(self.streams[node] is not None for node in stage.exits):
                return Stream(stream.axis, stage)
            for node in stage.exits:
                self.fix(self.streams[node], f"a block of the stage {stage.name!r} ends in a fixed number of channels")
            return None
        return stream

    def sets(self, stream: Stream | None) -> list[ChannelSet]:
        """All channel sets that may stand behind a stream."""
        if stream is None:
            return []
        if isinstance(stream.source, ChannelSet):
            return [stream.source.root()]
        handed_on = [self.streams[node] for node in stream.source.exits]
        return [channels for exit_stream in handed_on for channels in self.sets(exit_stream)]

    def fix(self, stream: Stream | None, reason: str) -> None:
        """Keeps the full width of everything behind a stream."""
        for channels in self.sets(stream):
            channels.reason = channels.reason or reason

    def join(self, first: Stream, second: Stream) -> None:
        """Makes two streams share one width."""
        sets = [*self.sets(first), *self.sets(second)]
        for other in sets[1:]:
            root, other_root = sets[0].root(), other.root()
            if root is not other_root:
                root.layers += other_root.layers
                root.reason = root.reason or other_root.reason
                other_root.joined = root


Rule = Callable[[Coupling, fx.Node], Stream | None]


def couple(trace: Trace, stages: list[BlockRun]) -> Coupling:
    """Carries channels through a trace, operator by operator."""
    coupling = Coupling(trace, stages)
    for node in trace.calls:
        rule = RULES.get(operator(node), _without_rule)
        coupling.streams[node] = rule(coupling, node)
    for node in trace.graph.output_node().all_input_nodes:
        coupling.fix(coupling.read(trace.graph.output_node(), node), "it is an output of the network")
    return coupling


def _without_rule(coupling: Coupling, node: fx.Node) -> Stream | None:
    reason = f"it reaches the operator {operator(node)!r} ({source_line(node)}), which has no rule"
    for source in node.all_input_nodes:
        coupling.fix(coupling.read(node, source), reason)
    return _uncovered(coupling, node)


def _uncovered(coupling: Coupling, node: fx.Node) -> Stream | None:
    """Lists the parameters that a call reads: what they cost is not counted."""
    parameters = [coupling.trace.parameter(source) for source in node.all_input_nodes]
    coupling.uncovered += [name for name in parameters if name is not None and name not in coupling.uncovered]
    return None


def _own_module(coupling: Coupling, node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> str | None:
    """Path of the module whose own weight the call uses unchanged; None if there is none of the given classes."""
    weight = coupling.trace.parameter(node.args[1]) if len(node.args) > 1 else None
    path = weight.removesuffix(".weight") if weight and weight.endswith(".weight") else None
    if path is None or type(coupling.trace.model.get_submodule(path)) not in kinds:
        return None
    return path


def is_depthwise(module: nn.Conv2d) -> bool:
    """Whether every channel is convolved on its own, so that outputs are the channels of the input."""
    return 1 < module.groups == module.in_channels == module.out_channels


def _convolution(coupling: Coupling, node: fx.Node) -> Stream | None:
    path = _own_module(coupling, node, (nn.Conv2d,))
    inputs = coupling.read(node, node.args[0])
    if path is None or (inputs is not None and inputs.axis != 1):
        return _without_rule(coupling, node)
    module = coupling.trace.model.get_submodule(path)
    assert isinstance(module, nn.Conv2d)  # for the type checker
    if inputs is not None and is_depthwise(module):
        for channels in coupling.sets(inputs):
            channels.layers.append(path)
        outputs: Stream | None = inputs
    else:
        reason = f"{path!r} is a grouped convolution" if module.groups > 1 else None
        coupling.fix(inputs, reason) if reason else None
        outputs = Stream(1, ChannelSet(module.out_channels, [path], reason))
    return _used(coupling, path, node, inputs, outputs)


def _linear(coupling: Coupling, node: fx.Node) -> Stream | None:
    path = _own_module(coupling, node, (nn.Linear,))
    inputs = coupling.read(node, node.args[0])
    sizes = shape(node)
    if path is None or sizes is None:
        return _without_rule(coupling, node)
    last = len(sizes) - 1
    if inputs is not None and inputs.axis != last:
        coupling.fix(inputs, f"the linear layer {path!r} does not read it along its channels")
        inputs = None
    return _used(coupling, path, node, inputs, Stream(last, ChannelSet(sizes[-1], [path])))


def _normalisation(coupling: Coupling, node: fx.Node) -> Stream | None:
    stream = coupling.read(node, node.args[0])
    path = _own_module(coupling, node, (nn.BatchNorm2d,))
    if path is None or (stream is not None and stream.axis != 1):
        return _without_rule(coupling, node)
    return _used(coupling, path, node, stream, stream)


def _used(coupling: Coupling, path: str, node: fx.Node, inputs: Stream | None, outputs: Stream | None) -> Stream | None:
    if any(use.module == path for use in coupling.uses):
        for stream in (inputs, outputs):
            coupling.fix(stream, f"the module {path!r} is used more than once")
        for use in coupling.uses:
            if use.module == path:
                coupling.fix(use.inputs, f"the module {path!r} is used more than once")
                coupling.fix(use.outputs, f"the module {path!r} is used more than once")
    coupling.uses.append(Use(path, node, inputs, outputs))
    return outputs


def _hands_on(coupling: Coupling, node: fx.Node) -> Stream | None:
    return coupling.read(node, node.args[0])


def _pool(coupling: Coupling, node: fx.Node) -> Stream | None:
    stream = coupling.read(node, node.args[0])
    return stream if stream is None or stream.axis == 1 else _without_rule(coupling, node)


def _elementwise_pair(coupling: Coupling, node: fx.Node) -> Stream | None:
    sources = list(node.all_input_nodes)
    if len(sources) == 1:
        return coupling.read(node, sources[0])
    first, second = (coupling.read(node, source) for source in sources[:2])
    path = coupling.trace.module_path(node)
    total = coupling.trace.module(node)
    is_feature_map = len(shape(node) or ()) == 4  # what a projection, a 1×1 convolution, can bring to another width
    earlier = [use for use in coupling.uses if use.is_free_sum and use.module == f"{path}.shortcut"]
    for use in earlier:  # one module for several sums has one projection at most, so none is free
        _join_or_fix(coupling, use.node, use.inputs, use.outputs)
    if isinstance(total, ResidualSum) and isinstance(total.shortcut, nn.Identity) and is_feature_map and not earlier:
        coupling.uses.append(Use(f"{path}.shortcut", node, second, first, is_free_sum=True))
        return first
    return _join_or_fix(coupling, node, first, second)


def _join_or_fix(coupling: Coupling, node: fx.Node, first: Stream | None, second: Stream | None) -> Stream | None:
    shapes = [shape(source) for source in node.all_input_nodes[:2]]
    same_axis = first is not None and second is not None and first.axis == second.axis and shapes[0] == shapes[1]
    if first is not None and second is not None and same_axis and first.repeat == second.repeat:
        coupling.join(first, second)
        return first
    for stream in (first, second):
        coupling.fix(
            stream, f"it meets a tensor of a fixed or another shape in {operator(node)!r} ({source_line(node)})"
        )
    return _uncovered(coupling, node)


def _mean(coupling: Coupling, node: fx.Node) -> Stream | None:
    stream = coupling.read(node, node.args[0])
    before, axes = shape(node.all_input_nodes[0]), node.args[1] if len(node.args) > 1 else None
    if stream is None or before is None:
        return stream
    if not isinstance(axes, list) or any(int(axis) % len(before) <= stream.axis for axis in axes):
        return _without_rule(coupling, node)
    return stream


def _reshape(coupling: Coupling, node: fx.Node) -> Stream | None:
    """Flattening everything from the channels on: [batch, channels, ...] to [batch, channels · ...]."""
    stream = coupling.read(node, node.args[0])
    before, after = shape(node.all_input_nodes[0]), shape(node)
    if stream is None or before is None:
        return stream
    sizes = node.args[1] if operator(node) in ("view", "reshape") else None
    if isinstance(sizes, list) and len(sizes) > stream.axis and sizes[stream.axis] != -1:
        return _without_rule(coupling, node)  # the forward writes the number of channels down
    if after == before:
        return stream
    if after is None or len(after) != stream.axis + 1 or after[:-1] != before[: stream.axis]:
        return _without_rule(coupling, node)
    elements = after[-1] // before[stream.axis]
    return Stream(stream.axis, stream.source, stream.repeat * elements)


HANDS_ON = (
    *("relu", "relu6", "hardtanh", "silu", "gelu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "leaky_relu", "elu"),
    *("mish", "dropout", "feature_dropout", "clone", "contiguous", "detach", "alias"),
)
"""Operators that treat every channel alike and keep its place."""

POOLS = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d")

RULES: dict[str, Rule] = {
    **dict.fromkeys(HANDS_ON, _hands_on),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(("add", "sub", "mul", "div"), _elementwise_pair),
    **dict.fromkeys(("flatten", "view", "reshape"), _reshape),
    "conv2d": _convolution,
    "linear": _linear,
    "batch_norm": _normalisation,
    "mean": _mean,
}
"""One rule an operator: what it does to the channels it reads, and the stream of its result."""
