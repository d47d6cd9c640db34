"""Small networks of every kind of layer that repair and scores have to do with, and samples for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """A convolution, a residual block, pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.norm(self.stem(images)))
        features = F.relu(features + self.second_norm(self.second(F.relu(self.first(features)))))
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


class Depthwise(nn.Module):
    """A depthwise convolution, two branches that are concatenated, and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Conv2d(3, 12, 1)
        self.each = nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12)
        self.left = nn.Conv2d(12, 6, 1)
        self.right = nn.Conv2d(12, 4, 3, padding="same", dilation=2)
        self.joined = nn.Conv2d(10, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.classifier = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.each(F.relu(self.widen(images))))
        features = torch.cat([F.relu(self.left(features)), F.relu(self.right(features))], dim=1)
        features = self.grouped(F.relu(self.joined(features)))
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


class Attention(nn.Module):
    """One block of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.norm = nn.LayerNorm(16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        features = self.embed(tokens)
        normed = self.norm(features)
        query, key, value = (
            layer(normed).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        features = features + self.out(attended.transpose(1, 2).flatten(2))
        features = features + self.down(F.gelu(self.up(features)))
        outputs: Tensor = self.head(features.mean(1))
        return outputs


CASES = {
    "residual": (Residual, (64, 3, 8, 8)),
    "depthwise": (Depthwise, (64, 3, 8, 8)),
    "attention": (Attention, (64, 5, 6)),
}


def made(case: str) -> tuple[nn.Module, Tensor]:
    """A network whose norms have statistics of their own, and samples."""
    torch.manual_seed(0)
    kind, size = CASES[case]
    network, samples = kind(), torch.randn(size)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    network.train()(samples)
    return network.eval(), samples
