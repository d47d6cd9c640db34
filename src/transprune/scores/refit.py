"""One pass through a network, first layer to last, in which every layer is fitted to what the unpruned one gives.

Each layer sees the inputs that the pruned network really gives it, those before it fitted already, and is fitted to the
outputs of the unpruned network: so errors are made good rather than added up. Layer by layer and in closed form it is
what He et al. (2017, arXiv:1707.06168) do once for each layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from transprune.architecture import Architecture
from transprune.errors import DataError, TranspruneError, first_line
from transprune.options import at_least
from transprune.reading.coupling import PRODUCERS, Arguments, Function, Use
from transprune.reading.execution import Program, Step, Surroundings
from transprune.reading.layouts import Layout, Order, Sizes, is_searched, kept_of
from transprune.reading.networks import unwrapped
from transprune.reading.reading import Reading, read
from transprune.reading.stages import BlockRun
from transprune.reading.trace import Example, inputs_for, operator, shape
from transprune.runtime.structures import copied, tensors_in
from transprune.scores.least_squares import (
    Moments,
    as_matrix,
    as_weight,
    centre,
    draw_places,
    fit,
    inputs_at,
    outputs_at,
    shift_of,
)
from transprune.shrinking.traced_network import PlainRun, sizes_of, tensor_at
from transprune.training.evaluation import evaluation_mode

SCALE, RUNNING_MEAN, RUNNING_VARIANCE, EPSILON = 1, 3, 4, 7
"""Places among the arguments of a batch norm."""
RIDGE = 1e-3
"""How strongly fitted weights are drawn towards those that were inherited, as a share of the inputs' mean square."""


@dataclass(frozen=True)
class FittedLayer:
    """A convolution or linear layer whose weights may be fitted."""

    node: fx.Node = field(repr=False)
    weight: str
    """Path of its weight."""
    inputs: Layout
    """Its input channels, of a grouped convolution those of one group."""
    outputs: Layout
    axis: int
    """Where the channels of its outputs stand."""
    bias: str | None
    """Path of its bias."""
    norm: fx.Node | None = field(repr=False)
    """The batch norm that alone reads it."""
    total: fx.Node | None = field(repr=False)
    """The sum that alone reads it, or the norm behind it."""

    @property
    def has_shift(self) -> bool:
        """Whether a constant can be added to its outputs: in its bias, or in the running mean behind it."""
        return self.bias is not None or self.norm is not None

    def norm_state(self, reading: Reading, argument: int) -> str | None:
        """Path of a parameter or buffer of the norm behind it, by its place among the arguments."""
        assert self.norm is not None
        return reading.trace.state(self.norm.args[argument])

    def columns(self, kept: np.ndarray, kernel: int) -> Tensor:
        """The inputs × kernel that certain input channels stand for."""
        return torch.from_numpy((kept[:, None] * kernel + np.arange(kernel)).reshape(-1))


def fitted_layers(reading: Reading) -> dict[fx.Node, FittedLayer]:
    """The layers that can be fitted: convolutions and linear layers that are called once, on places that stay."""
    uses = [facts.use for facts in reading.layers if facts.use.operator in PRODUCERS and facts.use.weight is not None]
    calls = Counter(str(use.weight) for use in uses)
    found = (_fitted_layer(reading, use) for use in uses if calls[str(use.weight)] == 1)
    return {layer.node: layer for layer in found if layer is not None}


def _fitted_layer(reading: Reading, use: Use) -> FittedLayer | None:
    name, axes, weight = operator(use.node), reading.values[use.node], reading.states[str(use.weight)]
    if name.startswith("conv") and "transpose" not in name and len(axes) == len(weight):
        axis = 1
    elif name == "linear" and len(weight) == 2 and len(axes) > 1:
        axis = len(axes) - 1
    else:
        return None
    if any(is_searched(layout) for place, layout in enumerate(axes) if place != axis):
        return None
    norm = _only_reader(use.node, "batch_norm")
    if norm is not None and not _has_own_statistics(norm):
        norm = None
    return FittedLayer(
        node=use.node,
        weight=str(use.weight),
        inputs=weight[1],
        outputs=axes[axis],
        axis=axis,
        bias=use.bias,
        norm=norm,
        total=_only_reader(norm or use.node, "add"),
    )


def _only_reader(node: fx.Node, kind: str) -> fx.Node | None:
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    return reader if reader is not None and operator(reader) == kind and shape(reader) == shape(node) else None


def _has_own_statistics(norm: fx.Node) -> bool:
    statistics = norm.args[3:5]
    return len(statistics) == 2 and all(isinstance(each, fx.Node) and len(each.users) == 1 for each in statistics)


@dataclass(frozen=True)
class Targets:
    """What the unpruned network gives at the places of each layer [places, channels], and what it returns."""

    wanted: Mapping[fx.Node, Tensor]
    """By layer, and by the sum behind it."""
    outputs: Any


class Watched(Surroundings):
    """Another run, of which certain calls are told what they read and gave.

    Args:
        run: The other run.
        watches: By call, what takes its function and arguments and gives what is handed on.
    """

    def __init__(self, run: PlainRun, watches: Mapping[fx.Node, Callable[[Function, Arguments], Any]]) -> None:
        super().__init__(run.sizes)
        self.run, self.watches = run, watches

    def state(self, name: str) -> Tensor:
        return self.run.state(name)

    def stage_end(self, stage: BlockRun, handed_on: Sequence[Tensor]) -> Tensor:
        return self.run.stage_end(stage, handed_on)

    def function(self, step: Step) -> Function:
        inner, watch = self.run.function(step), self.watches.get(step.node)
        return inner if watch is None else partial(watch, inner)


@torch.no_grad()
def record_targets(network: nn.Module, program: Program, inputs: tuple[Tensor, ...]) -> Targets:
    """Runs the unpruned network on samples, in evaluation mode, and writes down what each layer gives.

    Raises:
        DataError: It fails on them.
    """
    wanted: dict[fx.Node, Tensor] = {}

    def record(node: fx.Node, axis: int, function: Function, arguments: Arguments) -> Any:
        outputs = function(arguments)
        wanted[node] = outputs_at(outputs, axis, draw_places(outputs.numel() // outputs.shape[axis]))
        return outputs

    layers = fitted_layers(program.reading).values()
    watches = {layer.node: partial(record, layer.node, layer.axis) for layer in layers}
    watches |= {layer.total: partial(record, layer.total, layer.axis) for layer in layers if layer.total is not None}
    try:
        outputs = program.run(Watched(PlainRun(network, program, Sizes()), watches), inputs)
    except TranspruneError:
        raise
    except Exception as error:  # operators raise many kinds
        count = program.reading.trace.samples_in(tuple(tensors_in(inputs)))
        raise DataError(
            f"cannot score {type(network).__name__} on {count} samples at once: it fails on them "
            f"({first_line(error)}); expected inputs that its forward takes; where it takes so many samples only, ask "
            "for fewer (samples=…, --samples)"
        ) from error
    return Targets(wanted, outputs)


class _Fitted(Watched):
    """A run with parameters and buffers in place of some of its own.

    Args:
        run: The other run.
        fitted: Parameters and buffers by path.
        watches: As of `Watched`.
    """

    def __init__(
        self,
        run: PlainRun,
        fitted: dict[str, Tensor],
        watches: Mapping[fx.Node, Callable[[Function, Arguments], Any]],
    ) -> None:
        super().__init__(run, watches)
        self.fitted = fitted
        """Parameters and buffers that were fitted, by path."""

    def state(self, name: str) -> Tensor:
        paths = self.run.program.aliases.get(name, (name,))
        fitted = next((self.fitted[path] for path in paths if path in self.fitted), None)
        return self.run.state(name) if fitted is None else fitted


class Refit(_Fitted):
    """A run that fits each layer as it comes to it, in evaluation mode.

    Where a layer's outputs go into a sum alone, what the sum should be is what they are fitted to: they then make good
    what the other side has lost.

    Args:
        run: The run whose weights the fit starts from.
        targets: What the unpruned network gives.
        only: The layers to fit; None: all.
        ridge: How strongly fitted weights are drawn towards those that were there.
        units: The unpruned network's units of each group, in the order in which the run's were cut; None: as the run
            has them.
    """

    def __init__(
        self,
        run: PlainRun,
        targets: Targets,
        *,
        only: Collection[fx.Node] | None = None,
        ridge: float = RIDGE,
        units: Order | None = None,
    ) -> None:
        self.moments: dict[fx.Node, Moments] = {}
        """Of each layer that was fitted, its own outputs being wanted."""
        self._targets, self._ridge, self._units = targets, ridge, units or run.order
        self._begun: dict[fx.Node, _Begun] = {}
        layers = [layer for node, layer in fitted_layers(run.program.reading).items() if only is None or node in only]
        watches: dict[fx.Node, Any] = {layer.node: partial(self._fit, layer) for layer in layers}
        for layer in layers:
            if layer.total is not None:
                # Both sides of a sum may be layers: the later one makes good the earlier one's error.
                watches[layer.total] = partial(self._correct, layer)
        super().__init__(run, {}, watches)

    def as_fitted(self) -> Watched:
        """The run with what was fitted, which fits nothing any more: for samples that nothing was fitted to."""
        return _Fitted(self.run, self.fitted, {})

    def _fit(self, layer: FittedLayer, function: Function, arguments: Arguments) -> Any:
        """Fits a layer to its own outputs in the unpruned network."""
        weight = arguments["weight"]
        groups = arguments.get("groups", 1)
        spatial = tuple(shape(layer.node) or ())[2:] if "groups" in arguments else ()
        places = draw_places(_count_places(arguments, spatial))
        inputs = inputs_at(arguments, spatial, places)
        centred, mean = centre(inputs, has_shift=layer.has_shift)
        wanted = self._wanted(layer, layer.node)
        moments = self.moments[layer.node] = Moments.of(centred, mean, wanted, has_shift=layer.has_shift)
        columns = self._columns(layer, weight[0, 0].numel())
        matrix = fit(moments, as_matrix(weight, groups), columns=columns, ridge=self._ridge)
        outputs = function(self._changed(layer, arguments, matrix, moments))
        if layer.total is not None:
            self._begun[layer.node] = _Begun(arguments, function, centred, places, columns, matrix)
        return outputs

    def _columns(self, layer: FittedLayer, kernel: int) -> Tensor | None:
        """Which of the inputs that arrive a layer may read; None: all."""
        return None

    def _correct(self, layer: FittedLayer, function: Function, arguments: Arguments) -> Any:
        """Fits a layer again, to what the sum behind it should be."""
        total: Tensor = function(arguments)
        begun = self._begun.pop(layer.node, None)
        assert layer.total is not None
        if begun is None:  # it is in a block that was left out
            return total
        scale = self._scale(layer, total)
        missing = self._wanted(layer, layer.total) - outputs_at(total, layer.axis, begun.places)
        is_deaf = scale.abs() < 1e-3 * scale.abs().max()
        missing = torch.where(is_deaf, torch.zeros_like(missing), missing / torch.where(is_deaf, 1.0, scale))
        first = self.moments[layer.node]
        now = (begun.centred @ begun.matrix.to(total.dtype)).movedim(0, 1).flatten(1)
        wanted = now + first.outputs.flatten().to(total.dtype) + missing
        moments = first.wanting(begun.centred, wanted, has_shift=layer.has_shift)
        matrix = fit(moments, begun.matrix, columns=begun.columns, ridge=self._ridge)
        weight = begun.arguments["weight"]
        after = self._changed(layer, begun.arguments, matrix, moments)
        change = {**after, "weight": after["weight"] - as_weight(begun.matrix, weight), "bias": None}
        if layer.has_shift:
            change["bias"] = shift_of(moments, matrix).to(total.dtype) - shift_of(first, begun.matrix).to(total.dtype)
        lasting = begun.function(change)
        return total + lasting * scale.view(-1, *[1] * (total.dim() - layer.axis - 1))

    def _wanted(self, layer: FittedLayer, node: fx.Node) -> Tensor:
        kept = torch.from_numpy(kept_of(layer.outputs, self.sizes, self._units))
        wanted = self._targets.wanted[node]
        return wanted.index_select(1, kept.to(wanted.device))

    def _changed(self, layer: FittedLayer, arguments: Arguments, matrix: Tensor, moments: Moments) -> Arguments:
        """The arguments of a call with fitted weights, which are kept."""
        weight = self.fitted[layer.weight] = as_weight(matrix, arguments["weight"])
        changed = {**arguments, "weight": weight}
        if layer.has_shift:
            shift = shift_of(moments, matrix).to(weight.dtype)
            if layer.bias is not None:
                self.fitted[layer.bias] = changed["bias"] = shift
            else:
                mean = layer.norm_state(self.run.program.reading, RUNNING_MEAN)
                assert mean is not None
                self.fitted[mean] = self.run.state(mean) - shift
        return changed

    def _scale(self, layer: FittedLayer, total: Tensor) -> Tensor:
        """What one more in each channel of a layer becomes in the sum behind it [channels]."""
        if layer.norm is None:
            return total.new_ones(total.shape[layer.axis])
        weight, variance = (layer.norm_state(self.run.program.reading, place) for place in (SCALE, RUNNING_VARIANCE))
        assert variance is not None
        scale: Tensor = (self.run.state(variance) + float(layer.norm.args[EPSILON])).rsqrt()  # type: ignore[arg-type]
        return scale if weight is None else scale * self.run.state(weight)


@dataclass(frozen=True)
class _Begun:
    """A layer that was fitted to its own outputs, and waits for the sum behind it."""

    arguments: Arguments
    function: Function
    centred: Tensor
    places: Tensor
    columns: Tensor | None
    matrix: Tensor


def _count_places(arguments: Arguments, spatial: tuple[int, ...]) -> int:
    """Samples × positions of a layer's outputs."""
    inputs: Tensor = arguments["input"]
    return inputs.shape[0] * prod(spatial) if "groups" in arguments else inputs.numel() // inputs.shape[-1]


def repair(
    student: nn.Module,
    teacher: nn.Module,
    architecture: Architecture,
    samples: Example,
    *,
    ridge: float = RIDGE,
    reading: Reading | None = None,
) -> nn.Module:
    """A copy of a smaller network whose layers are fitted to what the unpruned one gives. Labels are not needed.

    Every convolution and linear layer, from the first to the last, gets the weights that come closest, in the mean
    square, to the outputs that it has in the unpruned network, from the inputs that it has in the smaller one. Where
    its outputs are added to others, the sum is what they come closest to. Batch norms keep their statistics: constants
    go into the bias, or the running mean behind. Transposed convolutions and layers that are called several times stay
    as they are.

    Args:
        student: What `shrink(teacher, architecture, samples)` gave, or that network trained further; untouched.
        teacher: The unpruned network, its channels in the order in which they were cut; untouched.
        architecture: The student's widths and depths.
        samples: A batch of inputs, or a tuple of the forward's positional arguments; some hundreds of samples. All are
            run at once.
        ridge: How strongly the new weights are drawn towards the student's, as a share of the inputs' mean square.
        reading: What is known of the teacher already.

    Raises:
        ModelError: The teacher cannot be read (see `inspect`).
    """
    at_least("ridge", ridge, 0)
    teacher = unwrapped(teacher)
    reading = read(teacher, samples, reading).in_blocks.naming(architecture.blocks)
    with evaluation_mode(teacher):
        targets = record_targets(teacher, Program(reading), inputs_for(teacher, samples))
    return repair_read(student, reading, targets, architecture, samples, ridge=ridge)


@torch.no_grad()
def repair_read(
    student: nn.Module,
    reading: Reading,
    targets: Targets,
    architecture: Architecture,
    samples: Example,
    *,
    ridge: float = RIDGE,
    units: Order | None = None,
) -> nn.Module:
    """`repair` for a network that is read and has run already; for many students of one teacher.

    The channels of that network may stand in another order than that in which they were cut: `units` has the latter.
    """
    repaired, program = copied(student), Program(reading)
    with evaluation_mode(repaired):
        run = PlainRun(repaired, program, sizes_of(architecture, reading))
        refit = Refit(run, targets, ridge=ridge, units=units)
        program.run(refit, inputs_for(repaired, samples))
    for name, fitted in refit.fitted.items():
        for path in program.aliases.get(name, (name,)):
            tensor = tensor_at(repaired, path)
            if tensor is not None:
                tensor.copy_(fitted)
    return repaired
