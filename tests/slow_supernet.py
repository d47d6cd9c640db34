"""The paper's supernet for CIFAR ResNets, slow and obvious: every formula as it stands (arXiv:1905.09717, section 3).

Every convolution runs at full width on an input filled up with channels of zeros. Every candidate is cut from the
result and normalised by itself, with its own scale and shift. Then the candidates are brought to the widest of them,
weighted and added. All blocks of a stage run, whatever depths are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from transprune.tas.selection import Choice, Selection

EPSILON = 1e-5
"""What torch's batch norm adds to the variance."""


def fill_up(features: Tensor, width: int) -> Tensor:
    """Appends channels of zeros."""
    missing = width - features.shape[1]
    return torch.cat([features, features.new_zeros(features.shape[0], missing, *features.shape[2:])], dim=1)


def stretch(features: Tensor, width: int) -> Tensor:
    """Channel-wise interpolation: adaptive average pooling along the channels."""
    channels_last = features.permute(0, 2, 3, 1).flatten(1, 2)
    stretched = F.adaptive_avg_pool1d(channels_last, width)
    return stretched.unflatten(1, features.shape[2:]).permute(0, 3, 1, 2)


def normalise(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Batch normalisation with the statistics of the batch."""
    mean = features.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((features - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    standard = (features - mean) / torch.sqrt(variance + EPSILON)
    return standard * scale[None, :, None, None] + shift[None, :, None, None]


@dataclass(frozen=True)
class SlowSupernet:
    """The same network as `Supernet(resnet, space)`.

    Args:
        weights: Parameters by the names of the supernet's network. A norm has a row for each candidate.
        blocks: Blocks of every stage.
        layers: Convolutions of a block: 2 (basic) or 3 (bottleneck).
        alignment: `interpolate` or `pad`.
    """

    weights: Mapping[str, Tensor]
    blocks: tuple[int, ...]
    layers: int
    alignment: str

    def __call__(self, selection: Selection, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, channels, rows, columns]."""
        features = self.conv_norm("stem", images, selection.widths.get("stem.conv")).relu()
        for stage, blocks in enumerate(self.blocks):
            handed_on = []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                features = self.block(f"stages.{stage}.{block}", features, stride, selection)
                handed_on.append(features)
            depths = selection.depths.get(f"stages.{stage}")
            if depths is not None:
                kept = [handed_on[depth - 1] for depth in depths.sizes]
                features = self.mix(kept, depths.weights)
        pooled = features.mean(dim=(2, 3))
        return pooled @ self.weights["classifier.weight"][:, : pooled.shape[1]].T + self.weights["classifier.bias"]

    def block(self, path: str, features: Tensor, stride: int, selection: Selection) -> Tensor:
        """A residual block: its convolutions, then the sum with its input, then a ReLU."""
        main = features
        for layer in range(1, self.layers + 1):
            # The first convolution of a basic block has the stride, and the second of a bottleneck.
            step = stride if layer == self.layers - 1 else 1
            choice = selection.widths.get(f"{path}.layer{layer}.conv")
            main = self.conv_norm(f"{path}.layer{layer}", main, choice, step)
            main = main.relu() if layer < self.layers else main
        # The shortcut has the widths of the block's last convolution.
        shortcut = self.shortcut(f"{path}.sum.shortcut", features, choice)
        width = max(main.shape[1], shortcut.shape[1])
        return (fill_up(main, width) + fill_up(shortcut, width)).relu()

    def shortcut(self, path: str, features: Tensor, choice: Choice | None) -> Tensor:
        """Average pooling and a bare convolution; or a convolution and a norm; or nothing."""
        if f"{path}.0.weight" in self.weights:
            full = self.convolution(f"{path}.0.weight", features, 1)
            return self.mix_candidates(self.normalised(f"{path}.1", full, choice), choice)
        if f"{path}.1.weight" in self.weights:
            full = self.convolution(f"{path}.1.weight", F.avg_pool2d(features, 2), 1)
            widths = choice.sizes if choice else (full.shape[1],)
            return self.mix_candidates([full[:, :width] for width in widths], choice)
        return features

    def conv_norm(self, path: str, features: Tensor, choice: Choice | None, stride: int = 1) -> Tensor:
        """A convolution and its batch norm; the chosen widths mixed."""
        full = self.convolution(f"{path}.conv.weight", features, stride)
        return self.mix_candidates(self.normalised(f"{path}.norm", full, choice), choice)

    def convolution(self, name: str, features: Tensor, stride: int) -> Tensor:
        """At full width, on an input filled up with zeros."""
        weight = self.weights[name]
        return F.conv2d(fill_up(features, weight.shape[1]), weight, stride=stride, padding=weight.shape[2] // 2)

    def normalised(self, path: str, full: Tensor, choice: Choice | None) -> list[Tensor]:
        """Every candidate, cut from the full width and normalised by itself."""
        scales, shifts = (self.weights[f"{path}.{name}"] for name in ("weight", "bias"))
        if choice is None:
            return [normalise(full, scales, shifts)]
        return [
            normalise(full[:, :width], scales[index, :width], shifts[index, :width])
            for width, index in zip(choice.sizes, choice.indices, strict=True)
        ]

    def mix_candidates(self, candidates: list[Tensor], choice: Choice | None) -> Tensor:
        return candidates[0] if choice is None else self.mix(candidates, choice.weights)

    def mix(self, candidates: list[Tensor], weights: Tensor) -> Tensor:
        """Feature maps brought to the widest of them, weighted and added."""
        widest = max(candidate.shape[1] for candidate in candidates)
        align = stretch if self.alignment == "interpolate" else fill_up
        return sum(weight * align(candidate, widest) for weight, candidate in zip(weights, candidates, strict=True))
