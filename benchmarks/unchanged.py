"""Records what a change of the code that is meant to change no result must leave as it is, and checks it.

    python benchmarks/unchanged.py record benchmarks/unchanged/recorded.json
    python benchmarks/unchanged.py check benchmarks/unchanged/recorded.json
    python benchmarks/unchanged.py check benchmarks/unchanged/recorded.json golden attentive

Three small runs on the command line, with fixed seeds on one thread: digits with ResNet-20, a network with
concatenation and attention, and a frontier of two budgets with a network of grouped convolutions. Of every run folder
it keeps `space.json`, `architecture.json`, the figures of the journal and a digest of all weights; beside them MACs
and parameters of the shapes in `tests/data/golden_architectures.json`.

`check` wants every recorded value to be there, bit for bit, and lets files gain others. It prints a line for each
difference and exits with 1 if there are any. Names after the file (golden, resnet20, attentive, frontier) choose what
is checked. Times and texts of the journal are no figures. What was learned depends on the processor and on torch:
where these are others than recorded, `check` says so and compares the rest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

import transprune

GOLDEN = Path(__file__).parents[1] / "tests" / "data" / "golden_architectures.json"
NETWORKS = '''
import torch
from torch import nn
from torch.nn import functional as F


class Branches(nn.Module):
    """Two convolutions side by side, concatenated."""

    def __init__(self, inputs, width):
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(inputs, width, 1), nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)

    def forward(self, features):
        return self.norm(torch.cat([self.narrow(features), self.wide(features)], dim=1)).relu()


class Encoder(nn.Module):
    """A block of a transformer: attention and an expansion, each normed before and added."""

    def __init__(self, width, heads):
        super().__init__()
        self.features = width // heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expansion = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens):
        batch, count, _ = tokens.shape
        qkv = self.qkv(self.first(tokens)).view(batch, count, 3, -1, self.features).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        tokens = tokens + self.proj(attended.transpose(1, 2).reshape(batch, count, -1))
        return tokens + self.expansion(self.second(tokens))


class Attentive(nn.Module):
    """Concatenation, a depthwise convolution, and attention between pixels."""

    def __init__(self, classes, image_channels):
        super().__init__()
        self.branches = Branches(image_channels, 8)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.patches = nn.Conv2d(16, 16, 1)
        self.encoders = nn.Sequential(Encoder(16, 4), Encoder(16, 4))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, classes)

    def forward(self, images):
        features = self.patches(self.depthwise(self.branches(images)).relu())
        tokens = self.encoders(features.flatten(2).transpose(1, 2))
        return self.head(self.norm(tokens.mean(1)))


class GroupedBlock(nn.Module):
    """A grouped convolution inside a residual sum written as `+`."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(width, 2 * width, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)
        self.second = nn.Conv2d(2 * width, width, 1)

    def forward(self, features):
        return self.second(self.norm(self.first(features)).relu()) + features


class Grouped(nn.Module):
    """Residual blocks of grouped convolutions."""

    def __init__(self, classes, image_channels):
        super().__init__()
        self.stem = nn.Conv2d(image_channels, 16, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(GroupedBlock(16) for _ in range(3)))
        self.head = nn.Linear(16, classes)

    def forward(self, images):
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))
'''
"""The file of the networks that are no ResNets."""
SHORT = """
--data digits --device cpu --preset quick --teacher.epochs 2 --teacher.warm-up-epochs 0 --search.epochs 2
--distill.epochs 2 --distill.warm-up-epochs 0 --search.prior none --search.sharpening 1 --distill.hints 0
"""
"""What is common to the runs; what the preset has become since they were recorded is taken back."""
RUNS = {
    "resnet20": """
        resnet20 --budget macs=0.5 --seed 0 --search.architecture-learning-rate 0.05 --distill.learning-rate 0.1
    """,
    "attentive": """
        networks.py:Attentive --budget macs=0.6 --budget params=0.7 --seed 1 --teacher.learning-rate 0.02
        --search.epochs 3 --search.architecture-learning-rate 0.3 --distill.learning-rate 0.02
        --teacher.optimizer sgd --search.optimizer sgd --distill.optimizer sgd
    """,
    "frontier": """
        networks.py:Grouped --budget macs=0.4,0.7 --seed 2 --search.alignment interpolate --search.start scratch
        --search.depth-samples None --search.batch-size 64 --student teacher --search.architecture-learning-rate 0.05
        --distill.learning-rate 0.1
    """,
}
"""Arguments of `transprune run` by the folder of the run; together they take every start and alignment."""
PARTS = ("golden", *RUNS)
"""What can be checked alone."""
FIGURES = ("space", "epoch", "decision", "result")
"""Events of a journal that hold figures."""
NO_FIGURES = {"event", "time", "seconds", "latency_ms", "lower_ms", "upper_ms", "file_bytes", "what", "why", "sha256"}
"""What differs from one run to the next, is text for a reader, or follows from the rest of its file."""


def recorded(parts: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"golden": golden_counts()} if "golden" in parts else {}
    with TemporaryDirectory() as place:
        (Path(place) / "networks.py").write_text(NETWORKS)
        for name, arguments in RUNS.items():
            if name in parts:
                run(name, arguments, place)
        folders = sorted(path.parent for path in Path(place).rglob("config.toml"))
        if folders:
            found["machine"] = machine(folders[0])
        return found | {"runs": {folder.relative_to(place).as_posix(): results(folder) for folder in folders}}


def run(name: str, arguments: str, place: str) -> None:
    """Makes a run with the same `transprune` that this process has imported."""
    source = str(Path(transprune.__file__).parents[1])
    command = [sys.executable, "-m", "transprune", "run", *SHORT.split(), *arguments.split(), "--out", name]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    started = time.perf_counter()
    ended = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"cannot make the run {name}: `{' '.join(command)}` ended with {ended.returncode}\n{ended.stderr}")
    print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)


def results(folder: Path) -> dict[str, Any]:
    learned = {
        "architecture": read(folder / "architecture.json"),
        "journal": figures(folder / "journal.jsonl"),
        "weights": {path.stem: digest(path) for path in sorted(folder.glob("*.safetensors"))},
    }
    return {"space": read(folder / "space.json"), "learned": learned}


def read(path: Path) -> Any:
    """A JSON file; a frontier's own folder, for one, has no architecture."""
    return without(json.loads(path.read_text()), {"sha256"}) if path.exists() else {}


def figures(journal: Path) -> dict[str, Any]:
    """The figures of a journal: of epochs by phase and number, of other events by their turn."""
    found: dict[str, Any] = {}
    for entry in map(json.loads, journal.read_text().splitlines()):
        kept = without(entry, NO_FIGURES)
        if entry["event"] in FIGURES and kept:
            earlier = sum(name.startswith(entry["event"]) for name in found)
            name = f"{entry['phase']}-{entry['epoch']}" if entry["event"] == "epoch" else f"{earlier + 1}"
            found[f"{entry['event']}-{name}"] = kept
    return found


def without(value: Any, names: set[str]) -> Any:
    """A JSON value without the fields of these names, at any depth."""
    if isinstance(value, dict):
        return {key: without(part, names) for key, part in value.items() if key not in names}
    return [without(part, names) for part in value] if isinstance(value, list) else value


def digest(path: Path) -> str:
    """SHA-256 of all tensors of a file: names, types, shapes and bytes, whatever else the file says."""
    found = sha256()
    for name, tensor in sorted(load_file(path).items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def machine(folder: Path) -> dict[str, str]:
    """What the last bits of learned figures depend on."""
    environment = json.loads((folder / "environment.json").read_text())
    return {
        "torch": torch.__version__,
        "cpu": environment["cpu"],
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def golden_counts() -> dict[str, Any]:
    """MACs and parameters of the golden shapes: of networks built that way, of shrunk ones, and of search spaces."""
    entries, started = json.loads(GOLDEN.read_text()), time.perf_counter()
    counts = {
        f"{kind}-resnet{entry['depth']}-{entry['classes']}": count(entry)
        for kind, count in (("unpruned", unpruned_counts), ("derived", derived_counts))
        for entry in entries[kind]
    }
    print(f"golden shapes: {time.perf_counter() - started:.0f} s", flush=True)
    return counts


def unpruned_counts(entry: dict[str, Any]) -> dict[str, Any]:
    return {"network": counts(*unpruned(entry))}


def derived_counts(entry: dict[str, Any]) -> dict[str, Any]:
    network, images = unpruned(entry)
    full = transprune.ResNetShape.unpruned(entry["depth"])
    blocks = [len(stage) for stage in full.stages]
    shape = transprune.ResNetShape.from_paper(full.block, entry["widths"], blocks, entry["depths"], style=full.style)
    with torch.device("meta"):
        built = transprune.ResNet(shape, classes=entry["classes"])
    layers = range(1, 3 if full.block == "basic" else 4)
    names = ["stem.conv"] + [
        f"stages.{stage}.{block}.layer{layer}.conv"
        for stage, count in enumerate(blocks)
        for block in range(count)
        for layer in layers
    ]
    architecture = transprune.Architecture(
        widths=dict(zip(names, entry["widths"][1:], strict=True)),
        depths={f"stages.{stage}": depth for stage, depth in enumerate(entry["depths"])},
    )
    shrunk = transprune.shrink(network, architecture, images)
    space = transprune.inspect(network, images)
    whole = {"macs": space.macs(transprune.Architecture()), "params": space.params(transprune.Architecture())}
    return {"network": counts(built, images), "shrunk": counts(shrunk, images), "unpruned_in_space": whole}


def unpruned(entry: dict[str, Any]) -> tuple[torch.nn.Module, torch.Tensor]:
    """An unpruned ResNet and two images, shapes alone."""
    size = 224 if transprune.ResNetShape.unpruned(entry["depth"]).style == "imagenet" else 32
    with torch.device("meta"):
        return transprune.resnet(entry["depth"], classes=entry["classes"]), torch.zeros(2, 3, size, size)


def counts(network: torch.nn.Module, images: torch.Tensor) -> dict[str, int]:
    params = sum(parameter.numel() for parameter in network.parameters())
    return {"macs": transprune.count_macs(network, images), "params": params}


NOTHING = object()
"""In the place of what is missing on one side."""


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """A line for each value that is not as it was; fields that came new are fine, entries of lists are not."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key, value in before.items():
            yield from differences(value, now.get(key, NOTHING), f"{path}/{key}".lstrip("/"))
    elif isinstance(before, list) and isinstance(now, list):
        for position, (value, other) in enumerate(zip_longest(before, now, fillvalue=NOTHING)):
            yield from differences(value, other, f"{path}/{position}")
    elif shown(before) != shown(now):
        yield f"{path}: recorded {shown(before):.80}, found {shown(now):.80}"


def shown(value: Any) -> str:
    return "nothing" if value is NOTHING else json.dumps(value)


def check(file: Path, parts: Sequence[str]) -> bool:
    """Whether these parts are as the file says; prints what is not."""
    now, whole = recorded(parts), json.loads(file.read_text())
    before = {key: whole[key] for key in now}
    before["runs"] = {name: run for name, run in whole["runs"].items() if name.partition("/")[0] in parts}
    elsewhere = list(differences(before.pop("machine", {}), now.pop("machine", {})))
    if elsewhere:
        before = without(before, {"learned"})
        print(f"another machine ({'; '.join(elsewhere)}): architectures, journals and weights are NOT COMPARED")
    found = list(differences(before, now))
    print(*found, f"{', '.join(parts)}: {len(found)} differences from {file}", sep="\n")
    return not found


def main(arguments: list[str]) -> None:
    verb, file, *named = arguments if len(arguments) > 1 else ("", "")
    if verb not in ("record", "check") or not set(named) <= set(PARTS) or (named and verb == "record"):
        sys.exit(__doc__)
    print(f"transprune in {Path(transprune.__file__).parent}", flush=True)
    if verb == "check":
        sys.exit(0 if check(Path(file), named or PARTS) else 1)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps(recorded(PARTS), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
