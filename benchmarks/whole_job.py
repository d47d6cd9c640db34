"""The whole job from somebody's trained network: a search that starts from its scores, against what is free.

    python benchmarks/whole_job.py net.py:build trained.pth parquet:cifar10 --normalisation imagenet \
        --images 20000 --budget macs=0.5 --search-epochs 5 --distill-epochs 10 --seeds 0 1 2 \
        --out benchmarks/scores/whole-job

The search has the preset `medium`, and so have the students; only the epochs are fewer. All start repaired, but for the
one that the search has kept, which goes on from what the search has trained, as in a run; `kept.safetensors` beside
the search's figures holds it. Beside what was derived there are the scores' own answer, uniform widths and, with
`--torch-pruning`, the widths that Torch-Pruning keeps: by group magnitude, over all layers that are not cut together
with others. Students of one shape are trained once. Each seed leaves a JSON file for the search and one for each
student, so a stopped study goes on; inside a phase it goes on from its checkpoint. Seconds are those of the processor
in the process that ended the phase.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import transprune
from accuracy import by_torch_pruning
from transprune.models.by_name import build_model
from transprune.models.weights import load_weights
from transprune.options import CompressOptions
from transprune.scores.compress import gather_samples

Record = dict[str, Any]
SAMPLES = CompressOptions.samples
KEPT = "kept.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("weights")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--budget", default="macs=0.5")
    parser.add_argument("--search-epochs", type=int, default=5)
    parser.add_argument("--distill-epochs", type=int, default=10)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--prior", choices=("none", "scores"), default="scores")
    parser.add_argument("--torch-pruning", action="store_true")
    parser.add_argument(
        "--only", nargs="+", default=None, metavar="NAME", help="train these students alone, by name, or kept"
    )
    parser.add_argument("--normalisation", choices=("imagenet", "none"), default=None)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = transprune.load_data(asked.data, mean=asked.normalisation, std=asked.normalisation)
    data = replace(data, train=data.train.subset(range(asked.images)))
    teacher = build_model(asked.model, classes=len(data.classes), image_channels=data.image_size[0])
    teacher.load_state_dict(load_weights(asked.weights, teacher).tensors)
    for seed in asked.seeds:
        one_seed(asked, data, teacher.eval(), seed)


def one_seed(asked: argparse.Namespace, data: transprune.ImageData, teacher: nn.Module, seed: int) -> None:
    """A search, and the student of each of its contenders."""
    place = asked.out / f"{asked.budget.replace('=', '-')}-{asked.prior}-seed-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    recipe = transprune.get_preset("medium")

    def searched() -> Record:
        options = replace(recipe.search, epochs=asked.search_epochs, prior=asked.prior)
        found = transprune.search(teacher, data, asked.budget, options, setup=setup(place, seed, "search"))
        if found.kept is not None:
            save_file(dict(found.kept.student), place / KEPT)
        return {
            "epochs": asked.search_epochs,
            "images": asked.images,
            "entropy": found.entropy,
            "kept": None if found.kept is None else found.kept.name,
            "contenders": {
                each.name: {
                    "architecture": each.architecture.to_json(),
                    "origin": each.origin,
                    "validation": each.evaluation.to_json(),
                }
                for each in found.contenders
            },
            "architecture": found.architecture.to_json(),
            "derived": found.derivation.architecture.to_json(),
            "history": [dict(figures) for figures in found.history],
        }

    search = once(place / "search.json", searched)
    architectures = {name: each["architecture"] for name, each in search["contenders"].items()}
    scored = transprune.compress(teacher, data, asked.budget, seed=seed)
    (samples,), _ = gather_samples(teacher, data, SAMPLES, task=transprune.classification(), seed=seed)
    ordered = transprune.sort_by_scores(teacher, scored.scores[-1], samples)
    if asked.torch_pruning:
        architectures[OTHERS] = others(teacher, data, scored, place)["architecture"]
    trained_already: dict[str, str] = {}
    for name, widths in architectures.items():
        is_kept = name == search["kept"]
        if asked.only is not None and name not in asked.only and not (is_kept and "kept" in asked.only):
            continue
        same = trained_already.setdefault(json.dumps(widths, sort_keys=True), name)
        if same != name:
            print(f"{name}: {same}", flush=True)
            continue
        architecture = transprune.Architecture.from_json(widths)
        student = transprune.shrink(ordered, architecture, samples)
        if is_kept:
            student.load_state_dict(load_file(place / KEPT))
        else:
            student = transprune.repair(student, ordered, architecture, samples)

        def trained(student: nn.Module = student, name: str = name) -> Record:
            options = replace(recipe.distill, epochs=asked.distill_epochs, warm_up_epochs=asked.distill_epochs / 10)
            before = transprune.evaluate(student, data)
            after = transprune.distill(student, teacher, data, options, setup=setup(place, seed, name))
            return {"before": before.to_json(), "after": transprune.evaluate(after, data).to_json()}

        once(place / f"{name.replace(' ', '-')}.json", trained)


OTHERS = "Torch-Pruning"


def others(teacher: nn.Module, data: transprune.ImageData, scored: transprune.Compression, place: Path) -> Record:
    """The widths that Torch-Pruning keeps."""

    def found() -> Record:
        example = torch.zeros(1, *data.image_size)
        architecture = magnitude_pruned(teacher, scored.space, scored.limits[0].most, example)
        return {"architecture": architecture.to_json()}

    return once(place / "torch-pruning-widths.json", found)


def magnitude_pruned(
    teacher: nn.Module, space: transprune.SearchSpace, most: int, example: Tensor
) -> transprune.Architecture:
    """The widths within the budget without the channels of smallest magnitude, of groups that one layer makes."""
    alone = {group.layers[0]: group.name for group in space.groups if len(group.layers) == 1}
    network = copy.deepcopy(teacher)
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    ignored = [layer for name, layer in layers.items() if name not in alone]
    by_torch_pruning(network, example, most, ignored)
    return transprune.Architecture(
        widths={group: layers[name].out_channels for name, group in alone.items()}, depths={}
    )


def setup(place: Path, seed: int, phase: str) -> transprune.Setup:
    """Checkpoints of a phase in a folder of its own."""
    folder = place / "checkpoints" / phase.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    keep = transprune.Checkpoints(folder, transprune.CheckpointOptions(checkpoint_minutes=5))
    return transprune.Setup(seed=seed, phase=phase, checkpoints=keep, on_epoch=lambda figures: print(said(figures)))


def said(figures: Mapping[str, Any]) -> str:
    names = ("phase", "epoch", "loss", "test_top1", "validation_top1", "entropy", "temperature")
    return "  ".join(f"{name} {figures[name]}" for name in names if name in figures)


def once(file: Path, make: Callable[[], Record]) -> Record:
    """What a file holds, or what is made for it now."""
    if not file.exists():
        begun = time.process_time()
        made = make()
        made["cpu_seconds"] = time.process_time() - begun
        file.write_text(json.dumps(made, indent=1) + "\n")
    found: Record = json.loads(file.read_text())
    print(file, {name: found[name] for name in ("kept", "entropy", "before", "after") if name in found}, flush=True)
    return found


if __name__ == "__main__":
    main()
