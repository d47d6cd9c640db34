"""What lies between operators, learned from whole networks.

Each whole network gives one equation: its measured time is the corrected sum over its operators. The three numbers of
the correction solve all equations best, each relative to its time, with a faint preference for no correction at all.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import lsq_linear

from transprune.architecture import Architecture
from transprune.latency.model import Correction
from transprune.latency.tables import Table
from transprune.layers import Layer
from transprune.space import SearchSpace

PREFERENCE = 1e-2
"""Weight of the preference for no correction; an equation of one network has the weight 1."""


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
    sums = np.array([_sums(space, tables, batch_size, architecture) for architecture in architectures])
    rows = sums / np.array(measured)[:, None]
    typical = np.maximum(np.abs(rows).mean(0), 1e-30)  # brings the three unknowns to one scale
    matrix = np.vstack([rows / typical, PREFERENCE * np.eye(3)])
    wanted = np.concatenate([np.ones(len(rows)), PREFERENCE * np.array([typical[0], 0.0, 0.0])])
    found = lsq_linear(matrix, wanted, bounds=([0, -np.inf, -np.inf], np.inf)).x / typical
    return Correction(scale=float(found[0]), traffic=float(found[1]), dispatch=float(found[2]))


def _sums(
    space: SearchSpace, tables: Mapping[Layer, Table], batch_size: int, architecture: Architecture
) -> tuple[float, float, float]:
    """Times alone, elements read and written, and number of the layers of an architecture."""
    times = elements = count = 0.0
    for layer in space.layers:
        table = tables.get(layer)
        if table is None or not space.is_kept(layer.name, architecture):
            continue
        inputs, outputs = space.resolve(layer.inputs, architecture), space.resolve(layer.outputs, architecture)
        if not (table.operator.needs_change and inputs == outputs):
            times += table.time(inputs, outputs)
            elements += table.operator.traffic(batch_size, inputs, outputs)
            count += 1
    return times, elements, count


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
