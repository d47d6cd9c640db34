"""How long a derivation takes, and how good its answer is, on large search spaces.

    python benchmarks/derivation.py resnet20 resnet110 mobilenet_v2 densenet121 > benchmarks/derivation.txt

Random probabilities (softmax of normal logits times a sharpness), budgets of 30, 50 and 70 % of the MACs, alone and
with one of 60 % of the parameters. CPU seconds, as the machine may be busy; a figure of the local search beside them.
"""

from __future__ import annotations

import sys
import time

import torch
import torchvision

import transprune
from transprune.budget import Budget
from transprune.models.by_name import build_model
from transprune.tas.derivation import derive_with_proof
from transprune.tas.local_search import log_probabilities, step_within
from transprune.tas.probabilities import Probabilities, candidate_masks


def space_named(name: str) -> transprune.SearchSpace:
    if name.startswith("resnet"):
        return transprune.inspect(build_model(name, classes=10, image_channels=3), torch.zeros(1, 3, 32, 32))
    return transprune.inspect(torchvision.models.get_model(name), torch.zeros(1, 3, 224, 224))


def random_probabilities(space: transprune.SearchSpace, sharpness: float) -> Probabilities:
    generator = torch.Generator().manual_seed(0)
    rows = [
        (sharpness * torch.randn(mask.shape, generator=generator)).masked_fill(~mask, -torch.inf).softmax(1)
        for mask in candidate_masks(space)
    ]
    return Probabilities(*rows)


def log_probability(
    space: transprune.SearchSpace, probabilities: Probabilities, found: transprune.Architecture
) -> float:
    rows = zip(space.choices, space.sizes_of(found), log_probabilities(space, probabilities), strict=True)
    return float(sum(row[choice.candidates.index(size)] for choice, size, row in rows))


def main() -> None:
    print("network, sharpness, budgets: CPU seconds, log-probability, used, proof; CPU seconds of the local search")
    for name in sys.argv[1:]:
        space = space_named(name)
        for sharpness in (0.1, 1.0, 4.0):
            for texts in [[f"macs={share}", *more] for more in ([], ["params=0.6"]) for share in (0.3, 0.5, 0.7)]:
                probabilities = random_probabilities(space, sharpness)
                limits = [Budget.parse(text).limit(space) for text in texts]
                started = time.process_time()
                found = derive_with_proof(space, probabilities, limits, seconds=300)
                derived = time.process_time()
                step_within(space, probabilities, limits)
                stepped = time.process_time()
                used = [f"{space.cost(limit.cost, found.architecture) / limit.most:.4f}" for limit in limits]
                reached = log_probability(space, probabilities, found.architecture)
                print(
                    f"{name} {sharpness} {' '.join(texts)}: {derived - started:.1f} s, {reached:.4f}, "
                    f"{' '.join(used)}, {found}; {stepped - derived:.2f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
