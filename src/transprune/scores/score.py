"""What each candidate of each group, stage and block costs in output, from a few hundred samples without labels.

Three measures give the figures, and one of your own may: `ablation`, `reconstruction` and `taylor`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from transprune.architecture import Architecture, parse_json
from transprune.budget import Limit
from transprune.errors import OptionError, SpaceError, newer_format
from transprune.options import SOLVER_SECONDS
from transprune.reading.coupling import Arguments, Function
from transprune.reading.execution import Program
from transprune.reading.layouts import Sizes, groups_of
from transprune.reading.networks import unwrapped
from transprune.reading.reading import Reading, read, read_for
from transprune.reading.trace import Example, inputs_for
from transprune.records import read_record
from transprune.runtime.structures import tensors_in
from transprune.scores.evidence import Evidence, Halves, check_choices, distance_of, gather_evidence
from transprune.scores.refit import Watched
from transprune.shrinking.sort import reorder_channels, units_of
from transprune.shrinking.traced_network import CutRun
from transprune.space import DepthStage, SearchSpace
from transprune.tas.derivation import Derivation, derive_with_proof
from transprune.tas.probabilities import Probabilities, candidate_masks
from transprune.training.evaluation import evaluation_mode
from transprune.training.tasks import Task, classification

Measure = Callable[[Evidence], Mapping[str, Sequence[float]]]
"""From what the samples show to a figure for each candidate, by the name of the group or stage."""
ABLATION_SAMPLES = 64
"""Samples that a narrower or wider candidate is run on; what it is fitted on are all."""


@torch.no_grad()
def ablation(evidence: Evidence) -> dict[str, list[float]]:
    """Runs the network with each candidate in place of the architecture's own, the layers that read it fitted again.

    One forward pass for each candidate width, on the first samples. Two for each depth: one over all samples, to fit
    the layers, and one over the other samples, to try it.
    """
    few = evidence.first(ABLATION_SAMPLES)
    found = {}
    for group in evidence.space.groups:
        found[group.name] = [float(few.without_units(group.name, width)) for width in group.candidates]
    base = float(evidence.distance(evidence.outputs, evidence.others.wanted))
    for stage in evidence.space.stages:
        here = evidence.centre.depths.get(stage.name, stage.depth)
        found[stage.name] = [
            base if depth == here else float(evidence.without_blocks(stage.name, depth)) for depth in stage.candidates
        ]
    return found


@torch.no_grad()
def reconstruction(evidence: Evidence) -> dict[str, list[float]]:
    """How badly the layers that read a group are rebuilt from its first units; no forward pass.

    For a stage, how far what the blocks that are left out add to what they read is from nothing, taken together, as a
    share of the variance of what the last one hands on.
    Groups that no fitted layer reads count nothing.
    """
    found = {}
    for group in evidence.space.groups:
        lost = evidence.lost.get(group.name, np.zeros(group.width + 1))
        found[group.name] = [float(lost[width]) for width in group.candidates]
    exits = _exits(evidence)
    for stage in evidence.space.stages:
        last = exits[stage.name][-1]
        spread = (last - last.mean(0)).square().mean().clamp_min(1e-30)
        found[stage.name] = [
            float(_left_out(stage, depth, exits[stage.name]).square().mean() / spread) for depth in stage.candidates
        ]
    return found


def taylor(evidence: Evidence, *, probes: int = 4) -> dict[str, list[float]]:
    """How far the outputs move to first order, where layers stop reading units and readers of a stage lose its blocks.

    At the unpruned network itself any distance has no slope, so the outputs are followed in random directions: the mean
    square of the movements along them is that of the outputs. A backward pass for each direction, none for each
    candidate; the network is looked at unpruned, whatever the architecture.

    Args:
        evidence: What the samples show.
        probes: Random directions.
    """
    found: dict[str, list[float]] = {choice.name: [0.0] * len(choice.candidates) for choice in evidence.space.choices}
    for seed in range(probes):
        for name, movements in _movements(evidence, seed).items():
            found[name] = [total + moved / probes for total, moved in zip(found[name], movements, strict=True)]
    return found


def _movements(evidence: Evidence, seed: int) -> dict[str, list[float]]:
    """The squared movement of the outputs along one random direction, for each candidate."""
    generator = torch.Generator().manual_seed(seed)
    weights = {layer.weight: layer for layer in evidence.layers.values() if any(True for _ in groups_of(layer.inputs))}
    read: dict[str, Tensor] = {}
    ends: dict[str, Tensor] = {}
    exits: dict[str, list[Tensor]] = {}

    class Probing(CutRun):
        def state(self, name: str) -> Tensor:
            tensor = super().state(name)
            if name in weights:
                tensor = read[name] = tensor.detach().requires_grad_()
            return tensor

        def stage_end(self, stage: Any, handed_on: Sequence[Tensor]) -> Tensor:
            end = ends[stage.name] = handed_on[-1] + torch.zeros_like(handed_on[-1]).requires_grad_()
            return end

    run = Probing(evidence.network, evidence.program, Sizes())
    with torch.enable_grad():
        outputs = evidence.program.run(_with_exits(run, evidence, exits), evidence.inputs)
        total = sum(
            (each * torch.randn(each.shape, generator=generator).to(each) / each.numel() ** 0.5).sum()
            for each in tensors_in(outputs)
            if each.is_floating_point()
        )
        wanted = [*read.values(), *ends.values()]
        slopes = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    by_name = dict(zip([*read, *ends], slopes, strict=True))
    found: dict[str, list[float]] = {}
    for group in evidence.space.groups:
        units = np.zeros(group.width)
        for name, tensor in read.items():
            owners = units_of(weights[name].inputs, group.name)
            along = (tensor * by_name[name]).detach().transpose(0, 1).flatten(1).sum(1).double().cpu().numpy()
            np.add.at(units, owners[owners >= 0], along[owners >= 0])
        left_out = np.cumsum(units[evidence.order(group.name)][::-1])[::-1]
        found[group.name] = [float(left_out[width] ** 2) if width < group.width else 0.0 for width in group.candidates]
    for stage in evidence.space.stages:
        found[stage.name] = [
            float((_left_out(stage, depth, exits[stage.name]) * by_name[stage.name]).sum() ** 2)
            for depth in stage.candidates
        ]
    return found


def _left_out(stage: DepthStage, depth: int, exits: Sequence[Tensor]) -> Tensor:
    """What is missing at the end of a stage if each block that is left out added what it adds in the whole network."""
    last = exits[-1]
    if not stage.order:
        return exits[depth - 1] - last
    gone = [place for place in range(stage.depth) if place not in stage.kept(depth)]
    # What the first block reads is not written down; what it hands on then stands for what it adds.
    steps = [exits[place - 1] - exits[place] if place else -exits[0] for place in gone]
    return sum(steps, torch.zeros_like(last))


def _exits(evidence: Evidence) -> dict[str, list[Tensor]]:
    """What each block of each stage hands on in the unpruned network."""
    exits: dict[str, list[Tensor]] = {}
    run = CutRun(evidence.network, evidence.program, Sizes())
    evidence.program.run(_with_exits(run, evidence, exits), evidence.inputs)
    return exits


def _with_exits(run: CutRun, evidence: Evidence, exits: dict[str, list[Tensor]]) -> Watched:
    """A run that writes down what each block hands on."""

    def note(name: str, place: int, function: Function, arguments: Arguments) -> Any:
        outputs = function(arguments)
        exits[name][place] = outputs.detach().clone()  # the next block may write over it
        return outputs

    watches: dict[fx.Node, Callable[[Function, Arguments], Any]] = {}
    for stage in evidence.program.reading.stages:
        exits[stage.name] = [torch.empty(0)] * len(stage.blocks)
        watches |= {node: partial(note, stage.name, place) for place, node in enumerate(stage.exits)}
    return Watched(run, watches)


FORMAT = 1
SPREAD = 60.0
"""Natural logarithm of how much more probable the best candidate is than the worst, in a derivation from scores."""


@dataclass(frozen=True)
class ChoiceScores:
    """The candidates of one group or stage."""

    name: str
    size: int
    """What it had in the architecture that was looked around from."""
    sizes: tuple[int, ...]
    """The candidates, ascending."""
    lost: tuple[float, ...]
    """For each how far the outputs move; only differences count."""
    order: tuple[int, ...] = ()
    """The units of a group, the most important first; of a stage its blocks, empty where the first ones stay."""

    @property
    def figures(self) -> tuple[tuple[int, float], ...]:
        """Each candidate with its figure."""
        return tuple(zip(self.sizes, self.lost, strict=True))


@dataclass(frozen=True)
class Scores:
    """What the candidates of a space cost in output, around one architecture."""

    groups: tuple[ChoiceScores, ...]
    stages: tuple[ChoiceScores, ...]
    moved: float
    """How far the outputs of the architecture itself have moved."""

    @property
    def centre(self) -> Architecture:
        """The architecture that was looked around from."""
        return Architecture(
            widths={each.name: each.size for each in self.groups}, depths={each.name: each.size for each in self.stages}
        )

    @property
    def block_orders(self) -> dict[str, tuple[int, ...]]:
        """The blocks of each stage that has an order of its own, the one that stays longest first."""
        return {each.name: each.order for each in self.stages if each.order}

    @property
    def orders(self) -> dict[str, np.ndarray]:
        """The units of each group, the most important first."""
        return {each.name: np.array(each.order) for each in self.groups}

    def probabilities(self, space: SearchSpace, *, spread: float = SPREAD) -> Probabilities:
        """Probabilities whose logarithms fall as the outputs move.

        Args:
            space: The space that was scored.
            spread: Logarithm of how much more probable the best candidate of any group or stage is than its worst.
        """
        rows = _tied([np.array(each.lost) - min(each.lost) for each in (*self.groups, *self.stages)], space)
        worst = max((row.max() for row in rows), default=0.0) or 1.0
        masks = candidate_masks(space)
        filled = [torch.zeros(mask.shape, dtype=torch.float64) for mask in masks]
        for place, row in enumerate(rows):
            part, index = (0, place) if place < len(self.groups) else (1, place - len(self.groups))
            likely = np.exp(-spread * row / worst)
            filled[part][index, : len(row)] = torch.from_numpy(likely / likely.sum())
        return Probabilities(*filled)

    def derive(
        self, space: SearchSpace, limits: Sequence[Limit], *, seconds: float | None = SOLVER_SECONDS
    ) -> Derivation:
        """The architecture within all limits whose figures add up to the least.

        Raises:
            BudgetError: No architecture costs that little.
        """
        return derive_with_proof(space, self.probabilities(space), limits, seconds=seconds)

    def keeping_blocks(self) -> Scores:
        """The same, with figures that leave out a block only where the budget cannot be kept otherwise."""
        worst = sum(max(each.lost) - min(each.lost) for each in (*self.groups, *self.stages)) or 1.0
        stages = tuple(
            replace(
                each, lost=tuple(2 * worst + lost if size < each.sizes[-1] else lost for size, lost in each.figures)
            )
            for each in self.stages
        )
        return replace(self, stages=stages)

    def to_json(self) -> dict[str, Any]:
        """The scores as plain values for `json.dumps`."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: Any) -> Scores:
        """Reads what `to_json` wrote.

        Args:
            value: The parsed object, or its text.

        Raises:
            SpaceError: The text is malformed or of another format.
        """
        if isinstance(value, str):
            value = parse_json(value, "scores")
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        if isinstance(found, int) and found > FORMAT:
            raise SpaceError(f"cannot read scores: {newer_format(found, FORMAT)}")
        if found != FORMAT:
            raise SpaceError(f"cannot read scores: found format {found!r}, expected {FORMAT}; score the network anew")
        try:
            return read_record(cls, {name: part for name, part in value.items() if name != "format"})
        except ValueError as error:
            raise SpaceError(f"cannot read scores: {error}") from error


def _tied(rows: Sequence[np.ndarray], space: SearchSpace) -> list[np.ndarray]:
    """Figures of groups, then stages, where tied groups have the sum of theirs."""
    sums: dict[int, np.ndarray] = {}
    for leader, row in zip(space.leaders, rows, strict=False):
        sums[leader] = sums.get(leader, 0.0) + row
    return [*(sums[leader] for leader in space.leaders), *rows[len(space.groups) :]]


def score(
    model: nn.Module,
    space: SearchSpace,
    samples: Example,
    *,
    task: Task | None = None,
    measure: Measure = ablation,
    around: Architecture | None = None,
    orders: Mapping[str, np.ndarray] | None = None,
) -> Scores:
    """Scores every candidate of a space by how far the network's outputs move. The model is untouched.

    Channels are sorted by what the layers behind them would miss (`transprune.scores.evidence`), and these layers
    are fitted again wherever channels are left out, as `repair` does in the end.

    Args:
        model: The trained network.
        space: The space that `inspect` read from it.
        samples: A batch of inputs, or a tuple of the forward's positional arguments; some hundreds of samples.
            Layers are fitted on every second one, and candidates tried on the others.
        task: Says how outputs are compared: by its distillation loss, without labels. None: `classification()`.
        measure: What gives the figures: `ablation`, `reconstruction`, `taylor`, or a function of your own.
        around: The architecture to look around from; None: the unpruned network.
        orders: The units of each group, the most important first, that `around` was derived with.

    Raises:
        ModelError: The model cannot be read (see `inspect`).
        SpaceError: The space or the architecture is another network's.
        OptionError: The measure does not give a figure for every candidate.
    """
    model = unwrapped(model)
    reading = read_for(model, samples, space)
    check_choices(space, reading)
    with evaluation_mode(model):
        program = Program(reading)
        centre = space.full_architecture() if around is None else around
        space.check(centre)
        distance = distance_of(task or classification())
        evidence = gather_evidence(
            model,
            program,
            space,
            samples=Halves(model, program, inputs_for(model, samples)),
            distance=distance,
            centre=centre,
            orders=orders,
        )
        return scores_of(evidence, measure)


def scores_of(evidence: Evidence, measure: Measure) -> Scores:
    """The figures of a measure as a record.

    Smaller candidates never count less than larger ones: where they do, few samples have been lucky.

    Raises:
        OptionError: It does not give a figure for every candidate.
    """
    figures, space, sizes = measure(evidence), evidence.space, evidence.space.sizes_of(evidence.centre)
    found = []
    for choice, size in zip(space.choices, sizes, strict=True):
        row = figures.get(choice.name, ())
        if len(row) != len(choice.candidates) or not np.isfinite(row).all():
            raise OptionError(
                f"cannot use the measure {getattr(measure, '__name__', measure)!r}: for {choice.name!r} it gave "
                f"{list(row)}; expected a number for each of the {len(choice.candidates)} candidates"
            )
        lost = tuple(np.maximum.accumulate(np.array(row, dtype=float)[::-1])[::-1].tolist())
        of_blocks = choice.order if isinstance(choice, DepthStage) else ()
        order = tuple(map(int, evidence.orders[choice.name])) if choice.name in evidence.orders else of_blocks
        found.append(ChoiceScores(choice.name, size, choice.candidates, lost, order))
    moved = float(evidence.distance(evidence.outputs, evidence.others.wanted))
    groups = len(space.groups)
    return Scores(tuple(found[:groups]), tuple(found[groups:]), moved)


def sort_by_scores(model: nn.Module, scores: Scores, example: Example, *, reading: Reading | None = None) -> nn.Module:
    """A copy of a network whose channels stand in the order of the scores. It computes the same.

    Args:
        model: The network that was scored; untouched.
        scores: Its scores.
        example: An input batch, or a tuple of the forward's positional arguments.
        reading: What is known of the model already; it is that of the copy as well.

    Raises:
        ModelError: The model cannot be read (see `inspect`).
    """
    model = unwrapped(model)
    reading = read(model, example, reading)
    natural = {group.name: np.arange(group.width) for group in reading.groups}
    return reorder_channels(model, reading, natural | scores.orders)
