"""Which channels matter: those that the others cannot stand in for.

Units are left out one after the other, each time the one that costs least once the layers that read it have been fitted
again to the units that are left. That is Optimal Brain Surgeon (Hassibi & Stork, 1992) on the layers' own outputs, with
all inputs of a unit taken out together, and for all layers that read the group at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SMOOTHING = 1e-6
"""Added to the mean square of each input, as a share of their mean."""
STEPS = 128
"""Units of wider groups are left out several at a time."""


@dataclass(frozen=True)
class Reader:
    """A layer that reads the channels of a group."""

    gram: Tensor
    """Products of its inputs, averaged [inputs, inputs]."""
    weights: Tensor
    """[inputs, outputs]."""
    units: Tensor
    """For every input the unit that it belongs to, −1: to none."""


@dataclass(frozen=True)
class Elimination:
    """The order in which units were left out."""

    order: np.ndarray
    """The units, the one that was kept longest first."""
    lost: np.ndarray
    """Error of the readers, as a share of their outputs' variance and added up, by the units kept [width + 1]."""


def eliminate(readers: Sequence[Reader], width: int, *, order: np.ndarray | None = None) -> Elimination:
    """Leaves out one unit after the other, the one that is missed least first.

    Args:
        readers: The layers that read them.
        width: How many units there are.
        order: The order that they must keep, the last one left out first; None: none.
    """
    states = [_State.of(reader) for reader in readers]
    alive = np.ones(width, dtype=bool)
    lost = np.zeros(width + 1)
    left_out: list[int] = []
    while alive.any():
        left = width - len(left_out)
        if order is None:
            costs = sum((state.costs(alive) for state in states), np.zeros(width))
            costs[~alive] = np.inf
            chosen = np.argsort(costs, kind="stable")[: max(1, left // STEPS)]
        else:
            chosen = order[left - 1 : left]
        for unit in chosen:
            left = width - len(left_out)
            lost[left - 1] = lost[left] + sum(state.leave_out(int(unit)) for state in states)
            alive[unit] = False
            left_out.append(int(unit))
    return Elimination(np.array(left_out[::-1]), lost)


@dataclass
class _State:
    """A reader while units are left out; inputs that are gone have rows and columns of zeros."""

    inverse: Tensor
    weights: Tensor
    places: dict[int, Tensor]
    """The inputs of each unit."""
    scale: float

    @classmethod
    def of(cls, reader: Reader) -> _State:
        gram = reader.gram.double()
        variance = float((reader.weights * (gram @ reader.weights)).sum())
        smoothing = SMOOTHING * gram.diagonal().mean().clamp_min(1e-12)
        inverse = torch.linalg.inv(gram + smoothing * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        places = {int(unit): torch.nonzero(reader.units == unit)[:, 0] for unit in reader.units.unique() if unit >= 0}
        return cls(inverse, reader.weights.double(), places, 1 / max(variance, 1e-30))

    def costs(self, alive: np.ndarray) -> np.ndarray:
        """What leaving out each unit adds to the error [width]."""
        found = np.zeros(len(alive))
        units = [unit for unit in self.places if alive[unit]]
        if not units:
            return found
        places = torch.stack([self.places[unit] for unit in units])  # as many inputs for every unit
        blocks = self.inverse[places[:, :, None], places[:, None, :]]
        weights = self.weights[places]
        found[units] = self.scale * (weights * torch.linalg.solve(blocks, weights)).sum((1, 2)).cpu().numpy()
        return found

    def leave_out(self, unit: int) -> float:
        """Fits the weights again without a unit; what that adds to the error."""
        if unit not in self.places:
            return 0.0
        at = self.places[unit]
        block, row, weights = self.inverse[at][:, at], self.inverse[at], self.weights[at]
        taken = torch.linalg.solve(block, torch.cat([row, weights], dim=1))
        cost = float((weights * taken[:, row.shape[1] :]).sum())
        self.weights = self.weights - row.T @ taken[:, row.shape[1] :]
        self.inverse = self.inverse - row.T @ taken[:, : row.shape[1]]
        return self.scale * cost
