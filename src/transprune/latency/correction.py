"""What lies between operators, learned from whole networks.

Each whole network gives one equation: its measured time is the corrected sum over its operators. The numbers of the
correction solve all equations best, each relative to its time, with a faint preference for no correction at all. The
full network counts more than others: shares of its latency are what budgets ask for.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import lsq_linear

from transprune.architecture import Architecture
from transprune.latency.latency_model import Correction
from transprune.latency.time_grids import Table
from transprune.layer_costs import Layer
from transprune.space import SearchSpace

PREFERENCE = 1e-2
"""Weight of the preference for no correction; an equation of one network has the weight 1."""
FULL = 3.0
"""Weight of the equation of the full network."""


def fit_correction(
    space: SearchSpace,
    tables: Mapping[Layer, Table],
    batch_size: int,
    architectures: Sequence[Architecture],
    measured: Sequence[float],
) -> Correction:
    """The correction that explains whole networks best.

    Args:
        space: The space of the architectures.
        tables: Times of every layer alone.
        batch_size: Samples in a batch.
        architectures: What was measured whole.
        measured: Times in nanoseconds.
    """
    sums = np.array([_parts(space, tables, batch_size, architecture) for architecture in architectures])
    rows = sums / np.array(measured)[:, None]
    typical = np.maximum(np.abs(rows).mean(0), 1e-30)  # brings the unknowns to one scale
    weights = np.array([FULL if one == space.full_architecture() else 1.0 for one in architectures])
    nothing = np.array([1.0, 0.0, 0.0, 0.0]) * typical  # no correction
    matrix = np.vstack([weights[:, None] * rows / typical, PREFERENCE * np.eye(4)])
    wanted = np.concatenate([weights, PREFERENCE * nothing])
    found = lsq_linear(matrix, wanted, bounds=([0, -np.inf, -np.inf, -np.inf], np.inf)).x / typical
    scale, traffic, handing, dispatch = map(float, found)
    return Correction(scale=scale, traffic=traffic, handing=handing, dispatch=dispatch)


def _parts(
    space: SearchSpace, tables: Mapping[Layer, Table], batch_size: int, architecture: Architecture
) -> np.ndarray:
    """What `Table.parts` says of the layers of an architecture, summed [4]."""
    total: np.ndarray = np.sum(
        [
            tables[layer].parts(
                batch_size, space.resolve(layer.inputs, architecture), space.resolve(layer.outputs, architecture)
            )
            for layer in space.layers
            if layer in tables and space.is_kept(layer.name, architecture)
        ],
        axis=0,
    )
    return total


def spread_architectures(space: SearchSpace, count: int, seed: int) -> list[Architecture]:
    """Architectures from the smallest to the full one, evenly: near the k-th of them sizes vary around k's share.

    Args:
        space: The space.
        count: How many, at least 2.
        seed: Decides how the sizes vary.
    """
    drawing = random.Random(seed)

    def drawn(candidates: Sequence[int], share: float) -> int:
        return candidates[sum(drawing.random() < share for _ in range(len(candidates) - 1))]

    return [
        Architecture(
            widths={group.name: drawn(group.candidates, share) for group in space.groups},
            depths={stage.name: drawn(stage.candidates, share) for stage in space.stages},
        )
        for share in np.linspace(0, 1, count)
    ]
