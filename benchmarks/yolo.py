"""A YOLO that ultralytics has trained, halved without training and then trained on by ultralytics' own trainer.

    pip install '.[ultralytics]'
    python benchmarks/yolo.py --out benchmarks/yolo

The images are drawn here: 240 and 80 of squares, discs and triangles, 96×96. A YOLOv8n learns them for 25 epochs. It
is cut to half of its MACs by scores, and to uniform widths, repaired alike; each is measured as it is, saved as a file
of ultralytics, and trained for 8 epochs by ultralytics with the unpruned network as `distill_model`. All figures are
those of `YOLO.val`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

import transprune
from transprune.runtime.environment import environment
from transprune.scores.compress import gather_samples

SIDE = 96
COMMON = {"imgsz": SIDE, "workers": 0, "device": "cpu", "plots": False, "verbose": False}
LEARNING = {"batch": 16, "amp": False, "optimizer": "AdamW", "exist_ok": True}


def draw(folder: Path) -> Path:
    """Images, labels and data.yaml; what is there is kept."""
    described = folder / "data.yaml"
    if described.exists():
        return described
    chosen = random.Random(0)
    for part, count in (("train", 240), ("val", 80)):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (SIDE, SIDE), tuple(chosen.randrange(60) for _ in range(3)))
            pen, lines = ImageDraw.Draw(image), []
            for _ in range(chosen.randint(1, 3)):
                kind, radius = chosen.randrange(3), chosen.randint(8, 18)
                x, y = (chosen.randint(radius, SIDE - radius) for _ in range(2))
                colour = tuple(chosen.randrange(100, 256) for _ in range(3))
                box = (x - radius, y - radius, x + radius, y + radius)
                if kind == 2:
                    pen.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=colour)
                else:
                    (pen.rectangle, pen.ellipse)[kind](box, fill=colour)
                lines.append(" ".join(map(str, (kind, x / SIDE, y / SIDE, 2 * radius / SIDE, 2 * radius / SIDE))))
            image.save(folder / "images" / part / f"{number}.png")
            (folder / "labels" / part / f"{number}.txt").write_text("\n".join(lines) + "\n")
    described.write_text(
        f"path: {folder.absolute()}\ntrain: images/train\nval: images/val\nnames: [square, disc, triangle]\n"
    )
    return described


def measured(file: Path, described: Path) -> dict[str, float]:
    """Average precision in percent, as ultralytics measures it."""
    found = YOLO(file).val(data=str(described), rect=False, **COMMON)
    return {"map50": 100 * float(found.box.map50), "map": 100 * float(found.box.map)}


def trained(file: Path, network: torch.nn.Module, teacher: Path, described: Path, cache: Path) -> Path:
    """The network trained on by ultralytics, from its file."""

    class Trainer(DetectionTrainer):
        def get_model(self, *_: Any, **__: Any) -> torch.nn.Module:
            return network

    YOLO(file).train(
        trainer=Trainer,
        data=str(described),
        distill_model=str(teacher),
        epochs=8,
        lr0=0.001,
        project=str(cache.absolute()),
        name=file.stem,
        **LEARNING,
        **COMMON,
    )
    return cache / file.stem / "weights" / "best.pt"


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="macs=0.5")
    parser.add_argument("--cache", type=Path, default=Path("build/yolo"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "yolo")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    described = draw(asked.cache / "shapes")
    teacher = asked.cache.absolute() / "teacher" / "weights" / "best.pt"
    if not teacher.exists():
        learning = {"epochs": 25, "lr0": 0.002, "pretrained": False, "project": str(asked.cache.absolute())}
        YOLO("yolov8n.yaml").train(data=str(described), name="teacher", **learning, **LEARNING, **COMMON)

    scenes = transprune.load_scenes(f"yolo:{described.parent}", image_size=(3, SIDE, SIDE))
    data = scenes.train, scenes.test
    whole = YOLO(teacher).model.requires_grad_(True)
    part = transprune.part_of(whole, (scenes.images,))
    task = transprune.detection(part)
    example = torch.zeros(1, 3, SIDE, SIDE)
    space = transprune.inspect(part, example)
    begun = time.process_time()
    small = transprune.compress(part, data, asked.budget, task=task, samples=64, space=space)
    seconds = time.process_time() - begun
    uniform = transprune.uniform_architecture(space, [asked.budget])
    (samples,), _ = gather_samples(part, data, 64, task=task, seed=0)
    origin = transprune.sort_channels(part, example)
    even = transprune.repair(transprune.shrink(origin, uniform, example), origin, uniform, samples)
    record: dict[str, Any] = {
        "unpruned": measured(teacher, described) | {"macs": space.macs(space.full_architecture())},
        "compress_processor_seconds": round(seconds, 1),
        "environment": environment(),
    }
    for name, student in (("scores", small.student), ("uniform", even)):
        file = asked.cache / f"{name}.pt"
        holder = YOLO(teacher)
        holder.model = student.whole
        holder.save(file)
        record[name] = {"macs": transprune.count_macs(student, example), "before": measured(file, described)}
        record[name]["after"] = measured(trained(file, student.whole, teacher, described, asked.cache), described)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "shapes.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
