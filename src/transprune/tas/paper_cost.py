"""The expected MACs as the paper's authors computed them: for comparison with their figures, not for a search."""

from __future__ import annotations

import torch
from torch import Tensor

from transprune.layer_costs import Channels, Layer
from transprune.space import SearchSpace
from transprune.tas.probabilities import Probabilities


def paper_expected_macs(space: SearchSpace, probabilities: Probabilities) -> Tensor:
    """Expected MACs by products of mean widths, a float64 scalar in MACs a sample.

    It differs from `ExpectedCost` where the authors' formula is not the expectation: the layer behind a stage reads the
    mean width of the stage's last block, whether that is kept or not; projections that appear because widths differ
    are left out; so are biases.

    Source: Dong & Yang, 2019, arXiv:1905.09717, section 3.2 (E_cost), as in the authors' code.
    """
    means: dict[str, Tensor] = {}
    for group, row in zip(space.groups, probabilities.widths.double(), strict=True):
        means[group.name] = row[: len(group.candidates)] @ torch.tensor(group.candidates).to(row)

    def mean(channels: Channels) -> Tensor | float:
        if channels.source in space.stage_index:
            channels = space.stages[space.stage_index[channels.source]].outputs[-1]
        return channels.full if channels.source is None else means[channels.source]

    def kept(layer: Layer) -> Tensor | float:
        block = space.block_of(layer.name)
        if block is None:
            return 1.0
        stage, position = block
        is_deeper = torch.tensor([depth > position for depth in stage.candidates])
        row = probabilities.depths[space.stage_index[stage.name], : len(stage.candidates)].double()
        return row[is_deeper].sum()

    products = [
        layer.kernel * layer.positions * mean(layer.inputs) * mean(layer.outputs) * kept(layer)
        for layer in space.layers
        if layer.operator in ("conv", "linear")
    ]
    return torch.stack([torch.as_tensor(product, dtype=torch.float64) for product in products]).sum()
