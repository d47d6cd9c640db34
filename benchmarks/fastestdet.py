"""A trained FastestDet cut to a share of its MACs, on 128 images of COCO: ours, uniform widths, Torch-Pruning.

    python benchmarks/fastestdet.py weights.pth coco256 --budget macs=0.6 --epochs 60 --out benchmarks/fastestdet

`coco256` holds `train2017.parquet` and `val2017.parquet` with columns `image` and `objects` (`category`, and `bbox` as
centre x, centre y, width and height, shares of the image). The network is written down from its description
(github.com/dog-qiuqiu/FastestDet) with the names and shapes of its file. Students learn from the teacher's answers on
the training images alone, flipped, cropped and brightened at random; no label is looked at. Average precision is
measured on the other images. Each method leaves a JSON file, so a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.ops import batched_nms, box_convert
from torchvision.transforms import v2

import transprune
from whole_job import magnitude_pruned, once

SIDE = 352
CLASSES = 80


def convolution(before: int, after: int, size: int = 1, stride: int = 1, groups: int = 1, *, is_active: bool = True):
    layers = [nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(after)]
    return [*layers, nn.ReLU()] if is_active else layers


def wide(channels: int) -> list[nn.Module]:
    """A convolution over 5 x 5 pixels of each channel."""
    return convolution(channels, channels, 5, groups=channels)


class Block(nn.Module):
    """A block of ShuffleNet V2 (Ma et al., 2018, arXiv:1807.11164), which takes every second channel through."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        middle, inner = after // 2, before // (1 if stride == 2 else 2)
        self.branch_main = nn.Sequential(
            *convolution(inner, middle),
            *convolution(middle, middle, 3, stride, middle, is_active=False),
            *convolution(middle, after - inner),
        )
        self.branch_proj = None
        if stride == 2:
            self.branch_proj = nn.Sequential(
                *convolution(inner, inner, 3, 2, inner, is_active=False), *convolution(inner, inner)
            )

    def forward(self, features: Tensor) -> Tensor:
        if self.branch_proj is not None:
            return torch.cat([self.branch_proj(features), self.branch_main(features)], 1)
        pairs = features.unflatten(1, (-1, 2))
        return torch.cat([pairs[:, :, 0], self.branch_main(pairs[:, :, 1])], 1)


class Backbone(nn.Module):
    """Three stages, of which each hands on its features."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(*convolution(3, 24, 3, 2))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        before = 24
        for place, (count, after) in enumerate(((4, 48), (8, 96), (4, 192)), 2):
            blocks = [Block(before, after, 2), *(Block(after, after, 1) for _ in range(count - 1))]
            self.add_module(f"stage{place}", nn.Sequential(*blocks))
            before = after

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.stage2(self.maxpool(self.first_conv(images)))
        second = self.stage3(first)
        return first, second, self.stage4(second)


class One(nn.Module):
    """A convolution of single pixels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Sequential(*convolution(before, after))

    def forward(self, features: Tensor) -> Tensor:
        return self.conv1x1(features)


class Pooling(nn.Module):
    """What is around a pixel, at three distances."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.Conv1x1 = One(before, after)
        for count in (1, 2, 3):
            setattr(self, f"S{count}", nn.Sequential(*(layer for _ in range(count) for layer in wide(after))))
        self.output = nn.Sequential(*convolution(3 * after, after, is_active=False))

    def forward(self, features: Tensor) -> Tensor:
        features = self.Conv1x1(features)
        around = torch.cat([self.S1(features), self.S2(features), self.S3(features)], 1)
        return F.relu(features + self.output(around))


class Branch(nn.Module):
    """A head's convolutions for one of its answers."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv5x5 = nn.Sequential(*wide(before), *convolution(before, after, is_active=False))

    def forward(self, features: Tensor) -> Tensor:
        return self.conv5x5(features)


class Head(nn.Module):
    """Whether there is an object, where, and of which class."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1x1 = One(channels, channels)
        self.obj_layers, self.reg_layers = Branch(channels, 1), Branch(channels, 4)
        self.cls_layers = Branch(channels, CLASSES)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Logits of an object [batch, 1, rows, columns], its box [batch, 4, …] and its class [batch, 80, …]."""
        features = self.conv1x1(features)
        return {
            "object": self.obj_layers(features),
            "box": self.reg_layers(features),
            "class": self.cls_layers(features),
        }


class FastestDet(nn.Module):
    """A detector without anchors, which answers once for each of 22 x 22 places."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.SPP, self.detect_head = Backbone(), Pooling(336, 96), Head(96)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first, second, third = self.backbone(images)
        joined = torch.cat([F.avg_pool2d(first, 3, 2, 1), second, F.interpolate(third, scale_factor=2)], 1)
        return self.detect_head(self.SPP(joined))


def boxes_of(outputs: dict[str, Tensor]) -> Tensor:
    """Boxes [batch, rows, columns, 4] as x1, y1, x2, y2 in pixels."""
    box = outputs["box"].permute(0, 2, 3, 1)
    rows, columns = box.shape[1:3]
    down, right = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    centre = torch.stack([(box[..., 0].tanh() + right) / columns, (box[..., 1].tanh() + down) / rows], -1)
    return box_convert(torch.cat([centre, box[..., 2:].sigmoid()], -1), "cxcywh", "xyxy") * SIDE


def found_in(outputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """What is drawn: the best box of each place, without those that overlap a better one of their class."""
    boxes = boxes_of(outputs).flatten(1, 2)
    best, labels = outputs["class"].softmax(1).flatten(2).max(1)
    scores = outputs["object"].sigmoid().flatten(1) ** 0.6 * best**0.4
    drawn = []
    for each, label, score in zip(boxes, labels, scores, strict=True):
        seen = score > 0.001
        kept = batched_nms(each[seen], score[seen], label[seen], 0.45)
        drawn.append({"boxes": each[seen][kept], "labels": label[seen][kept], "scores": score[seen][kept]})
    return drawn


def imitation(student: dict[str, Tensor], teacher: dict[str, Tensor], _: Any) -> Tensor:
    """How far a student is from the teacher's boxes and classes, where the teacher sees objects, and from where."""
    certain = teacher["object"].sigmoid()
    share = certain / certain.sum()
    seen = F.binary_cross_entropy_with_logits(student["object"], certain, reduction="sum") / certain.sum()
    seen = seen - F.binary_cross_entropy(certain, certain, reduction="sum") / certain.sum()
    logs = [each["class"].log_softmax(1) for each in (student, teacher)]
    named = (share * F.kl_div(*logs, reduction="none", log_target=True).sum(1, keepdim=True)).sum()
    moved = (boxes_of(student) - boxes_of(teacher)).abs() / SIDE
    return seen + named + 10 * (share[:, 0, ..., None] * moved).sum()


def measured(outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> list[dict[str, Any]]:
    return [{"found": one, "true": each} for one, each in zip(found_in(outputs), targets, strict=True)]


def precision(seen: list[dict[str, Any]]) -> float:
    return transprune.average_precisions(seen)["map50"]


TASK = transprune.Task(
    loss=lambda outputs, _: outputs["object"].mean() * 0,  # no label is looked at
    metrics={"map50": transprune.Metric(measured, finish=precision, of_all=True)},
    distillation_loss=imitation,
)


class Scenes(torch.utils.data.Dataset):
    """Images as the network wants them: blue, green, red, from 0 to 1, at one size; and their objects."""

    def __init__(self, path: Path, *, is_augmented: bool) -> None:
        self.rows, self.is_augmented = pq.read_table(path).to_pylist(), is_augmented
        self.images = [
            v2.functional.pil_to_tensor(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")).flip(0)
            for row in self.rows
        ]
        self.change = v2.Compose(
            [
                v2.RandomResizedCrop((SIDE, SIDE), scale=(0.4, 1), ratio=(0.75, 1.33), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.3, 0.3, 0.3),
            ]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, objects = self.images[place], self.rows[place]["objects"]
        if self.is_augmented:
            return self.change(image) / 255, {}
        boxes = torch.tensor(objects["bbox"], dtype=torch.float32).reshape(-1, 4)
        known = {
            "boxes": box_convert(boxes, "cxcywh", "xyxy") * SIDE,
            "labels": torch.tensor(objects["category"], dtype=torch.int64),
        }
        return v2.functional.resize(image, [SIDE, SIDE], antialias=False) / 255, known


def together(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    images, objects = zip(*samples, strict=True)
    return torch.stack(images), list(objects)


def loaded(path: Path) -> nn.Module:
    network = FastestDet()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--budget", default="macs=0.6")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--torch-pruning", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    teacher = loaded(asked.weights)
    train, test = (
        DataLoader(
            Scenes(asked.data / f"{name}2017.parquet", is_augmented=name == "train"),
            16,
            shuffle=name == "train",
            collate_fn=together,
        )
        for name in ("train", "val")
    )
    data = train, test
    plain = Scenes(asked.data / "train2017.parquet", is_augmented=False)
    samples = torch.stack([image for image, _ in plain])
    asked.out.mkdir(parents=True, exist_ok=True)
    once(asked.out / "teacher.json", lambda: transprune.evaluate(teacher, data, task=TASK).to_json())
    began = time.process_time()
    small = transprune.compress(teacher, samples, asked.budget, task=TASK, seed=asked.seed)
    scored = time.process_time() - began
    space, (limit,) = small.space, small.limits
    example = samples[:1]
    shapes = {
        "ours": lambda: small.architecture,
        "uniform widths": lambda: transprune.uniform_architecture(space, small.limits),
    }
    if asked.torch_pruning:
        shapes["Torch-Pruning"] = lambda: magnitude_pruned(teacher, space, limit.most, example)
    for name, shape in shapes.items():

        def trained(name: str = name, shape: Any = shape) -> dict[str, Any]:
            architecture = shape()
            student = small.student
            if name != "ours":
                cut = transprune.shrink(small.sorted_model, architecture, samples)
                student = transprune.repair(cut, small.sorted_model, architecture, samples)
            options = transprune.DistillationOptions(
                epochs=asked.epochs,
                warm_up_epochs=asked.epochs / 10,
                optimizer="adamw",
                learning_rate=0.001,
                evaluate_every=max(1, asked.epochs // 6),
            )
            setup = transprune.Setup(seed=asked.seed, phase=name)
            before = transprune.evaluate(student, data, task=TASK)
            after = transprune.distill(student, teacher, data, options, task=TASK, setup=setup)
            return {
                "macs": [space.macs(architecture), space.macs(space.full_architecture())],
                "architecture": architecture.to_json(),
                "before": before.to_json(),
                "after": transprune.evaluate(after, data, task=TASK).to_json(),
                "scores_seconds": scored if name == "ours" else 0.0,
            }

        once(asked.out / f"{name.replace(' ', '-').lower()}-seed-{asked.seed}.json", trained)


if __name__ == "__main__":
    main()
