"""What the samples show of a network around one architecture: the ground on which candidates are scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from transprune.architecture import Architecture
from transprune.errors import SpaceError
from transprune.reading.execution import Program
from transprune.reading.layouts import Sizes, groups_of, is_searched, kept_of
from transprune.reading.reading import Reading
from transprune.reading.trace import Example
from transprune.runtime.structures import called, sliced, tensors_in
from transprune.scores.least_squares import Moments, as_matrix, as_weight, fit, shift_of
from transprune.scores.refit import RIDGE, RUNNING_MEAN, FittedLayer, Refit, Targets, fitted_layers, record_targets
from transprune.shrinking.sort import channel_orders, tied_groups, units_of
from transprune.shrinking.traced_network import CutRun, PlainRun, sizes_of
from transprune.space import SearchSpace
from transprune.training.tasks import Task, distillation_loss, imitation_loss

Distance = Callable[[Any, Any], Tensor]
"""From a network's outputs and the unpruned one's to how far they have moved, one number."""
TEMPERATURE = 4.0
"""Of the softmax in which logits are compared."""


def distance_of(task: Task) -> Distance:
    """How far outputs have moved, for a task: the teacher's part of its distillation loss. Labels are not needed.

    A distillation loss of the task's own is given None for targets.
    """
    own = task.distillation_loss
    if own is not None:
        return lambda outputs, wanted: own(outputs, wanted, None)
    if task.outputs != "values":
        return lambda outputs, wanted: distillation_loss(
            task.logits_of(outputs), task.logits_of(wanted), None, weight=1.0, temperature=TEMPERATURE, loss=_nothing
        )
    return lambda outputs, wanted: imitation_loss(outputs, wanted, None, weight=1.0, loss=_nothing)


def _nothing(*_: Any) -> Tensor:
    return torch.zeros(())


@dataclass(frozen=True)
class OtherSamples:
    """Samples that candidates are tried on."""

    inputs: Example = field(repr=False)
    wanted: Any = field(repr=False)
    """What the unpruned network gives for them."""


class Halves:
    """Samples of which layers are fitted on every second one, and candidates tried on the others.

    Few and wide layers look better than they are on the samples that they are fitted on.

    Args:
        network: The unpruned network, in evaluation mode.
        program: Its operators.
        inputs: All samples.
    """

    def __init__(self, network: nn.Module, program: Program, inputs: Example) -> None:
        self.network, self.program, self.all_inputs = network, program, inputs
        self.inputs = program.reading.trace.some_of(inputs, slice(0, None, 2))
        """Those that layers are fitted on."""
        self._others = program.reading.trace.some_of(inputs, slice(1, None, 2))
        self._weights = _digest(network)

    @cached_property
    def targets(self) -> Targets:
        """What the unpruned network gives for those that layers are fitted on."""
        return record_targets(self.network, self.program, self.inputs)

    @cached_property
    def all_targets(self) -> Targets:
        """What the unpruned network gives for all samples."""
        return record_targets(self.network, self.program, self.all_inputs)

    @cached_property
    def others(self) -> OtherSamples:
        """What candidates are tried on."""
        with torch.no_grad():
            return OtherSamples(self._others, called(self.network, self._others))

    @property
    def bytes(self) -> int:
        """The memory that is taken by the samples and by what was recorded of them."""
        recorded = [each for each in vars(self).values() if isinstance(each, Targets | OtherSamples)]
        return sum(tensor.nbytes for tensor in tensors_in([self.all_inputs, *recorded]))

    def are_of(self, network: nn.Module, program: Program, inputs: Example) -> bool:
        """Whether they are the same samples of the same network, with the weights that it has now."""
        here, there = (list(tensors_in(each)) for each in (self.all_inputs, inputs))
        return (
            self.network is network
            and self.program.reading.trace is program.reading.trace
            and len(here) == len(there)
            and all(a.device == b.device and torch.equal(a, b) for a, b in zip(here, there, strict=True))
            and self._weights == _digest(network)
        )


def _digest(network: nn.Module) -> bytes:
    """A digest of a network's weights and buffers, which changes with any of them."""
    digest = hashlib.blake2b()
    for tensor in (*network.parameters(), *network.buffers()):
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


@dataclass(frozen=True)
class Evidence:
    """A network in evaluation mode, samples, and what one pass over these has shown around an architecture."""

    network: nn.Module
    """The unpruned network."""
    program: Program
    space: SearchSpace
    inputs: Example
    """The samples that layers are fitted on."""
    targets: Targets
    """What the unpruned network gives for them."""
    others: OtherSamples
    """What candidates are tried on."""
    distance: Distance
    centre: Architecture
    """The architecture that is looked around from."""
    orders: Mapping[str, np.ndarray]
    """The units of each group, the most important first."""
    lost: Mapping[str, np.ndarray]
    """For each group that fitted layers read, their error by how many of its units are kept [width + 1], as a share of
    their outputs' variance."""
    moments: Mapping[fx.Node, Moments] = field(repr=False)
    """Of each fitted layer, over all units, in the architecture."""
    fitted: Mapping[str, Tensor] = field(repr=False)
    """Parameters and buffers that were fitted in it, at full size."""
    outputs: Any = field(repr=False)
    """What the network gives in it for the other samples."""

    @cached_property
    def layers(self) -> dict[fx.Node, FittedLayer]:
        """The layers that can be fitted."""
        return fitted_layers(self.program.reading)

    def order(self, group: str) -> np.ndarray:
        """The units of a group, the most important first."""
        return self.orders[group]

    def first(self, samples: int) -> Evidence:
        """The same with fewer samples to try candidates on."""
        trace, some = self.program.reading.trace, slice(0, samples)
        count = trace.samples_in(trace.tensors_of(self.others.inputs))
        inputs, wanted = (
            trace.some_of(self.others.inputs, some),
            sliced(self.others.wanted, some, count, trace.sample_axis),
        )
        outputs = sliced(self.outputs, some, count, trace.sample_axis)
        return replace(self, others=OtherSamples(inputs, wanted), outputs=outputs)

    @torch.no_grad()
    def without_units(self, group: str, width: int) -> Tensor:
        """How far the outputs move with another width of one group, its readers fitted again."""
        sizes = sizes_of(replace(self.centre, widths={**self.centre.widths, group: width}), self.program.reading)
        changed = dict(self.fitted)
        for layer in self.layers.values():
            if layer.node in self.moments and group in groups_of(layer.inputs):
                changed |= self._fitted_again(layer, sizes)
        run = CutRun(self.network, self.program, sizes, self.order, changed)
        return self.distance(self.program.run(run, self.others.inputs), self.others.wanted)

    @torch.no_grad()
    def without_blocks(self, stage: str, depth: int) -> Tensor:
        """How far the outputs move with another depth of one stage, the layers that read its end fitted again."""
        kept = self.space.stages[self.space.stage_index[stage]].kept(depth)
        here = sizes_of(self.centre, self.program.reading)
        run = CutRun(
            self.network, self.program, Sizes(here.widths, {**here.blocks, stage: (kept,)}), self.order, self.fitted
        )
        refit = Refit(run, self.targets, only=readers_behind(self.program.reading, stage, self.layers))
        self.program.run(refit, self.inputs)
        return self.distance(self.program.run(refit.as_fitted(), self.others.inputs), self.others.wanted)

    def _fitted_again(self, layer: FittedLayer, sizes: Sizes) -> dict[str, Tensor]:
        """What a layer's weights become at other sizes of what it reads, at full size."""
        moments = self.moments[layer.node]
        weight = self.fitted[layer.weight]
        columns = layer.columns(kept_of(layer.inputs, sizes, self.order), weight[0, 0].numel())
        matrix = fit(moments, as_matrix(weight, len(moments.gram)), columns=columns, ridge=RIDGE)
        found = {layer.weight: as_weight(matrix, weight)}
        if layer.has_shift:
            shift = shift_of(moments, matrix).to(weight.dtype)
            if layer.bias is not None:
                found[layer.bias] = shift
            else:
                mean = layer.norm_state(self.program.reading, RUNNING_MEAN)
                assert mean is not None
                found[mean] = PlainRun(self.network, self.program, Sizes()).state(mean) - shift
        return found


@torch.no_grad()
def gather_evidence(
    network: nn.Module,
    program: Program,
    space: SearchSpace,
    *,
    samples: Halves,
    distance: Distance,
    centre: Architecture,
    orders: Mapping[str, np.ndarray] | None = None,
) -> Evidence:
    """One pass over the samples in an architecture, and the order of the channels that follows from it.

    The pass runs all units, but no layer reads more of them than the architecture has, so that wider candidates can be
    scored as well as narrower ones.

    Args:
        network: The unpruned network, in evaluation mode.
        program: Its operators.
        space: What is searched of it.
        samples: The samples.
        distance: How far outputs have moved.
        centre: The architecture.
        orders: The units of each group, the most important first, as the architecture was derived with them; None: the
            largest weights first.
    """
    reading = program.reading
    if orders is None:
        orders = channel_orders(reading, dict(network.named_parameters(remove_duplicate=False)))
    run = CutRun(network, program, Sizes(blocks=sizes_of(centre, reading).blocks), reading.first_units)
    refit = _Masked(run, samples.targets, sizes_of(centre, reading), orders)
    program.run(refit, samples.inputs)
    found = dict(orders)
    lost: dict[str, np.ndarray] = {}
    for tied, is_kept in tied_groups(reading):
        readers = _readers(refit, tied, orders)
        if not readers:
            continue
        elimination = eliminate(readers, len(orders[tied[0]]), order=orders[tied[0]] if is_kept else None)
        found |= dict.fromkeys(tied, elimination.order)
        lost |= dict.fromkeys(tied, elimination.lost)
    return Evidence(
        network=network,
        program=program,
        space=space,
        inputs=samples.inputs,
        targets=samples.targets,
        others=samples.others,
        distance=distance,
        centre=centre,
        orders=found,
        lost=lost,
        moments=refit.moments,
        fitted=refit.fitted,
        outputs=program.run(refit.as_fitted(), samples.others.inputs),
    )


class _Masked(Refit):
    """A refit in which all units run, and each layer reads those of an architecture."""

    def __init__(self, run: PlainRun, targets: Targets, kept: Sizes, orders: Mapping[str, np.ndarray]) -> None:
        super().__init__(run, targets)
        self.kept_sizes, self.orders = kept, orders

    def _columns(self, layer: FittedLayer, kernel: int) -> Tensor | None:
        if not is_searched(layer.inputs):
            return None
        return layer.columns(kept_of(layer.inputs, self.kept_sizes, self.orders.__getitem__), kernel)


def _readers(refit: _Masked, tied: list[str], orders: Mapping[str, np.ndarray]) -> list[Reader]:
    """The layers that read certain groups, without the units of other groups that the architecture leaves out."""
    readers = []
    everything = {name: len(orders[name]) for name in tied}
    for layer in fitted_layers(refit.run.program.reading).values():
        if layer.node not in refit.moments or not any(name in tied for name in groups_of(layer.inputs)):
            continue
        moments = refit.moments[layer.node]
        weight = refit.run.state(layer.weight)
        kernel = weight[0, 0].numel()
        sizes = Sizes({**refit.kept_sizes.widths, **everything}, refit.kept_sizes.blocks)
        kept = kept_of(layer.inputs, sizes, orders.__getitem__)
        units = np.stack([units_of(layer.inputs, name) for name in tied]).max(0)[kept]
        columns = layer.columns(kept, kernel)
        start = as_matrix(weight, len(moments.gram))
        matrix = fit(moments, start, columns=columns, ridge=RIDGE)
        for gram, weights in zip(moments.gram, matrix, strict=True):
            owners = torch.from_numpy(np.repeat(units, kernel))
            readers.append(Reader(gram[columns][:, columns], weights[columns], owners))
    return readers


def readers_behind(reading: Reading, stage: str, layers: Mapping[fx.Node, FittedLayer]) -> set[fx.Node]:
    """The fitted layers that read the end of a stage, with no other fitted layer between."""
    run = next(each for each in reading.stages if each.name == stage)
    found: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    ahead = [user for user in run.exits[-1].users if user not in run.inside]
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in layers:
            found.add(node)
        else:
            ahead += list(node.users)
    return found


def check_choices(space: SearchSpace, reading: Reading) -> None:
    """Checks that a space was read from this very network.

    Raises:
        SpaceError: It was not.
    """
    known = {group.name: group.width for group in reading.groups} | {
        stage.name: len(stage.blocks) for stage in reading.stages
    }
    for choice in space.choices:
        if known.get(choice.name) != choice.candidates[-1]:
            raise SpaceError(
                f"cannot score the candidates of {choice.name!r}: the space has {choice.candidates[-1]} of it, and the "
                f"model {known.get(choice.name, 'none')}; expected the space that `inspect` reads from this network"
            )


SMOOTHING = 1e-6
"""Added to the mean square of each input, as a share of their mean."""
STEPS = 128
"""Units of wider groups are left out several at a time."""


@dataclass(frozen=True)
class Reader:
    """A layer that reads the channels of a group."""

    gram: Tensor
    """Products of its inputs, averaged [inputs, inputs]."""
    weights: Tensor
    """[inputs, outputs]."""
    units: Tensor
    """For every input the unit that it belongs to, −1: to none."""


@dataclass(frozen=True)
class Elimination:
    """The order in which units were left out."""

    order: np.ndarray
    """The units, the one that was kept longest first."""
    lost: np.ndarray
    """Error of the readers, as a share of their outputs' variance and added up, by the units kept [width + 1]."""


def eliminate(readers: Sequence[Reader], width: int, *, order: np.ndarray | None = None) -> Elimination:
    """Leaves out one unit after the other, the one that is missed least first.

    Args:
        readers: The layers that read them.
        width: How many units there are.
        order: The order that they must keep, the last one left out first; None: none.
    """
    states = [_State.of(reader) for reader in readers]
    alive = np.ones(width, dtype=bool)
    lost = np.zeros(width + 1)
    left_out: list[int] = []
    while alive.any():
        left = width - len(left_out)
        if order is None:
            costs = sum((state.costs(alive) for state in states), np.zeros(width))
            costs[~alive] = np.inf
            chosen = np.argsort(costs, kind="stable")[: max(1, left // STEPS)]
        else:
            chosen = order[left - 1 : left]
        for unit in chosen:
            left = width - len(left_out)
            lost[left - 1] = lost[left] + sum(state.leave_out(int(unit)) for state in states)
            alive[unit] = False
            left_out.append(int(unit))
    return Elimination(np.array(left_out[::-1]), lost)


@dataclass
class _State:
    """A reader while units are left out; inputs that are gone have rows and columns of zeros."""

    inverse: Tensor
    weights: Tensor
    places: dict[int, Tensor]
    """The inputs of each unit."""
    scale: float

    @classmethod
    def of(cls, reader: Reader) -> _State:
        gram = reader.gram.double()
        variance = float((reader.weights * (gram @ reader.weights)).sum())
        smoothing = SMOOTHING * gram.diagonal().mean().clamp_min(1e-12)
        inverse = torch.linalg.inv(gram + smoothing * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        places = {int(unit): torch.nonzero(reader.units == unit)[:, 0] for unit in reader.units.unique() if unit >= 0}
        return cls(inverse, reader.weights.double(), places, 1 / max(variance, 1e-30))

    def costs(self, alive: np.ndarray) -> np.ndarray:
        """What leaving out each unit adds to the error [width]."""
        found = np.zeros(len(alive))
        units = [unit for unit in self.places if alive[unit]]
        if not units:
            return found
        places = torch.stack([self.places[unit] for unit in units])  # as many inputs for every unit
        blocks = self.inverse[places[:, :, None], places[:, None, :]]
        weights = self.weights[places]
        found[units] = self.scale * (weights * torch.linalg.solve(blocks, weights)).sum((1, 2)).cpu().numpy()
        return found

    def leave_out(self, unit: int) -> float:
        """Fits the weights again without a unit; what that adds to the error."""
        if unit not in self.places:
            return 0.0
        at = self.places[unit]
        block, row, weights = self.inverse[at][:, at], self.inverse[at], self.weights[at]
        taken = torch.linalg.solve(block, torch.cat([row, weights], dim=1))
        cost = float((weights * taken[:, row.shape[1] :]).sum())
        self.weights = self.weights - row.T @ taken[:, row.shape[1] :]
        self.inverse = self.inverse - row.T @ taken[:, : row.shape[1]]
        return self.scale * cost
