"""Golden figures: MACs and parameters of the paper's ResNets as counted with the authors' implementation.

They count the classifier's bias, one multiply-add an output; torch's own counter leaves it out. Counting needs shapes
only, so the networks here live on the meta device: nothing is computed.
"""

import json
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from oracles import count_parameters
from transprune.architecture import Architecture
from transprune.costs import COSTS
from transprune.errors import ModelError
from transprune.models.resnet import ResNet, ResNetShape, resnet
from transprune.reading.inspection import inspect
from transprune.reading.macs import count_macs
from transprune.shrinking.shrink import shrink
from transprune.space import SearchSpace, depth_candidates, even_depth_candidates
from transprune.tas.expected_cost import ExpectedCost, paper_expected_macs
from transprune.tas.probabilities import Probabilities, candidate_masks, certain
from transprune.tas.sampling import ArchitectureParameters

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_architectures.json").read_text())
BATCH = 2
BLOCKS = {20: [3] * 3, 32: [5] * 3, 56: [9] * 3, 110: [18] * 3, 164: [18] * 3}
BLOCKS |= {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}
"""Blocks of every stage, by the number of layers."""
GROUPS = {20: 19, 32: 31, 56: 55, 110: 109, 164: 163, 18: 17, 34: 33, 50: 49}
DEPTH_CANDIDATES = {
    20: [(1, 2, 3)] * 3,
    32: [(1, 3, 5)] * 3,
    56: [(1, 3, 5, 7, 9)] * 3,
    110: [(1, 3, 5, 7, 9, 11, 13, 15, 17, 18)] * 3,
    164: [(1, 3, 5, 7, 9, 11, 13, 15, 17, 18)] * 3,
    18: [(1, 2)] * 4,
    34: [(1, 2, 3), (1, 2, 4), (2, 4, 6), (1, 2, 3)],
    50: [(1, 2, 3), (1, 2, 4), (2, 4, 6), (1, 2, 3)],
}
CLASSES = {20: 10, 32: 100, 56: 10, 110: 10, 164: 100, 18: 1000, 34: 1000, 50: 1000}
"""The number of classes with which each network is built, once."""


def named(entries):
    return [pytest.param(entry, id=f"resnet{entry['depth']}-{entry['classes']}") for entry in entries]


unpruned = pytest.mark.parametrize(
    "entry", named(entry for entry in GOLDEN["unpruned"] if entry["classes"] == CLASSES[entry["depth"]])
)
derived = pytest.mark.parametrize("entry", named(GOLDEN["derived"]))


def is_imagenet(depth: int) -> bool:
    return depth in (18, 34, 50)


def is_bottleneck(depth: int) -> bool:
    return depth in (50, 164)


def images(depth: int) -> Tensor:
    size = 224 if is_imagenet(depth) else 32
    return torch.zeros(BATCH, 3, size, size, device="meta")


def network(depth: int, classes: int) -> ResNet:
    with torch.device("meta"):
        return resnet(depth, classes=classes)


@cache
def inspected_with(depth: int, classes: int) -> SearchSpace:
    count = min(BLOCKS[depth])
    depths = partial(even_depth_candidates, count=count) if is_imagenet(depth) else depth_candidates
    return inspect(network(depth, classes), images(depth), depths=depths)


def space(depth: int) -> SearchSpace:
    return inspected_with(depth, CLASSES[depth])


def macs_by_torch(model: nn.Module, entry) -> int:
    """Half of what torch's `FlopCounterMode` counts for one image, and the classifier's bias, which it leaves out."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(images(entry["depth"]))
    macs, rest = divmod(counter.get_total_flops(), 2 * BATCH)
    assert rest == 0
    return macs + entry["classes"]


@unpruned
def test_an_unpruned_network_counts_to_the_golden_figures(entry):
    model = network(entry["depth"], entry["classes"])
    assert count_parameters(model) == entry["params"]
    assert count_macs(model, images(entry["depth"])) == entry["macs"]
    assert macs_by_torch(model, entry) == entry["macs"]


@unpruned
def test_the_search_space_counts_the_unpruned_network_to_the_golden_figures(entry):
    read = space(entry["depth"])
    for full in (read.full_architecture(), Architecture()):
        assert (read.macs(full), read.params(full)) == (entry["macs"], entry["params"])


@pytest.mark.parametrize("depth", GROUPS)
def test_the_architecture_parameters_have_the_papers_shapes(depth):
    read = space(depth)
    assert [len(group.candidates) for group in read.groups] == [8] * GROUPS[depth]
    assert [stage.candidates for stage in read.stages] == DEPTH_CANDIDATES[depth]
    parameters = ArchitectureParameters(read)
    assert parameters.widths.shape == (GROUPS[depth], 8)
    assert parameters.depths.shape == (len(read.stages), len(DEPTH_CANDIDATES[depth][0]))


@pytest.mark.parametrize("depth", GROUPS)
def test_the_groups_are_the_main_path_convolutions_in_order(depth):
    assert [group.name for group in space(depth).groups] == convolutions(depth)


def convolutions(depth: int) -> list[str]:
    """Paths of the stem and of every main-path convolution of the unpruned network, in order."""
    return ["stem.conv"] + [
        f"stages.{stage}.{block}.layer{layer}.conv"
        for stage, blocks in enumerate(BLOCKS[depth])
        for block in range(blocks)
        for layer in range(1, 4 if is_bottleneck(depth) else 3)
    ]


def paper_network(entry) -> ResNet:
    depth = entry["depth"]
    shape = ResNetShape.from_paper(
        "bottleneck" if is_bottleneck(depth) else "basic",
        entry["widths"],
        BLOCKS[depth],
        entry["depths"],
        style="imagenet" if is_imagenet(depth) else "cifar",
    )
    with torch.device("meta"):
        return ResNet(shape, classes=entry["classes"])


def architecture_of(entry) -> Architecture:
    return Architecture(
        widths=dict(zip(convolutions(entry["depth"]), entry["widths"][1:], strict=True)),
        depths={f"stages.{stage}": depth for stage, depth in enumerate(entry["depths"])},
    )


def shrunk(entry) -> nn.Module:
    depth = entry["depth"]
    unpruned = network(depth, entry["classes"])
    return shrink(unpruned, architecture_of(entry), images(depth), reading=space(depth).reading)


def shortcut_norm_of_the_first_bottleneck(entry) -> int:
    """Parameters that shrinking keeps and the authors' derived CIFAR bottlenecks do not have: a scale and a shift."""
    return 2 * entry["widths"][4] if entry["depth"] == 164 else 0


@derived
def test_the_golden_widths_are_candidates(entry):
    groups = space(entry["depth"]).groups
    picked = [group.candidates[position] for group, position in zip(groups, entry["candidates"], strict=True)]
    assert picked == entry["widths"][1:]


@derived
def test_a_network_built_from_the_papers_notation_counts_to_the_golden_figures(entry):
    model = paper_network(entry)
    assert count_parameters(model) == entry["params"]
    assert count_macs(model, images(entry["depth"])) == entry["macs"]
    assert macs_by_torch(model, entry) == entry["macs"]


@derived
def test_the_search_space_counts_a_derived_architecture_to_the_golden_figures(entry):
    read, architecture = space(entry["depth"]), architecture_of(entry)
    assert read.macs(architecture) == entry["macs"]
    assert read.params(architecture) == entry["params"] + shortcut_norm_of_the_first_bottleneck(entry)


@derived
def test_a_shrunk_network_counts_to_the_golden_figures_and_has_the_parameters_of_the_papers(entry):
    student = shrunk(entry)
    assert count_parameters(student) == entry["params"] + shortcut_norm_of_the_first_bottleneck(entry)
    assert count_macs(student, images(entry["depth"])) == entry["macs"]
    assert macs_by_torch(student, entry) == entry["macs"]
    shapes = {name: value.shape for name, value in student.state_dict().items()}
    built = {name: value.shape for name, value in paper_network(entry).state_dict().items()}
    extra = {name for name in shapes if name not in built}
    assert {name: shape for name, shape in shapes.items() if name not in extra} == built
    assert all(name.startswith("stages.0.0.sum.shortcut.1.") for name in extra)
    assert bool(extra) == (entry["depth"] == 164)


@derived
def test_the_papers_expected_cost_is_the_golden_one(entry):
    read = space(entry["depth"])
    parameters = ArchitectureParameters(read)
    with torch.no_grad():
        for target, step, wave in ((parameters.widths, 8, torch.sin), (parameters.depths, 16, torch.cos)):
            rows, columns = torch.arange(target.shape[0])[:, None], torch.arange(target.shape[1])
            target.copy_(wave((step * rows + columns).double()))
    expected = paper_expected_macs(read, parameters.probabilities()).item() / 1e6
    assert expected == pytest.approx(entry["expected_macs_millions"], rel=1e-6)


UNIFORM = [
    (20, "width", 16.548912),
    (32, "width", 27.981644),
    (56, "width", 50.847130),
    (20, "both", 10.832545),
    (32, "both", 16.548912),
    (56, "both", 27.981651),
    (110, "both", 55.991856),
]
"""Expected cost for 10 classes, in millions of MACs, when all candidates are equally probable."""


@pytest.mark.parametrize(("depth", "dimensions", "millions"), UNIFORM)
def test_the_expected_cost_of_equally_probable_candidates_is_the_papers(depth, dimensions, millions):
    read = inspected_with(depth, 10)
    if dimensions == "width":
        read = inspect(network(depth, 10), images(depth), dimensions="width", reading=read.reading)
    widths, depths = (mask / mask.sum(1, keepdim=True) for mask in candidate_masks(read))
    assert float(paper_expected_macs(read, Probabilities(widths, depths))) / 1e6 == pytest.approx(millions, rel=1e-6)


@pytest.mark.parametrize("kind", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize("depth", [56, 110, 164])
def test_the_expected_cost_at_certainty_is_the_actual_cost_of_the_papers_networks(depth, kind):
    read = space(depth)
    expected = ExpectedCost(read, kind)
    drawn = [read.random_architecture(seed) for seed in range(4)]
    for architecture in (read.full_architecture(), read.smallest_architecture(), *drawn):
        assert expected(certain(read, architecture)).item() == read.cost(kind, architecture)


def test_widths_outside_the_candidates_and_above_the_full_width_can_be_built():
    shape = ResNetShape.from_paper("basic", [3, 17, 30, 70], [1], [1])
    assert ResNet(shape)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("widths", "depths", "message"),
    [
        ([3, 16, 16], [1], "from 3 widths and 1 depths; expected 4 widths and 1 depths"),
        ([3, 16, 16, 0], [1], "whose narrowest width is 0; expected widths of at least 1"),
        ([3, 16, 16, 16], [2], r"that keeps \[2\] blocks"),
    ],
)
def test_numbers_that_describe_no_network_are_refused(widths, depths, message):
    with pytest.raises(ModelError, match=message):
        ResNetShape.from_paper("basic", widths, [1], depths)
