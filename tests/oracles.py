"""Slow and obvious versions of what transprune computes fast: loops, enumeration and simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from transprune.architecture import Architecture
from transprune.costs import Cost
from transprune.space import SearchSpace
from transprune.tas.probabilities import Probabilities, candidate_masks


def interpolate_channels(channels: Sequence[float], width: int) -> list[float]:
    """Channel-wise interpolation of one pixel, output by output."""
    source = len(channels)
    outcome = []
    for j in range(width):
        covered = channels[math.floor(j * source / width) : math.ceil((j + 1) * source / width)]
        outcome.append(sum(covered) / len(covered))
    return outcome


def align(features: Tensor, width: int, alignment: str) -> Tensor:
    """A feature map [batch, channels, ...] at another width, channel by channel."""
    if alignment == "pad":
        missing = features.new_zeros(features.shape[0], width - features.shape[1], *features.shape[2:])
        return torch.cat([features, missing], dim=1)
    numbers = list(range(features.shape[1]))
    picks = [[interpolate_channels([float(n == m) for n in numbers], width)[j] for m in numbers] for j in range(width)]
    return torch.stack([sum(share * features[:, m] for m, share in enumerate(row)) for row in picks], dim=1)


def mix_prefixes(
    features: Tensor, widths: Sequence[int], weights: Tensor, scales: Tensor | None, alignment: str
) -> Tensor:
    """Each prefix of the channels cut, scaled, aligned to the widest and weighted by itself, then added."""
    total = torch.zeros_like(features[:, : max(widths)])
    for sample, width in enumerate(widths):
        prefix = features[:, :width]
        if scales is not None:
            prefix = prefix * scales[sample, :width].view(1, width, *[1] * (features.dim() - 2))
        total = total + weights[sample] * align(prefix, max(widths), alignment)
    return total


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def simulate_draws(
    logits: Sequence[float], temperature: float, trials: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The paper's sampling, one trial a row: two candidates in the order drawn, and their mixing weights.

    Gumbel noise by inverting its distribution function, draws by walking through the cumulative probabilities.
    """
    generator = np.random.default_rng(seed)
    noise = -np.log(-np.log(generator.uniform(size=(trials, len(logits)))))
    perturbed = (np.log(softmax(np.array(logits, dtype=float))) + noise) / temperature
    left = softmax(perturbed) + 1e-7  # so that a second candidate is found where all others underflow
    drawn = []
    for _ in range(2):
        cumulative = left.cumsum(axis=1)
        point = generator.uniform(size=(trials, 1)) * cumulative[:, -1:]
        drawn.append((cumulative <= point).sum(axis=1).clip(max=len(logits) - 1))
        left[np.arange(trials), drawn[-1]] = 0
    indices = np.stack(drawn, axis=1)
    return indices, softmax(np.take_along_axis(perturbed, indices, axis=1))


def distillation_loss(
    student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, weight: float, temperature: float
) -> float:
    """(1 − λ) · cross-entropy + λ · T² · Kullback-Leibler divergence, sample by sample."""
    losses = []
    for own, taught, label in zip(student, teacher, labels, strict=True):
        from_label = -math.log(softmax(own)[label])
        p, q = softmax(taught / temperature), softmax(own / temperature)
        from_teacher = sum(p[c] * math.log(p[c] / q[c]) for c in range(len(p)))
        losses.append((1 - weight) * from_label + weight * temperature**2 * from_teacher)
    return sum(losses) / len(losses)


def random_probabilities(space: SearchSpace, seed: int, sharpness: float = 1.0) -> Probabilities:
    """Softmax of normal logits in float64; the sharper, the nearer to certainty."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        (sharpness * torch.randn(mask.shape, generator=generator, dtype=torch.float64))
        .masked_fill(~mask, -torch.inf)
        .softmax(1)
        for mask in candidate_masks(space)
    ]
    return Probabilities(*rows)


def all_picks(space: SearchSpace) -> Iterator[tuple[int, ...]]:
    """The index of a candidate for every group and then every stage, in every combination."""
    choices = [*space.groups, *space.stages]
    return itertools.product(*(range(len(choice.candidates)) for choice in choices))


def architecture_of(space: SearchSpace, pick: tuple[int, ...]) -> Architecture:
    """The architecture of a pick."""
    groups = len(space.groups)
    return Architecture(
        widths={g.name: g.candidates[i] for g, i in zip(space.groups, pick[:groups], strict=True)},
        depths={s.name: s.candidates[i] for s, i in zip(space.stages, pick[groups:], strict=True)},
    )


def all_costs(space: SearchSpace, cost: Cost) -> dict[tuple[int, ...], int]:
    """The cost of every architecture by its pick."""
    return {pick: space.cost(cost, architecture_of(space, pick)) for pick in all_picks(space)}


def expected_cost(costs: dict[tuple[int, ...], int], probabilities: Probabilities) -> Tensor:
    """Σ over all architectures of probability · cost, with gradient."""
    rows = [*probabilities.widths, *probabilities.depths]
    total = torch.zeros((), dtype=torch.float64)
    for pick, cost in costs.items():
        total = total + cost * torch.stack([row[index] for row, index in zip(rows, pick, strict=True)]).prod()
    return total


def log_probability(space: SearchSpace, probabilities: Probabilities, architecture: Architecture) -> float:
    """Logarithm of an architecture's probability; one below 1e-30 for a candidate counts as that."""
    total = 0.0
    for named, sizes, rows in (
        (space.groups, architecture.widths, probabilities.widths.tolist()),
        (space.stages, architecture.depths, probabilities.depths.tolist()),
    ):
        for choice, row in zip(named, rows, strict=True):
            total += math.log(max(row[choice.candidates.index(sizes[choice.name])], 1e-30))
    return total


def best_within(
    costs: dict[tuple[int, ...], int], probabilities: Probabilities, target: int, least: float
) -> float | None:
    """Log-probability of the most probable architecture that costs between `least` and `target`; None: none does."""
    rows = [*probabilities.widths.tolist(), *probabilities.depths.tolist()]
    logs = [[math.log(max(p, 1e-30)) for p in row] for row in rows]
    within = [pick for pick, cost in costs.items() if least <= cost <= target]
    return max((sum(row[index] for row, index in zip(logs, pick, strict=True)) for pick in within), default=None)


@torch.no_grad()
def count_by_hand(network: nn.Module, example: Tensor) -> int:
    """MACs a sample, layer by layer from the textbook's formulas; a bias is one an output element."""
    total = 0

    def add(layer: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> None:
        nonlocal total
        elements = prod(outputs.shape[1:])
        if isinstance(layer, nn.Conv2d):
            each = layer.in_channels // layer.groups * prod(layer.kernel_size)
        else:
            each = inputs[0].shape[-1]
        total += elements * (each + (layer.bias is not None))

    was_training = network.training
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    network.eval()(example)
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    return total


def count_parameters(network: nn.Module) -> int:
    """Elements of all parameters; a shared one counts once."""
    return sum(parameter.numel() for parameter in network.parameters())
