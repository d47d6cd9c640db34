"""Which candidates a supernet uses in one step, and the parameters that make some more probable than others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transprune.architecture import Architecture
from transprune.space import DepthStage, SearchSpace, WidthGroup
from transprune.tas.probabilities import Probabilities, candidate_masks
from transprune.tas.sampling import Draw, draw_candidates, masked_log_softmax, normalised_entropy


@dataclass(frozen=True)
class Choice:
    """Candidates of one group or stage and how they are mixed."""

    sizes: tuple[int, ...]
    """The candidate widths or depths."""
    indices: tuple[int, ...]
    """Where they stand among the candidates."""
    weights: Tensor
    """Mixing weights [samples]; they sum to one."""


@dataclass(frozen=True)
class Selection:
    """The candidates in use, by the name of the group and of the stage."""

    widths: Mapping[str, Choice]
    depths: Mapping[str, Choice]

    @classmethod
    def of(cls, space: SearchSpace, architecture: Architecture, device: torch.device | str = "cpu") -> Selection:
        """One architecture and nothing else; its sizes must be candidates."""
        weights = torch.ones(1, device=device)

        def only(choice: WidthGroup | DepthStage, size: int) -> Choice:
            return Choice((size,), (choice.candidates.index(size),), weights)

        return cls(
            widths={g.name: only(g, architecture.widths.get(g.name, g.width)) for g in space.groups},
            depths={s.name: only(s, architecture.depths.get(s.name, s.depth)) for s in space.stages},
        )


class ArchitectureParameters(nn.Module):
    """The logits of all candidates, kept apart from the weights.

    Two parameters: `widths` [groups, most candidates of a group] and `depths` [stages, most candidates of a stage];
    in rows with fewer candidates the last entries take no part. Drawn from N(0, 0.01).
    """

    width_is_candidate: Tensor
    depth_is_candidate: Tensor

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        widths, depths = candidate_masks(space)
        self.register_buffer("width_is_candidate", widths)
        self.register_buffer("depth_is_candidate", depths)
        self.widths = nn.Parameter(0.01 * torch.randn(widths.shape))
        self.depths = nn.Parameter(0.01 * torch.randn(depths.shape))

    def probabilities(self) -> Probabilities:
        """Softmax of the logits, with gradient."""
        return Probabilities(
            masked_log_softmax(self.widths, self.width_is_candidate).exp(),
            masked_log_softmax(self.depths, self.depth_is_candidate).exp(),
        )

    def sample(
        self,
        temperature: float,
        *,
        width_samples: int | None = 2,
        depth_samples: int | None = 2,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Selection:
        """Draws candidates for every group and stage (`transprune.tas.sampling`).

        Parameters on the CPU draw for a supernet on another `device` without waiting for it.

        Deviation: the paper mixes all depths of a stage (`depth_samples=None`); two cost less, since no block beyond
        the deeper of the two is computed. And candidates whose weight is lost to rounding beside the others' are left
        out, so that a search that has settled runs at the widths and depths it has settled on.
        """
        widths = draw_candidates(
            self.widths, self.width_is_candidate, temperature=temperature, samples=width_samples, generator=generator
        )
        depths = draw_candidates(
            self.depths, self.depth_is_candidate, temperature=temperature, samples=depth_samples, generator=generator
        )
        place = device or self.widths.device
        return Selection(_choices(self.space.groups, widths, place), _choices(self.space.stages, depths, place))

    @torch.no_grad()
    def entropy(self) -> float:
        """Mean over all groups and stages of the entropy as a share of the uniform distribution's."""
        probabilities = self.probabilities()
        entropies = [
            normalised_entropy(probabilities.widths, self.width_is_candidate),
            normalised_entropy(probabilities.depths, self.depth_is_candidate),
        ]
        return float(torch.cat(entropies).mean())


def _choices(named: Sequence[WidthGroup | DepthStage], draw: Draw, device: torch.device | str) -> dict[str, Choice]:
    least = torch.finfo(draw.weights.dtype).eps
    shares, choices, placed = draw.weights.tolist(), {}, draw.weights.to(device, non_blocking=True)
    for place, (item, indices, weights) in enumerate(zip(named, draw.indices.tolist(), placed, strict=True)):
        # Rows with fewer candidates than samples end in entries that stand for none, at weight zero.
        kept = [position for position, share in enumerate(shares[place]) if share > least]
        chosen = tuple(indices[position] for position in kept)
        mixed = weights if len(kept) == len(indices) else torch.stack([weights[position] for position in kept])
        choices[item.name] = Choice(tuple(item.candidates[index] for index in chosen), chosen, mixed)
    return choices
