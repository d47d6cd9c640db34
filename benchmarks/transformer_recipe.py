"""What a transformer gains where a preset trains it by AdamW instead of SGD.

    python benchmarks/transformer_recipe.py --out benchmarks/transformer_recipe.jsonl

A small vision transformer on scikit-learn's digits, the preset `quick`, half of the MACs, three seeds. In `all`
teacher, search and student learn by the same optimizer; in `student` each seed's teacher is the one that AdamW trained,
as if it had been given, and search and student alone differ. Learning rates are the preset's for the optimizer.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import transprune
from transprune.runtime.environment import environment
from transprune.training.update import settled


class Encoder(nn.Module):
    """Attention and an expansion, each normed before and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.features = width // heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expansion = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [batch, count, width] to tokens."""
        batch, count, _ = tokens.shape
        qkv = self.qkv(self.first(tokens)).view(batch, count, 3, -1, self.features).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        tokens = tokens + self.proj(attended.transpose(1, 2).reshape(batch, count, -1))
        return tokens + self.expansion(self.second(tokens))


class TinyViT(nn.Module):
    """Patches of 2 × 2 pixels of images of 8 × 8, four encoders, the mean of the tokens."""

    def __init__(self, classes: int = 10, image_channels: int = 1, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(image_channels, width, 2, stride=2)
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.encoders = nn.Sequential(*(Encoder(width, heads) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [batch, channels, 8, 8] to logits [batch, classes]."""
        tokens = self.encoders(self.patches(images).flatten(2).transpose(1, 2) + self.places)
        return self.head(self.norm(tokens).mean(1))


def measured(seed: int, optimizer: str, preset: str, rates: list[float], teacher: nn.Module | None) -> tuple:
    """The teacher that was trained or given, and the row of figures."""
    recipe, data, setup = transprune.get_preset(preset), transprune.load_data("digits"), transprune.Setup(seed=seed)
    setup = replace(setup, progress=False)
    parts = (recipe.teacher, recipe.search, recipe.distill)
    own = [
        replace(part, optimizer=optimizer, **({"learning_rate": rate} if rate else {}))
        for part, rate in zip(parts, rates or [0.0] * 3, strict=True)
    ]
    started, given = time.perf_counter(), teacher is not None
    torch.manual_seed(seed)
    teacher = teacher or transprune.train(TinyViT(), data, own[0], setup=setup)
    found = transprune.search(teacher, data, "macs=0.5", own[1], setup=setup)
    student = transprune.distill(found.student, teacher, data, own[2], setup=setup)
    row = {
        "optimizer": optimizer,
        "seed": seed,
        "preset": preset,
        "learns": "student" if given else "all",
        "learning_rates": [settled(part, teacher).learning_rate for part in own],
        "teacher_top1": transprune.evaluate(teacher, data).top1,
        "untrained_top1": transprune.evaluate(found.student, data).top1,
        "student_top1": transprune.evaluate(student, data).top1,
        "target": found.target,
        "actual": found.actual,
        "seconds": round(time.perf_counter() - started, 1),
    }
    return teacher, row


def main() -> None:
    """Measures every seed with both optimizers and writes a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--adamw", type=float, nargs=3, default=[], help="other rates of teacher, search and student")
    parser.add_argument("--adamw-only", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with asked.out.open("w") as file:
        file.write(json.dumps({"environment": environment()}, default=str) + "\n")
        for seed in asked.seeds:
            trained, row = measured(seed, "adamw", asked.preset, asked.adamw, None)
            rows = [row]
            if not asked.adamw_only:
                rows += [measured(seed, "sgd", asked.preset, [], teacher)[1] for teacher in (None, trained)]
            for each in rows:
                print(each, flush=True)
                file.write(json.dumps(each) + "\n")
                file.flush()


if __name__ == "__main__":
    main()
