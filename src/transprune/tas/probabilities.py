"""How probable each candidate is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transprune.architecture import Architecture
from transprune.space import DepthStage, SearchSpace, WidthGroup

DECIDED = 0.5
"""Entropy up to which a search has decided."""
UNDECIDED = "The search has not decided"


@dataclass(frozen=True)
class Probabilities:
    """The probability of every candidate of a space; rows with fewer candidates end in zeros."""

    widths: Tensor
    """[groups, most candidates of a group]."""
    depths: Tensor
    """[stages, most candidates of a stage]."""

    @classmethod
    def of(cls, space: SearchSpace, by_choice: Mapping[str, Sequence[float]]) -> Probabilities:
        """Those that `by_group` and `by_stage` gave, together, for a space."""
        widths, depths = (mask.double() for mask in candidate_masks(space))
        widths[widths > 0] = _figures(space.groups, by_choice)
        depths[depths > 0] = _figures(space.stages, by_choice)
        return cls(widths, depths)

    def one_hot(self) -> Probabilities:
        """All probability on the most probable candidates; without gradient."""
        return Probabilities(_one_hot(self.widths), _one_hot(self.depths))

    def most_probable(self, space: SearchSpace) -> Architecture:
        """The most probable candidate everywhere, whatever it costs."""
        likeliest = [*_argmax(self.widths), *_argmax(self.depths)]
        sizes = [searched.candidates[index] for searched, index in zip(space.choices, likeliest, strict=True)]
        return space.architecture_of(sizes)

    def by_group(self, space: SearchSpace) -> dict[str, list[float]]:
        """Probability of each candidate width by the group's name."""
        return _by_name(space.groups, self.widths)

    def by_stage(self, space: SearchSpace) -> dict[str, list[float]]:
        """Probability of each candidate depth by the stage's name."""
        return _by_name(space.stages, self.depths)


def candidate_masks(space: SearchSpace) -> tuple[Tensor, Tensor]:
    """Which entries stand for a candidate, for widths [groups, candidates] and depths [stages, candidates]."""
    return _mask(space.groups), _mask(space.stages)


def certain(space: SearchSpace, architecture: Architecture) -> Probabilities:
    """All probability on one architecture, whose sizes must be candidates."""
    widths, depths = candidate_masks(space)
    chosen_widths, chosen_depths = torch.zeros(widths.shape), torch.zeros(depths.shape)
    for row, group in enumerate(space.groups):
        chosen_widths[row, group.candidates.index(architecture.widths.get(group.name, group.width))] = 1
    for row, stage in enumerate(space.stages):
        chosen_depths[row, stage.candidates.index(architecture.depths.get(stage.name, stage.depth))] = 1
    return Probabilities(chosen_widths, chosen_depths)


def _figures(choices: Sequence[WidthGroup | DepthStage], by_choice: Mapping[str, Sequence[float]]) -> Tensor:
    return torch.tensor([each for choice in choices for each in by_choice[choice.name]], dtype=torch.float64)


def _mask(choices: Sequence[WidthGroup | DepthStage]) -> Tensor:
    counts = torch.tensor([len(choice.candidates) for choice in choices], dtype=torch.int64)
    most = int(counts.max()) if len(choices) else 0
    return torch.arange(most) < counts[:, None]


def _one_hot(probabilities: Tensor) -> Tensor:
    if probabilities.numel() == 0:
        return probabilities.detach()
    return torch.zeros_like(probabilities).scatter(1, probabilities.detach().argmax(1, keepdim=True), 1.0)


def _argmax(probabilities: Tensor) -> list[int]:
    return probabilities.argmax(1).tolist() if probabilities.numel() else []


def _by_name(choices: Sequence[WidthGroup | DepthStage], probabilities: Tensor) -> dict[str, list[float]]:
    rows = probabilities.detach().tolist()
    return {choice.name: row[: len(choice.candidates)] for choice, row in zip(choices, rows, strict=True)}
