"""A network at smaller sizes: its weights are cut as they are read, so that no candidate needs a network of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transprune.architecture import Architecture
from transprune.kernels.feature_maps import add_padded
from transprune.reading.coupling import Function
from transprune.reading.execution import Program, Step
from transprune.reading.layouts import Order, Sizes, is_searched, kept_of
from transprune.shrinking.traced_network import PlainRun


def sizes_of(architecture: Architecture) -> Sizes:
    """What is in use in an architecture."""
    return Sizes(architecture.widths, {stage: (depth,) for stage, depth in architecture.depths.items()})


class CutRun(PlainRun):
    """A run that computes what the shrunk network would, were its channels sorted first.

    A residual sum whose sides have come to differ pads or drops channels, as its new projection would.

    Args:
        network: The unpruned network.
        program: Its operators.
        sizes: Widths and depths in use.
        order: The units of each group, the most important first.
        changed: Parameters and buffers that take the place of the network's own, by path and at full size.
    """

    def __init__(
        self,
        network: nn.Module,
        program: Program,
        sizes: Sizes,
        order: Order | None = None,
        changed: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(network, program, sizes)
        self.order = order or program.reading.first_units
        self.changed = {} if changed is None else changed

    def state(self, name: str) -> Tensor:
        paths = self.program.aliases.get(name, (name,))
        tensor = next((self.changed[path] for path in paths if path in self.changed), None)
        if tensor is None:
            tensor = super().state(name)
        if name in self.program.reading.trace.constants:
            return tensor
        for axis, layout in enumerate(self.program.reading.states.get(name, ())):
            if not is_searched(layout):
                continue
            kept = kept_of(layout, self.sizes, self.order)
            if len(kept) < tensor.shape[axis] or (kept != np.arange(len(kept))).any():
                tensor = tensor.index_select(axis, torch.from_numpy(kept).to(tensor.device))
        return tensor

    def function(self, step: Step) -> Function:
        if step.node in self.program.free_sums:
            return _padded_sum
        return super().function(step)


def _padded_sum(arguments: dict[str, Any]) -> Tensor:
    main: Tensor = arguments["self"]
    return add_padded(main, arguments["other"][:, : main.shape[1]])
