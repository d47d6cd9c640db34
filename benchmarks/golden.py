"""Counts architectures in the paper's notation and compares them with expected figures, as integers.

    python benchmarks/golden.py FILE...

Each file is JSON in either of two layouts: `{"architectures": [...]}`, shapes made by rule, some with the expected cost
of the architecture parameters sin(8i + j) and cos(16s + j); or `{"unpruned": [...], "published": [...]}`. A shape has
`name`, `classes`, `macs`, `params` and, unless it is an unpruned network, `xchannels` ([image channels, stem, then
every main-path convolution in order]) and `xblocks` (blocks kept of every stage; null: all). Prints a line a shape and
exits with 1 on any difference. Expected costs are compared to 6 digits: the expected figures are float32.
"""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path

import torch

import transprune
from transprune.models.resnet import ResNetShape
from transprune.space import depth_candidates, even_depth_candidates
from transprune.tas.expected_cost import paper_expected_macs
from transprune.tas.sampling import ArchitectureParameters

INPUT_SIZES = {"cifar": (1, 3, 32, 32), "imagenet": (1, 3, 224, 224)}


def unpruned_shape(name: str) -> ResNetShape:
    """The unpruned shape that a name speaks of: CIFAR-ResNet20, ImageNet-ResNet18V1 or compares/CIFAR010-TAS-R56."""
    return ResNetShape.unpruned(int(re.search(r"(?:ResNet|-R)(\d+)", name)[1]))


def derived_shape(entry: dict) -> ResNetShape:
    full = unpruned_shape(entry["name"])
    if "xchannels" not in entry:
        return full
    blocks = [len(stage) for stage in full.stages]
    return ResNetShape.from_paper(full.block, entry["xchannels"], blocks, entry.get("xblocks"), style=full.style)


def counted(entry: dict) -> tuple[int, int]:
    shape = derived_shape(entry)
    network = transprune.ResNet(shape, classes=entry["classes"])
    macs = transprune.count_macs(network, torch.zeros(INPUT_SIZES[shape.style]))
    return macs, sum(parameter.numel() for parameter in network.parameters())


def expected_cost(entry: dict) -> float:
    """Millions of MACs expected under the architecture parameters that the file's note names."""
    shape = unpruned_shape(entry["name"])
    count = min(len(stage) for stage in shape.stages)
    depths = depth_candidates if shape.style == "cifar" else partial(even_depth_candidates, count=count)
    network = transprune.ResNet(shape, classes=entry["classes"])
    space = transprune.inspect(network, torch.zeros(INPUT_SIZES[shape.style]), depths=depths)
    parameters = ArchitectureParameters(space)
    with torch.no_grad():
        for target, step, wave in ((parameters.widths, 8, torch.sin), (parameters.depths, 16, torch.cos)):
            rows, columns = torch.arange(target.shape[0])[:, None], torch.arange(target.shape[1])
            target.copy_(wave((step * rows + columns).double()))
        return float(paper_expected_macs(space, parameters.probabilities())) / 1e6


def check(entry: dict) -> bool:
    macs, params = counted(entry)
    is_same = (macs, params) == (entry["macs"], entry["params"])
    line = f"{entry['name']:<34} macs {macs:>13,} / {entry['macs']:>13,}  params {params:>11,} / {entry['params']:>11,}"
    wanted = entry.get("expected_macs_millions_at_sin_cos")
    if wanted is not None:
        expected = expected_cost(entry)
        is_same = is_same and abs(expected - wanted) <= 1e-6 * wanted
        line += f"  expected {expected:.4f} M / {wanted:.4f} M"
    print(line, "" if is_same else " DIFFERENT")
    return is_same


def main(files: list[str]) -> None:
    if not files:
        sys.exit(__doc__)
    entries = []
    for file in files:
        content = json.loads(Path(file).read_text())
        entries += [entry for key in ("architectures", "unpruned", "published") for entry in content.get(key, [])]
    results = [check(entry) for entry in entries]
    print(f"{sum(results)} of {len(results)} shapes are the same")
    sys.exit(0 if all(results) and results else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
