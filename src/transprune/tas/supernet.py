"""One network that contains every architecture of a search space (Dong & Yang, 2019, arXiv:1905.09717, section 3)."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from transprune.architecture import Architecture
from transprune.errors import DataError, OptionError, SpaceError
from transprune.kernels.feature_maps import (
    SoundConvolutions,
    add_padded,
    first_entries,
    use_channels_last,
    weighted_sum,
)
from transprune.kernels.normalisation import normalise_and_mix_over_processes
from transprune.options import ALIGNMENTS, Alignment
from transprune.reading.axes import FreeSum, StageEnd
from transprune.reading.coupling import Arguments, Function
from transprune.reading.execution import Program, Step, Surroundings
from transprune.reading.layouts import (
    Group,
    Layout,
    Sizes,
    full_size,
    groups_of,
    is_prefix,
    is_searched,
    kept_of,
    size_of,
)
from transprune.reading.networks import unwrapped
from transprune.reading.reading import Reading, read_for
from transprune.reading.stages import BlockRun
from transprune.reading.trace import Example, operator
from transprune.runtime.structures import copied, filled, inputs_of, on_device, outline
from transprune.shrinking.traced_network import cut_constant, in_mode, tensor_at
from transprune.space import SearchSpace
from transprune.tas.mixing import Mixture, align_channels, map_along, mix_along, mixed, mixture_of
from transprune.tas.sampling import Drawn, Selection

AFFINE = ("weight", "bias")
"""Scale and shift of a norm."""
RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of a norm; meaningless here, since they would average over a network that changes at every step."""


class Supernet(nn.Module):
    """A copy of a model that computes a weighted mixture of candidate widths and depths.

    It runs each operator of the model's trace once, with weights cut to the widest candidate in use. The candidates of
    a group are mixed where its channels are produced: in the batch norm after a convolution, which keeps a scale and a
    shift for each candidate, otherwise in the weights of the layer. Blocks beyond the deepest depth in use are
    skipped. Batch norms use the statistics of the batch even in evaluation mode: running averages over a network that
    changes at every step would describe none of its members.

    For the paper's networks, it computes the same as `reference.SlowSupernet`.

    Sizes of the example, such as the length of a text, are written into the trace: where inputs of other sizes come,
    the model is read again, once for each.

    Deviation: norms over channels (layer norm, group norm) normalise the mixture, not each candidate separately. A
    recurrent layer runs once, at the widest candidate in use; a narrower one is its first units.

    Deviation: where a stage's blocks go in an order of their own, its candidates are nested sets of blocks, and a block
    that only some of those in use keep is mixed as x + p (block(x) − x), in one pass; p is the weight of the ones that
    keep it. Without an order the outputs of the last blocks are mixed, as in the paper (Eq. 3).

    Its weights start as copies of the model's and keep their names; the model is untouched.

    Args:
        model: The network that `space` was read from.
        space: Its search space.
        example: An input batch, or a tuple of the forward's positional arguments.
        alignment: How feature maps of different widths are aligned: `interpolate` stretches the channels (the paper),
            `pad` leaves them in place and appends zeros.

    Raises:
        SpaceError: The space names a width group or a stage that the model does not have.
        OptionError: The alignment is unknown.

    Example:
        >>> supernet = Supernet(model, space, images)  # doctest: +SKIP
        >>> logits = supernet(parameters.sample(temperature=5.0), images)  # doctest: +SKIP
    """

    def __init__(
        self, model: nn.Module, space: SearchSpace, example: Example, *, alignment: Alignment = "interpolate"
    ) -> None:
        super().__init__()
        if alignment not in ALIGNMENTS:
            raise OptionError(
                f"cannot build a supernet with alignment={alignment!r}; expected {' or '.join(ALIGNMENTS)}"
            )
        self.space = space
        self.alignment: Alignment = alignment
        model = unwrapped(model)
        reading = read_for(model, example, space)
        _check_space(model, space, reading)
        self.network = copied(model)
        use_channels_last(self.network)
        self.plans = _Plans(model, reading, space)
        self.plan.give_rows(self.network)

    @property
    def plan(self) -> _Plan:
        """How inputs of the example's sizes run."""
        return self.plans.first

    def forward(self, selection: Selection, *inputs: Any, **named: Any) -> Any:
        """The model's outputs for the selected candidates; the inputs are those of the model's forward.

        Raises:
            DataError: The model is another network for inputs of these sizes than for the example.
            ModelError: It cannot be read at these sizes.
        """
        given = inputs_of(inputs, named)
        plan = self.plans.of(given)
        with SoundConvolutions():
            return plan.program.run(_Mixing(self, plan, selection, given), given)

    @torch.no_grad()
    def plain_weights(self, architecture: Architecture) -> dict[str, torch.Tensor]:
        """The weights that one architecture uses, under the model's names and at full width.

        Each batch norm contributes the scale and shift of the architecture's candidate, or of the next larger one.
        Running statistics are left out.
        """
        weights = {
            name: value.detach().clone()
            for name, value in self.network.state_dict().items()
            if name.rpartition(".")[2] not in RUNNING_STATISTICS
        }
        for name, group_name in self.plan.rows.items():
            group = self.space.groups[self.space.group_index[group_name]]
            index = bisect_left(group.candidates, architecture.widths.get(group.name, group.width))
            row = weights[name][index].clone()
            weights.update(dict.fromkeys(self.plan.program.aliases.get(name, (name,)), row))
        return weights


def _check_space(model: nn.Module, space: SearchSpace, reading: Reading) -> None:
    widths = {group.name: group.width for group in reading.groups}
    stages = {stage.name: len(stage.blocks) for stage in reading.stages}
    for kind, named, known in (
        ("width group", {group.name: group.width for group in space.groups}, widths),
        ("stage", {stage.name: stage.depth for stage in space.stages}, stages),
    ):
        for name, size in named.items():
            if known.get(name) != size:
                found = f"one of {known[name]}" if name in known else "none of that name"
                raise SpaceError(
                    f"cannot use this search space for {type(model).__name__}: it has the {kind} {name!r} of {size}, "
                    f"and the model has {found}; expected the space that `inspect` reads from this very network"
                )


log = logging.getLogger("transprune.run")
MANY_SIZES = 4
"""With so many sizes of inputs it is said what each of them costs."""


class _Plans:
    """How inputs of each size run: sizes are written into a trace, so that others are read when they first come.

    Args:
        model: The model, which is kept to be read again.
        reading: Its reading for the example.
        space: Its search space.
    """

    def __init__(self, model: nn.Module, reading: Reading, space: SearchSpace) -> None:
        self.model, self.space, self.trace = model, space, reading.trace
        self.first = _Plan(reading, space)
        self._by_sizes = {self._sizes(reading.trace.tensors): self.first}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Plans:
        return self  # of the same model, and what is read for one copy serves all

    def of(self, inputs: Example) -> _Plan:
        """How inputs run, whatever their number of samples.

        Raises:
            DataError: They are nested otherwise than the example, or the model is another network at their sizes.
            ModelError: The model cannot be read at their sizes.
        """
        tensors = self.trace.tensors_of(inputs)
        sizes = self._sizes(tensors)
        if sizes not in self._by_sizes:
            started = time.perf_counter()
            with torch.autocast(tensors[0].device.type, enabled=False):  # casts would be traced
                plan = _Plan(read_for(self.model, inputs, self.space), self.space)
            self._check(plan, inputs)
            self._by_sizes[sizes] = plan
            if len(self._by_sizes) == MANY_SIZES:
                log.warning(
                    "inputs come in many sizes, such as %s: the network is read anew for each (this one took %.1f s); "
                    "pad them to a few sizes to save that time",
                    outline(inputs),
                    time.perf_counter() - started,
                )
        return self._by_sizes[sizes]

    def _sizes(self, tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
        return tuple(map(tuple, self.trace.shapes_of(tensors, 0)))

    def _check(self, plan: _Plan, inputs: Example) -> None:
        if plan.described() != self.first.described():
            raise DataError(
                f"cannot run the supernet of {type(self.model).__name__} on inputs of {outline(inputs)}: at these "
                f"sizes its blocks or channels depend on each other in another way than at those of the "
                f"example, {outline(filled(self.trace.given, self.trace.tensors))}; expected inputs of the example's "
                "sizes, or an example of the sizes that come"
            )


class _Plan:
    """Where a supernet mixes its candidates, decided once at construction.

    Args:
        reading: The reading of the model.
        space: Its search space.
    """

    def __init__(self, reading: Reading, space: SearchSpace) -> None:
        self.program = Program(reading)
        self.searched = {group.name: len(group.candidates) for group in space.groups}
        self.candidate_norms: dict[fx.Node, str] = {}
        """Batch norms directly after a convolution, with the name of the group that they normalise."""
        self.affine: dict[fx.Node, list[str]] = {}
        """The names of scale and shift, for the `candidate_norms` that have both as parameters."""
        self.mixed_norms: dict[fx.Node, Layout] = {}
        """Other batch norms over searched channels, with the layout of these channels."""
        self.mixed_layers: dict[fx.Node, int] = {}
        """Convolutions and linear layers that mix their own outputs, with the axis of the output that is mixed."""
        self.rows: dict[str, str] = {}
        """Parameters with a row for each candidate, with the name of their group."""
        self.free_sums = self.program.free_sums
        self.in_place = frozenset(node for node in reading.trace.calls if self._may_write_over_input(reading, node))
        """ReLUs that may overwrite their input."""
        for node in reading.trace.calls:
            if operator(node) == "batch_norm":
                self._place_norm(reading, node)
        for facts in reading.layers:
            node = facts.use.node
            is_layer = facts.use.operator in ("conv", "linear") and node not in self.mixed_layers
            if is_layer and self._is_searched(facts.outputs) and not self._is_normed(node):
                groups = reading.rewrites.get(node, {}).get("groups", ())
                if isinstance(groups, tuple) or not is_searched(groups):
                    several = isinstance(reading.values[node][0], tuple)  # results of a recurrent layer
                    self.mixed_layers[node] = -1 if several else facts.use.along % len(reading.values[node])
        norms = [node for node in reading.trace.calls if operator(node) == "batch_norm"]
        self.program = self.program.without_reads(
            {node: (*RUNNING_STATISTICS, *(AFFINE if node in self.affine else ())) for node in norms}
        )

    def _is_searched(self, layout: Layout) -> bool:
        return any(name in self.searched for name in groups_of(layout))

    def _may_write_over_input(self, reading: Reading, node: fx.Node) -> bool:
        """Whether the node is a ReLU, nothing else reads its input, and no gradient needs that input."""
        if operator(node) != "relu" or node.args[0] in {each for stage in reading.stages for each in stage.exits}:
            return False
        source = node.all_input_nodes[0]
        return len(source.users) == 1 and (operator(source) == "batch_norm" or source in self.free_sums)

    def _is_normed(self, node: fx.Node) -> bool:
        return (
            any(user in self.candidate_norms or user in self.mixed_norms for user in node.users)
            and len(node.users) == 1
        )

    def _place_norm(self, reading: Reading, node: fx.Node) -> None:
        channels: Layout = reading.values[node][1]
        if not self._is_searched(channels):
            return
        source = node.all_input_nodes[0]
        is_behind_convolution = operator(source).startswith("conv") and len(source.users) == 1
        if not (is_behind_convolution and isinstance(channels, Group)):
            if not isinstance(channels, FreeSum | StageEnd):  # these arrive mixed
                self.mixed_norms[node] = channels
            return
        self.candidate_norms[node] = channels.name
        names = [reading.trace.parameter(source) for source in node.args[1:3]]
        if len(names) == 2 and None not in names:
            self.affine[node] = [name for name in names if name is not None]
        for place in (1, 2):
            source_node = node.args[place] if len(node.args) > place else None
            name = reading.trace.parameter(source_node)
            if name is None or not isinstance(source_node, fx.Node) or len(source_node.users) > 1:
                continue
            self.rows[name] = channels.name

    def described(self) -> tuple[Any, ...]:
        """All that decides which part of a parameter a candidate reads."""
        reading = self.program.reading
        constants = reading.trace.constants
        states = {name: layouts for name, layouts in reading.states.items() if name not in constants}
        return states, {stage.name: stage.blocks for stage in reading.stages}, reading.free, reading.ends, self.rows

    def give_rows(self, network: nn.Module) -> None:
        """Gives scales and shifts of a copy of the model a row for each candidate."""
        for name, group in self.rows.items():
            parent, _, own = name.rpartition(".")
            module = network.get_submodule(parent)
            parameter: nn.Parameter = getattr(module, own)
            rows = parameter.detach().repeat(self.searched[group], 1)
            setattr(module, own, nn.Parameter(rows, parameter.requires_grad))


class _Mixing(Surroundings):
    """The state and operators of a supernet during one forward: the candidates in use, and how they are mixed.

    `Program.run` calls `function` for every operator and `stage_end` after every stage.
    """

    def __init__(self, supernet: Supernet, plan: _Plan, selection: Selection, inputs: Example) -> None:
        widths = {name: max(choice.sizes) for name, choice in selection.widths.items()}
        self.shares: dict[tuple[str, int], Tensor] = {}
        """Weight of each block that only some of the candidates in use keep, where blocks are mixed one by one."""
        blocks = {name: self._in_use(supernet.space, name, drawn) for name, drawn in selection.depths.items()}
        trace = plan.program.reading.trace
        samples = trace.samples_in(trace.tensors_of(inputs))
        super().__init__(Sizes(widths, blocks, samples, is_supernet=True))
        self.supernet = supernet
        self.selection = selection
        self.plan = plan
        self.reading = plan.program.reading
        self.alignment = supernet.alignment

    def _in_use(self, space: SearchSpace, name: str, drawn: Drawn) -> tuple[tuple[int, ...], ...]:
        """The blocks of each candidate in use; one set of all where blocks are mixed one by one."""
        stage = space.stages[space.stage_index[name]]
        kept = tuple(map(stage.kept, drawn.sizes))
        if not stage.order:
            return kept
        everything = max(kept, key=len)
        for place in everything:
            among = [sample for sample, each in enumerate(kept) if place in each]
            if len(among) < len(kept):
                self.shares[name, place] = drawn.weights[among].sum()
        return (everything,)

    def share(self, stage: BlockRun, position: int) -> Tensor | None:
        return self.shares.get((stage.name, position))

    def state(self, name: str) -> Tensor:
        if name in self.reading.trace.constants:
            constant = cut_constant(self.plan.program, name, self.sizes)
            moved: Tensor = on_device(constant, next(self.supernet.parameters()).device)
            return moved
        tensor = tensor_at(self.supernet.network, name)
        assert tensor is not None  # the supernet keeps all modules
        if name in self.plan.rows:
            return tensor
        layouts = self.reading.states[name]
        sizes = [size_of(layout, self.sizes) for layout in layouts]
        if tuple(sizes) == tensor.shape:
            return tensor
        if all(is_prefix(layout) or full_size(layout) == size for layout, size in zip(layouts, sizes, strict=True)):
            return first_entries(tensor, sizes)
        for axis, layout in enumerate(layouts):
            if sizes[axis] < tensor.shape[axis]:
                kept = torch.from_numpy(kept_of(layout, self.sizes, self.reading.first_units))
                tensor = tensor.index_select(axis, on_device(kept, tensor.device))
        return tensor

    def function(self, step: Step) -> Function:
        node, plan = step.node, self.plan
        if step.operator == "batch_norm":
            norm = self._candidate_norm if node in plan.candidate_norms else self._norm
            return lambda arguments: norm(node, arguments)
        if node in plan.in_place:
            return lambda arguments: torch.relu_(arguments["self"])
        if node in plan.mixed_layers:
            return lambda arguments: self._mixed_layer(step, arguments)
        if node in plan.free_sums:
            keeps_main_width = not isinstance(self.reading.values[node][1], FreeSum)
            shortcut = self.supernet.network.get_submodule(plan.free_sums[node])
            return lambda arguments: padded_sum(
                arguments["self"], shortcut(arguments["other"]), keeps_main_width=keeps_main_width
            )
        if step.rule.in_training:
            return in_mode(step, self.supernet.training or step.operator == "instance_norm")
        return step.function

    def _candidate_norm(self, node: fx.Node, arguments: Arguments) -> Tensor:
        """The mixture of one batch norm per candidate width.

        The candidates are prefixes of one feature map, so a channel has the same batch statistics in each of them and
        is normalised once. Scaling, aligning and adding are linear in the result, so one map does all three for all
        candidates.
        """
        mixture, shift = self._mixed_affine.get(node) or mixed(
            self._mixtures(node, arguments["weight"], arguments["bias"])
        )
        # Here the candidate widths are mixed; depths are in `stage_end`, or in `Program._hand_on` block by block.
        return normalise_and_mix_over_processes(arguments["input"], mixture, shift, arguments["eps"])

    @cached_property
    def _mixed_affine(self) -> dict[fx.Node, tuple[Tensor, Tensor]]:
        """The mixed scales and shifts of all norms in `plan.affine`; made together, because each is small."""
        found = {
            step.node: self._mixtures(step.node, *(self.state(name) for name in self.plan.affine[step.node]))
            for step in self.plan.program.steps
            if step.node in self.plan.affine and self.runs(step)
        }
        results = iter(mixed([mixture for pair in found.values() for mixture in pair]) if found else ())
        scale_and_shift = zip(results, results, strict=True)  # they come as scale, shift, scale, shift, …
        return dict(zip(found, scale_and_shift, strict=True))

    def _mixtures(self, node: fx.Node, scales: Tensor | None, shifts: Tensor | None) -> tuple[Mixture, Mixture]:
        choice = self.selection.widths[self.plan.candidate_norms[node]]
        if shifts is None:
            shifts = choice.weights.new_zeros(max(choice.sizes))
        return (
            mixture_of(choice, self.alignment, scales),
            mixture_of(choice, self.alignment, shifts, is_applied=True),
        )

    def _norm(self, node: fx.Node, arguments: Arguments) -> Tensor:
        """Any other batch norm; it also mixes its channels if they are searched and arrive unmixed."""
        features: Tensor = arguments["input"]
        layout = self.plan.mixed_norms.get(node)
        weight, bias = arguments["weight"], arguments["bias"]
        scale = features.new_ones(features.shape[1]) if weight is None else weight
        shift = features.new_zeros(features.shape[1]) if bias is None else bias
        if layout is not None:
            matrix = map_along(layout, self.selection, self.sizes, self.alignment, features)
            scale = matrix * scale
            shift = matrix * shift if matrix.dim() == 1 else matrix @ shift
        return normalise_and_mix_over_processes(features, scale, shift, arguments["eps"])

    def _mixed_layer(self, step: Step, arguments: Arguments) -> Any:
        """A layer that mixes its outputs: in its weights if it is linear in them, otherwise in its result."""
        axis, in_weight = self.plan.mixed_layers[step.node], step.rule.weight_outputs
        layouts = self.reading.values[step.node]
        if in_weight is None:
            results = in_mode(step, self.supernet.training)(arguments)
            if isinstance(results, Tensor):
                return self._mixed_result(results, layouts[axis], axis)
            return [self._mixed_result(each, own[axis], axis) for each, own in zip(results, layouts, strict=True)]
        layout: Layout = layouts[axis]
        weight, bias = arguments["weight"], arguments["bias"]
        matrix = map_along(layout, self.selection, self.sizes, self.alignment, weight)
        # Mixing weights cannot mix channels across the groups of a convolution: each reads different inputs.
        if arguments.get("groups", 1) > 1 and (in_weight == 1 or matrix.dim() == 2):
            return mix_along(step.function(arguments), matrix, axis)
        arguments["weight"] = mix_along(weight, matrix, in_weight)
        arguments["bias"] = None if bias is None else mix_along(bias, matrix, 0)
        return step.function(arguments)

    def _mixed_result(self, result: Tensor, layout: Layout, axis: int) -> Tensor:
        if not any(name in self.selection.widths for name in groups_of(layout)):
            return result
        place = axis % result.dim()
        return mix_along(result, map_along(layout, self.selection, self.sizes, self.alignment, result), place)

    def stage_end(self, stage: BlockRun, handed_on: Sequence[Tensor]) -> Tensor:
        choice = self.selection.depths.get(stage.name)
        if choice is None or len(handed_on) == 1:
            return handed_on[-1]
        widest = max(kept.shape[1] for kept in handed_on)
        return weighted_sum([align_channels(kept, widest, self.alignment) for kept in handed_on], choice.weights)


def padded_sum(main: Tensor, shortcut: Tensor, *, keeps_main_width: bool) -> Tensor:
    """A residual sum, with the narrower side padded with channels of zeros.

    Args:
        main: [batch, channels, ...].
        shortcut: [batch, channels, ...].
        keeps_main_width: Cut the shortcut to the width of the main side, because other layers share that width.
            Otherwise the sum is as wide as the wider side, as in the paper.
    """
    if keeps_main_width:
        shortcut = shortcut[:, : main.shape[1]]
    return add_padded(main, shortcut)
