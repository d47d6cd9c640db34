"""Drawing candidates with the Gumbel-softmax trick (Dong & Yang, 2019, arXiv:1905.09717, section 3.1, Eq. 2 and 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from transprune.errors import OptionError


@dataclass(frozen=True)
class Draw:
    """What was drawn for each of several choices."""

    indices: Tensor
    """Candidates drawn [choices, samples], int64, distinct within a row wherever there are that many candidates."""
    weights: Tensor
    """Mixing weights [choices, samples]; each row sums to one; gradients flow to the logits."""


def draw_candidates(
    logits: Tensor,
    is_candidate: Tensor,
    *,
    temperature: float,
    samples: int | None = 2,
    generator: torch.Generator | None = None,
) -> Draw:
    """Draws distinct candidates for each choice and weighs them.

    With g = −log E, E ~ Exp(1), and z = (log softmax(logits) + g) / temperature: the candidates are drawn without
    replacement with probabilities softmax(z), and weighted by the softmax of their z alone.

    Args:
        logits: Architecture parameters [choices, candidates].
        is_candidate: Which entries stand for a candidate [choices, candidates]; rows may have different numbers.
        temperature: Sampling temperature τ, above zero; towards zero the weights become one-hot.
        samples: Candidates to draw a choice; None: all of them (nothing is left out, only the weights are random).
            A row with fewer candidates ends in entries that stand for none, at weight zero.
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
        # The small terms keep the draw possible when probabilities underflow, real candidates before the others.
        probabilities = perturbed.detach().softmax(1) + torch.where(is_candidate, 1e-7, 1e-30)
        indices = torch.multinomial(probabilities, samples, replacement=False, generator=generator)
    return Draw(indices=indices, weights=perturbed.gather(1, indices).softmax(1))


def masked_log_softmax(logits: Tensor, is_candidate: Tensor) -> Tensor:
    """Log-probabilities [choices, candidates]; entries that stand for no candidate get −inf and no gradient."""
    return F.log_softmax(logits.masked_fill(~is_candidate, -torch.inf), dim=1)


def perturb(log_probabilities: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Adds standard Gumbel noise and divides by the temperature; same shape."""
    exponential = torch.empty_like(log_probabilities).exponential_(generator=generator)
    gumbel = -exponential.clamp_min(torch.finfo(exponential.dtype).tiny).log()
    perturbed: Tensor = (log_probabilities + gumbel) / temperature
    return perturbed


def normalised_entropy(probabilities: Tensor, is_candidate: Tensor) -> Tensor:
    """Entropy of each row as a share of the uniform distribution's [choices]: 1 is undecided, 0 is settled."""
    entropy = -torch.special.xlogy(probabilities, probabilities).sum(1)
    share: Tensor = entropy / is_candidate.sum(1).clamp_min(2).log()
    return share
