"""Three ways to score the candidates of a space around an architecture. Each can be replaced by one's own function.

A figure says how far the outputs move with that candidate in place of the architecture's own; only differences within
one group or stage count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from transprune.reading.coupling import Arguments, Function
from transprune.reading.layouts import Sizes, groups_of
from transprune.runtime.structures import tensors_in
from transprune.scores.evidence import Evidence
from transprune.scores.refit import Watched
from transprune.shrinking.sort import units_of
from transprune.shrinking.traced_network import CutRun

Measure = Callable[[Evidence], Mapping[str, Sequence[float]]]
"""From what the samples show to a figure for each candidate, by the name of the group or stage."""
ABLATION_SAMPLES = 64
"""Samples that a narrower or wider candidate is run on; what it is fitted on are all."""


@torch.no_grad()
def ablation(evidence: Evidence) -> dict[str, list[float]]:
    """Runs the network with each candidate in place of the architecture's own, the layers that read it fitted again.

    One forward pass for each candidate width, on the first samples, and one over all samples for each depth.
    """
    few = evidence.first(ABLATION_SAMPLES)
    found = {}
    for group in evidence.space.groups:
        found[group.name] = [float(few.without_units(group.name, width)) for width in group.candidates]
    base = float(evidence.distance(evidence.outputs, evidence.targets.outputs))
    for stage in evidence.space.stages:
        here = evidence.centre.depths.get(stage.name, stage.depth)
        found[stage.name] = [
            base if depth == here else float(evidence.without_blocks(stage.name, depth)) for depth in stage.candidates
        ]
    return found


@torch.no_grad()
def reconstruction(evidence: Evidence) -> dict[str, list[float]]:
    """How badly the layers that read a group are rebuilt from its first units; no forward pass.

    For a stage, how far what its last kept block hands on is from what the last one does, as a share of the variance.
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
            float((exits[stage.name][depth - 1] - last).square().mean() / spread) for depth in stage.candidates
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
        last = exits[stage.name][-1]
        found[stage.name] = [
            float(((exits[stage.name][depth - 1] - last) * by_name[stage.name]).sum() ** 2)
            for depth in stage.candidates
        ]
    return found


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
