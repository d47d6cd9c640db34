"""One network that holds all architectures of a search space (Dong & Yang, 2019, arXiv:1905.09717, section 3)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from transprune.architecture import Architecture
from transprune.errors import OptionError, SpaceError
from transprune.layers import Layer
from transprune.networks.searchable import (
    CandidateBatchNorm2d,
    Current,
    MixedStage,
    PaddedResidualSum,
    SlicedBatchNorm2d,
    SlicedConv2d,
    SlicedLinear,
)
from transprune.networks.selection import Selection
from transprune.networks.surgery import get_module, put_module
from transprune.numerics.alignment import ALIGNMENTS, Alignment
from transprune.residual import ResidualSum
from transprune.space import SearchSpace


class Supernet(nn.Module):
    """A copy of a model whose layers run at any candidate widths and whose stages run at any candidate depths.

    The model's own forward runs; its convolutions, linear layers, batch norms, stages and residual sums are exchanged
    for searchable ones that keep their names. Its weights start as the model's, which is untouched.

    Args:
        model: The network that `space` was read from.
        space: Its search space.
        alignment: How feature maps of different widths are brought together: `interpolate` stretches channels (the
            paper), `pad` keeps channel i as channel i.

    Raises:
        SpaceError: The space names a layer that the model does not have.
        OptionError: The alignment is unknown.

    Example:
        >>> supernet = Supernet(model, space)  # doctest: +SKIP
        >>> logits = supernet(parameters.sample(temperature=5.0), images)  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, space: SearchSpace, *, alignment: Alignment = "interpolate") -> None:
        super().__init__()
        if alignment not in ALIGNMENTS:
            raise OptionError(
                f"cannot build a supernet with alignment={alignment!r}; expected {' or '.join(ALIGNMENTS)}"
            )
        self.space = space
        self.current = Current(alignment)
        self.network = copy.deepcopy(model)
        for layer in space.layers:
            is_searched = layer.inputs.source or layer.outputs.source or layer.operator == "norm"
            if not layer.is_repeat and is_searched:
                self._exchange(layer)
        shared = {group.name for group in space.groups if len(group.layers) > 1}
        tied = {layer.name for layer in space.layers if layer.outputs.source in shared}
        for name, module in list(self.network.named_modules()):
            if isinstance(module, ResidualSum):
                is_tied = f"{name}.shortcut" in tied
                put_module(self.network, name, PaddedResidualSum(module, keeps_main_width=is_tied))
        for stage in space.stages:
            blocks = get_module(self.network, stage.name)
            assert isinstance(blocks, nn.Sequential)  # what analysis calls a stage is one
            put_module(self.network, stage.name, MixedStage(blocks, stage.name, self.current))

    def forward(self, selection: Selection, *inputs: Any) -> Any:
        """What the model returns, computed with the selected candidates."""
        self.current.selection = selection
        try:
            return self.network(*inputs)
        finally:
            self.current.selection = None

    def _exchange(self, layer: Layer) -> None:
        if layer.operator == "projection":
            return
        module = get_module(self.network, layer.name)
        is_mixed, current = layer.is_mixed, self.current
        searchable: nn.Module
        if isinstance(module, nn.Conv2d):
            searchable = SlicedConv2d(module, layer.outputs, is_mixed=is_mixed, current=current)
        elif isinstance(module, nn.Linear):
            searchable = SlicedLinear(module, layer.outputs, current=current)
        elif isinstance(module, nn.BatchNorm2d) and is_mixed:
            group = self.space.groups[self.space.group_index[str(layer.outputs.source)]]
            searchable = CandidateBatchNorm2d(module, len(group.candidates), layer.outputs, current)
        elif isinstance(module, nn.BatchNorm2d):
            searchable = SlicedBatchNorm2d(module)
        else:
            raise SpaceError(f"cannot search {layer.name!r}: it is a {type(module).__name__}, not a {layer.operator}")
        put_module(self.network, layer.name, searchable)

    @torch.no_grad()
    def plain_weights(self, architecture: Architecture) -> dict[str, torch.Tensor]:
        """The supernet's weights under the model's names and at its full widths, as one architecture uses them.

        Batch norms give the scale and shift of the architecture's candidate. Running statistics are not among them.
        """
        weights = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        for name, module in self.network.named_modules():
            if isinstance(module, CandidateBatchNorm2d):
                group = self.space.groups[self.space.group_index[str(module.source)]]
                index = group.candidates.index(architecture.widths.get(group.name, group.width))
                weights[f"{name}.weight"] = module.weight[index].clone()
                weights[f"{name}.bias"] = module.bias[index].clone()
        return weights
