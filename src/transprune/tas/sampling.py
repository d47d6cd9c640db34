"""Drawing the candidates of one step by Gumbel-softmax (Dong & Yang, 2019, arXiv:1905.09717, section 3.1, Eq. 2 and 3).

`ArchitectureParameters.sample` draws for all groups and stages of a space at once; `reference.draw` says the same for
one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transprune.architecture import Architecture
from transprune.errors import OptionError, SpaceError
from transprune.space import DepthStage, SearchSpace, WidthGroup
from transprune.tas.probabilities import Probabilities, candidate_masks


@dataclass(frozen=True)
class Drawn:
    """The candidates of one group or stage that are in use, and how they are mixed."""

    sizes: tuple[int, ...]
    """Widths or depths."""
    indices: tuple[int, ...]
    """Their positions among all candidates."""
    weights: Tensor
    """Mixing weights [samples]; they sum to one."""


@dataclass(frozen=True)
class Selection:
    """The candidates in use, by the names of groups and stages."""

    widths: Mapping[str, Drawn]
    depths: Mapping[str, Drawn]

    @classmethod
    def of(cls, space: SearchSpace, architecture: Architecture, device: torch.device | str = "cpu") -> Selection:
        """One architecture alone; its sizes must be candidates."""
        weights = torch.ones(1, device=device)
        for stage in space.stages:
            size = architecture.depths.get(stage.name, stage.depth)
            if stage.kept_in(architecture) != stage.kept(size):
                raise SpaceError(
                    f"cannot select this architecture: of stage {stage.name!r} it keeps the blocks "
                    f"{list(stage.kept_in(architecture))}, and the candidate of {size} blocks keeps "
                    f"{list(stage.kept(size))}; expected a candidate of the space"
                )

        def only(searched: WidthGroup | DepthStage, size: int) -> Drawn:
            return Drawn((size,), (searched.candidates.index(size),), weights)

        return cls(
            widths={g.name: only(g, architecture.widths.get(g.name, g.width)) for g in space.groups},
            depths={s.name: only(s, architecture.depths.get(s.name, s.depth)) for s in space.stages},
        )


class ArchitectureParameters(nn.Module):
    """The logits of all candidates (the paper's α and β), kept apart from the weights.

    `widths` is [groups, most candidates of a group] and `depths` [stages, most candidates of a stage]; in rows with
    fewer candidates the last entries take no part. They start with a standard deviation of 0.01. Of groups that are
    tied only the first one's row is used, and drawn once for all of them.
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
            masked_log_softmax(self._tied(self.widths), self.width_is_candidate).exp(),
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
        """Draws candidates for every group and stage.

        Deviation: the paper mixes all depths of a stage (`depth_samples=None`). Two cost less, since no block beyond
        the deeper one is computed.

        Deviation: a candidate whose weight is lost to rounding beside the others' is left out, so that a search that
        has settled runs at the sizes that it has settled on.

        Args:
            temperature: Sampling temperature τ.
            width_samples: Candidates to draw for each group; None: all.
            depth_samples: Candidates to draw for each stage; None: all.
            generator: Source of randomness, on the device of the logits.
            device: Where the mixing weights are wanted. Logits on the CPU serve a supernet on a GPU without waiting
                for it.
        """
        widths = draw_candidates(
            self.widths, self.width_is_candidate, temperature=temperature, samples=width_samples, generator=generator
        )
        depths = draw_candidates(
            self.depths, self.depth_is_candidate, temperature=temperature, samples=depth_samples, generator=generator
        )
        widths = Draw(self._tied(widths.indices), self._tied(widths.weights))
        place = device or self.widths.device
        return Selection(_choices(self.space.groups, widths, place), _choices(self.space.stages, depths, place))

    def _tied(self, rows: Tensor) -> Tensor:
        """Rows of groups [groups, ...], each that of its leader."""
        return rows[list(self.space.leaders)] if self.space.has_ties else rows

    @torch.no_grad()
    def entropy(self) -> float:
        """The mean of `normalised_entropy` over all groups and stages."""
        return mean_entropy(self.probabilities(), self.space)

    @torch.no_grad()
    def sharpen(self, factor: float) -> None:
        """Raises all probabilities to a power, of which they are then shares."""
        if factor != 1:
            self.widths.mul_(factor)
            self.depths.mul_(factor)

    @torch.no_grad()
    def start_at(self, probabilities: Probabilities) -> None:
        """Takes the logits that give these probabilities."""
        for logits, rows in ((self.widths, probabilities.widths), (self.depths, probabilities.depths)):
            logits.copy_(rows.clamp_min(torch.finfo(torch.float32).tiny).log())


def _choices(named: Sequence[WidthGroup | DepthStage], draw: Draw, device: torch.device | str) -> dict[str, Drawn]:
    least = torch.finfo(draw.weights.dtype).eps
    shares, choices, placed = draw.weights.tolist(), {}, draw.weights.to(device, non_blocking=True)
    for place, (item, indices, weights) in enumerate(zip(named, draw.indices.tolist(), placed, strict=True)):
        # A row with fewer candidates than samples ends in entries that stand for none. Their weight is zero.
        kept = [position for position, share in enumerate(shares[place]) if share > least]
        chosen = tuple(indices[position] for position in kept)
        mixed = weights if len(kept) == len(indices) else torch.stack([weights[position] for position in kept])
        choices[item.name] = Drawn(tuple(item.candidates[index] for index in chosen), chosen, mixed)
    return choices


@dataclass(frozen=True)
class Draw:
    """What was drawn, a row for each group or stage."""

    indices: Tensor
    """Candidates drawn [choices, samples], int64; distinct within a row, unless it has fewer candidates."""
    weights: Tensor
    """Mixing weights [choices, samples]; each row sums to one, and has a gradient to its logits."""


def draw_candidates(
    logits: Tensor,
    is_candidate: Tensor,
    *,
    temperature: float,
    samples: int | None = 2,
    generator: torch.Generator | None = None,
) -> Draw:
    """Draws candidates for each row of logits, and weighs those that were drawn.

    With Gumbel noise g and z = (log softmax(logits) + g) / temperature, candidates are drawn without replacement with
    the probabilities softmax(z), and weighted by the softmax over the z of the drawn ones alone.

    Args:
        logits: Architecture parameters [choices, candidates].
        is_candidate: Which entries stand for a candidate [choices, candidates]; rows may differ in how many they have.
        temperature: Sampling temperature τ, above zero. Towards zero the weights become one-hot.
        samples: Candidates to draw for each row; None: all, so that only the weights are random. A row with fewer
            candidates ends in entries that stand for none, at weight zero.
        generator: Source of randomness, on the device of the logits.

    Raises:
        OptionError: The temperature or the number of samples is not above zero.
    """
    if not temperature > 0 or (samples is not None and samples < 1):
        raise OptionError(
            f"cannot sample: found sampling temperature {temperature} and {samples} samples; expected both above zero"
        )
    candidates = logits.shape[1]
    if logits.numel() == 0:
        empty = logits.new_zeros(logits.shape[0], 0)
        return Draw(indices=empty.long(), weights=empty)
    perturbed = perturb(masked_log_softmax(logits, is_candidate), temperature, generator)
    if samples is None or samples >= candidates:
        indices = torch.arange(candidates, device=logits.device).expand(logits.shape[0], -1)
    else:
        # Where all probabilities but one underflow, there must still be a second one to draw: a real candidate if the
        # row has one, else an entry that stands for none.
        probabilities = perturbed.detach().softmax(1) + torch.where(is_candidate, 1e-7, 1e-30)
        indices = torch.multinomial(probabilities, samples, replacement=False, generator=generator)
    return Draw(indices=indices, weights=perturbed.gather(1, indices).softmax(1))


def masked_log_softmax(logits: Tensor, is_candidate: Tensor) -> Tensor:
    """Log-probabilities [choices, candidates]; entries that stand for no candidate get −inf and no gradient."""
    return F.log_softmax(logits.masked_fill(~is_candidate, -torch.inf), dim=1)


def perturb(log_probabilities: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Adds standard Gumbel noise and divides by the temperature; same shape."""
    # −log of a standard exponential variable is a standard Gumbel one.
    exponential = torch.empty_like(log_probabilities).exponential_(generator=generator)
    gumbel = -exponential.clamp_min(torch.finfo(exponential.dtype).tiny).log()
    perturbed: Tensor = (log_probabilities + gumbel) / temperature
    return perturbed


def normalised_entropy(probabilities: Tensor, is_candidate: Tensor) -> Tensor:
    """Entropy of each row, as a share of the largest that it could have [choices]: 1 is undecided, 0 is settled."""
    entropy = -torch.special.xlogy(probabilities, probabilities).sum(1)
    share: Tensor = entropy / is_candidate.sum(1).clamp_min(2).log()
    return share


def mean_entropy(probabilities: Probabilities, space: SearchSpace) -> float:
    """The mean of `normalised_entropy` over all groups and stages."""
    rows = (probabilities.widths, probabilities.depths)
    pairs = zip(rows, candidate_masks(space), strict=True)
    return float(torch.cat([normalised_entropy(row, mask.to(row.device)) for row, mask in pairs]).mean())
