"""Writes run folders that look like those of real runs, for the tests of the report and for looking at it.

    python tests/fake_run.py FOLDER [BLOCKS]

BLOCKS a stage: 3 for a ResNet-20 (the default), 18 for a ResNet-110.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
STAGE_WIDTHS = (16, 32, 64)
ROWS = (8, 4, 2)
START = "2026-11-23T10:{:02d}:{:02d}.250+01:00"


def fake_space(blocks: int) -> dict:
    """Width groups and depth stages of a CIFAR ResNet with basic blocks."""
    convolutions = [("stem.conv", 16)]
    stages = []
    for stage, width in enumerate(STAGE_WIDTHS):
        paths = [f"stages.{stage}.{block}" for block in range(blocks)]
        convolutions += [(f"{path}.layer{layer}.conv", width) for path in paths for layer in (1, 2)]
        depths = sorted({*range(1, blocks + 1, 1 if blocks <= 3 else 2), blocks})
        stages.append({"name": f"stages.{stage}", "depth": blocks, "candidates": depths, "blocks": paths})
    groups = [
        {"name": name, "width": width, "candidates": [int(width * ratio) for ratio in RATIOS], "layers": [name]}
        for name, width in convolutions
    ]
    for stage in stages:
        outputs = [channels(f"{path}.layer2.conv", STAGE_WIDTHS[int(path[7])]) for path in stage["blocks"]]
        stage["outputs"] = outputs
    layers, inputs = [], channels(None, 1)
    for name, width in convolutions:
        stage = int(name[7]) if name != "stem.conv" else 0
        size = {"inputs": inputs, "outputs": channels(name, width), "kernel": 9, "positions": ROWS[stage] ** 2}
        layers.append({"name": name, "operator": "conv", **size})
        inputs = channels(name, width)
    return {"format": 2, "groups": groups, "stages": stages, "layers": layers, "fixed": []}


def channels(source: str | None, full: int) -> dict:
    """Channels that a group decides."""
    return {"full": full, "source": source, "repeat": 1, "beside": []}


def macs(space: dict, widths: dict, depths: dict) -> float:
    """Multiply-adds of the 3×3 convolutions, for widths that may be expectations."""
    total, inputs = 0.0, 1.0
    for group in space["groups"]:
        name = group["name"].split(".")
        stage = int(name[1]) if name[0] == "stages" else 0
        share = 1.0
        if name[0] == "stages":
            share = min(1.0, max(0.0, depths[f"stages.{stage}"] - int(name[2])))
        total += share * 9 * ROWS[stage] ** 2 * inputs * widths[group["name"]]
        inputs = widths[group["name"]]
    return total


def fake_run(folder: Path, *, blocks: int = 3, epochs: int = 40, seed: int = 0, until: str = "result") -> Path:
    """Writes a run folder.

    Args:
        folder: Made if missing.
        blocks: Blocks in each of the three stages.
        epochs: Epochs of each phase.
        seed: Decides every number.
        until: The last thing that was done: "config", "teacher", "search" or "result".
    """
    steps = ("config", "teacher", "search", "result").index(until)
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    model, space = f"resnet{6 * blocks + 2}", fake_space(blocks)
    config = f'# The resolved configuration of a transprune run.\nmodel = "{model}"\ndata = "digits"\n'
    config += f'budget = ["macs=0.5"]\nseed = {seed}\n\n[search]\nepochs = {epochs}\nratios = {list(RATIOS)}\n'
    (folder / "config.toml").write_text(config, encoding="utf-8")
    write(folder, "environment.json", ENVIRONMENT)
    command = f"transprune run {model} --data digits --budget macs=0.5 --preset demo --out runs/demo"
    journal = [{"event": "start", "command": command, "version": "0.1.0"}]
    if steps >= 1:
        journal += [fake_training(draw, "teacher", epoch, epochs, best=99.17) for epoch in range(1, epochs + 1)]
    full = {group["name"]: group["width"] for group in space["groups"]}
    target = macs(space, full, {stage["name"]: blocks for stage in space["stages"]}) / 2
    if steps >= 2:
        entries, widths, depths = fake_search(random.Random(seed), space, epochs, target)
        journal += entries
        write(folder, "space.json", space)
        architecture = {"format": 1, "widths": widths, "depths": depths}
        architecture["model"] = {"name": model, "classes": 10, "input_size": [1, 8, 8]}
        write(folder, "architecture.json", architecture)
        why = "the most probable architecture exceeds the budget"
        journal.append({"event": "decision", "what": "took the best architecture within the budget", "why": why})
    if steps >= 3:
        journal += [fake_training(draw, "distill", epoch, epochs, best=98.89) for epoch in range(1, epochs + 1)]
        write(folder, "result.json", fake_result(model, seed, round(2 * target), int(target)))
        write(folder, "examples.json", fake_examples())
    lines = [json.dumps({"time": START.format(n // 60 % 60, n % 60), **entry}) for n, entry in enumerate(journal)]
    (folder / "journal.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def fake_training(draw: random.Random, phase: str, epoch: int, epochs: int, best: float) -> dict:
    """One epoch of teacher training or distillation; the test set is looked at in every second one."""
    progress = 1 - math.exp(-6 * epoch / epochs)
    top1 = min(100.0, 30 + 69.9 * progress + draw.gauss(0, 0.3))
    entry = {"event": "epoch", "phase": phase, "epoch": epoch, "epochs": epochs, "loss": 2.3 * (1 - progress) + 0.02}
    entry |= {"top1": top1, "learning_rate": 0.05 * (1 + math.cos(math.pi * epoch / epochs)), "seconds": 1.2}
    if epoch % 2 == 0 or epoch == epochs:
        noise = 0.0 if epoch == epochs else draw.gauss(-0.4, 0.4)
        entry |= {"test_loss": 0.05, "test_top1": 20 + (best - 20) * min(1, progress * 1.0025) + noise}
        entry |= {"test_top5": 99.9}
    return entry


def fake_search(draw: random.Random, space: dict, epochs: int, target: float) -> tuple[list, dict, dict]:
    """The epochs of a search whose probabilities drift to one choice each, and what it chose."""
    sizes = {group["name"]: group["candidates"] for group in space["groups"] + space["stages"]}
    names = [group["name"] for group in space["groups"]]
    chosen = {name: draw.choices(range(len(sizes[name])), weights=wanted(sizes[name]))[0] for name in sizes}
    last = {stage["name"]: len(stage["candidates"]) - 1 for stage in space["stages"]}
    chosen |= {"stages.0": last["stages.0"], "stages.1": last["stages.1"] - 1}
    chosen |= {"stages.2": min(last["stages.2"], 3)}
    pull = {name: draw.uniform(2.5, 7) for name in sizes}
    wobble = {name: [draw.gauss(0, 0.5) for _ in sizes[name]] for name in sizes}
    entries = []
    for epoch in range(1, epochs + 1):
        progress = (epoch / epochs) ** 1.3
        probabilities = {}
        for name in sizes:
            logits = [
                progress * (pull[name] * math.exp(-abs(index - chosen[name]) / 1.5) + noise)
                for index, noise in enumerate(wobble[name])
            ]
            total = sum(map(math.exp, logits))
            probabilities[name] = [math.exp(logit) / total for logit in logits]
        entries.append(search_entry(draw, space, probabilities, epoch=epoch, epochs=epochs, target=target))
    widths = {name: sizes[name][chosen[name]] for name in names}
    depths = {stage["name"]: sizes[stage["name"]][chosen[stage["name"]]] for stage in space["stages"]}
    return entries, widths, depths


def wanted(candidates: list) -> list:
    """Small to middle sizes are more likely."""
    return [1 + 2 * math.exp(-abs(index / len(candidates) - 0.35) * 4) for index in range(len(candidates))]


def search_entry(
    draw: random.Random, space: dict, probabilities: dict, *, epoch: int, epochs: int, target: float
) -> dict:
    """One epoch of the search."""
    groups, stages = [group["name"] for group in space["groups"]], [stage["name"] for stage in space["stages"]]
    sizes = {group["name"]: group["candidates"] for group in space["groups"] + space["stages"]}
    mean = {n: sum(p * s for p, s in zip(probabilities[n], sizes[n], strict=True)) for n in sizes}
    mode = {n: sizes[n][max(range(len(sizes[n])), key=probabilities[n].__getitem__)] for n in sizes}
    steer = 1 / (1 + math.exp(-9 * (epoch / epochs - 0.35)))
    expected = (1 - steer) * macs(space, mean, mean) + steer * target * draw.uniform(0.985, 1.015)
    actual = (1 - steer) * macs(space, mode, mode) + steer * target * draw.uniform(0.95, 1.03)
    entropy = [-sum(p * math.log(p) for p in probabilities[n]) / math.log(len(sizes[n])) for n in sizes]
    top1 = 25 + 68 * (1 - math.exp(-4 * epoch / epochs)) + draw.gauss(0, 0.5)
    return {
        "event": "epoch", "phase": "search", "epoch": epoch, "epochs": epochs, "loss": 0.4, "top1": top1,
        "validation_loss": 0.5, "validation_top1": top1 - 2 + draw.gauss(0, 0.6), "learning_rate": 0.01,
        "temperature": 10 - 9.9 * (epoch - 1) / max(1, epochs - 1), "expected_macs": expected,
        "actual_macs": round(actual), "target_macs": int(target), "entropy": sum(entropy) / len(entropy),
        "seconds": 2.5, "width_probabilities": {name: probabilities[name] for name in groups},
        "depth_probabilities": {name: probabilities[name] for name in stages},
    }  # fmt: skip


def fake_result(model: str, seed: int, full: int, target: int) -> dict:
    """What was measured at the end."""
    teacher = {"top1": 99.1667, "top5": 100.0, "loss": 0.031, "macs": full, "params": 268336}
    student = {"top1": 98.8889, "top5": 100.0, "loss": 0.042, "macs": int(target * 0.9964), "params": 127954}
    return {
        "model": model, "data": "digits", "preset": "demo", "seed": seed,
        "budgets": [
            {
                "kind": "macs", "target": target, "actual": student["macs"],
                "share": student["macs"] / full, "text": "macs=0.5",
            },
        ],
        "teacher": teacher | TIMED_IN | {"latency_ms": 1.284, "file_bytes": 1097344},
        "student": student | TIMED_IN | {"latency_ms": 0.871, "file_bytes": 534528},
        "seconds": {"teacher": 46.2, "search": 112.8, "distill": 71.4},
        "environment": ENVIRONMENT,
    }  # fmt: skip


PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNgYPhfDwADgQGAWjR9awAAAABJRU5Erk"
    "Jggg=="
)


def fake_examples() -> dict:
    """Ten classes of 36 images, and six pictures."""
    counts = {"both_right": 354, "teacher_only": 3, "student_only": 2, "both_wrong": 1, "same_mistake": 0}
    kinds = ["teacher_only"] * 3 + ["student_only"] * 2 + ["both_wrong"]
    examples = [
        {
            "kind": kind, "place": 31 * place, "label": str(place),
            "teacher": {"class": str(place + (kind != "teacher_only")), "probability": 0.91},
            "student": {"class": str(place + 2 * (kind != "student_only")), "probability": 0.5},
            "image": PIXEL,
        }
        for place, kind in enumerate(kinds)
    ]  # fmt: skip
    lost = {2: 97.2222, 3: 100.0}
    classes = [
        {"name": str(name), "samples": 36, "teacher": 100.0 - 2.7778 * (name == 3), "student": lost.get(name, 100.0)}
        for name in range(10)
    ]
    confusions = [
        {"label": "2", "answer": "7", "teacher": 0, "student": 1},
        {"label": "3", "answer": "5", "teacher": 1, "student": 0},
    ]
    return {
        **{"format": 1, "samples": 360, "counts": counts, "classes": classes},
        **{"confusions": confusions, "examples": examples},
    }


TIMED_IN = {"runtime": "torch", "device": "cpu", "threads": 1, "batch_size": 1}
ENVIRONMENT = {
    "transprune": "0.1.0", "python": "3.11.9", "torch": "2.15.0", "torchvision": "0.30.0", "onnxruntime": "1.30.1",
    "numpy": "2.4.0", "platform": "Linux 6.1.0 x86_64", "cpu": "Example Processor 3000 @ 2.60GHz", "cores": 2,
    "threads": 2, "memory_gib": 7.8, "cuda_device": None, "cuda_memory_gib": None, "cuda_version": None,
}  # fmt: skip


def write(folder: Path, name: str, value: object) -> None:
    """Writes a JSON file."""
    (folder / name).write_text(json.dumps(value, indent=2), encoding="utf-8")


if __name__ == "__main__":
    fake_run(Path(sys.argv[1]), blocks=int(sys.argv[2]) if len(sys.argv) > 2 else 3)
