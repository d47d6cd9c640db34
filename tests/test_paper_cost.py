"""The paper's notation, candidates and expected cost, against figures made with the authors' implementation."""

from functools import partial

import pytest
import torch

from transprune.errors import ModelError
from transprune.models.resnet import ResNet, ResNetShape, resnet
from transprune.reading.inspection import inspect
from transprune.reading.macs import count_macs
from transprune.space import even_depth_candidates
from transprune.tas.expected_cost import paper_expected_macs
from transprune.tas.probabilities import Probabilities, candidate_masks
from transprune.tas.sampling import ArchitectureParameters

SMALL, LARGE = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 224, 224)

# Expected cost, in millions of MACs, when all candidates are equally probable.
UNIFORM = [
    (20, "width", 16.548912),
    (32, "width", 27.981644),
    (56, "width", 50.847130),
    (20, "both", 10.832545),
    (32, "both", 16.548912),
    (56, "both", 27.981651),
    (110, "both", 55.991856),
]

# Expected cost, in millions of MACs, when width[i][j] = sin(8i + j) and depth[s][j] = cos(16s + j).
WAVES = [
    (20, 10, 10.029303550720215),
    (32, 100, 14.95078182220459),
    (56, 10, 24.081953048706055),
    (18, 1000, 599.256591796875),
]

# Architectures of the ImageNet networks made by rule: widths, depths, MACs, parameters.
IMAGENET = {
    18: (
        [3, 38, 19, 51, 32, 64, 89, 51, 115, 76, 76, 204, 128, 256, 358, 204, 460, 307],
        [2, 1, 2, 1],
        538_466_080,
        2_665_618,
    ),
    50: (
        [
            *(3, 38, 19, 51, 128, 64, 44, 102, 57, 38, 76, 102, 64, 512, 89, 51, 460, 76, 38, 409, 64, 128, 358),
            *(102, 230, 614, 76, 204, 512, 256, 179, 409, 230, 153, 307, 204, 128, 1024, 179, 102, 921, 307, 153),
            *(1638, 256, 512, 1433, 204, 460, 1228),
        ],
        [3, 2, 2, 3],
        1_590_535_327,
        12_956_437,
    ),
}


def uniform(space):
    widths, depths = (mask / mask.sum(1, keepdim=True) for mask in candidate_masks(space))
    return Probabilities(widths, depths)


@pytest.mark.parametrize(("depth", "dimensions", "millions"), UNIFORM)
def test_the_expected_cost_of_equally_probable_candidates_is_the_papers(depth, dimensions, millions):
    space = inspect(resnet(depth), SMALL, dimensions=dimensions)
    assert float(paper_expected_macs(space, uniform(space))) / 1e6 == pytest.approx(millions, rel=1e-6)


@pytest.mark.parametrize(("depth", "classes", "millions"), WAVES)
def test_the_expected_cost_under_given_parameters_is_the_papers(depth, classes, millions):
    shape = ResNetShape.unpruned(depth)
    options = {} if shape.style == "cifar" else {"depths": partial(even_depth_candidates, count=2)}
    example = SMALL if shape.style == "cifar" else LARGE
    space = inspect(resnet(depth, classes=classes), example, **options)
    parameters = ArchitectureParameters(space)
    with torch.no_grad():
        for target, step, wave in ((parameters.widths, 8, torch.sin), (parameters.depths, 16, torch.cos)):
            rows, columns = torch.arange(target.shape[0])[:, None], torch.arange(target.shape[1])
            target.copy_(wave((step * rows + columns).double()))
        expected = float(paper_expected_macs(space, parameters.probabilities()))
    assert expected / 1e6 == pytest.approx(millions, rel=1e-6)


@pytest.mark.parametrize(
    ("depth", "macs", "params"),
    [(18, 1_814_074_344, 11_689_512), (34, 3_663_762_408, 21_797_672), (50, 4_089_185_256, 25_557_032)],
)
def test_the_unpruned_imagenet_networks_count_as_in_the_paper(depth, macs, params):
    network = resnet(depth)
    assert sum(parameter.numel() for parameter in network.parameters()) == params
    assert count_macs(network.to("meta"), LARGE.to("meta")) == macs


@pytest.mark.parametrize("depth", IMAGENET)
def test_imagenet_networks_in_the_papers_notation_count_as_in_the_paper(depth):
    widths, depths, macs, params = IMAGENET[depth]
    full = ResNetShape.unpruned(depth)
    shape = ResNetShape.from_paper(full.block, widths, [len(stage) for stage in full.stages], depths, style="imagenet")
    network = ResNet(shape, classes=1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == params
    assert count_macs(network.to("meta"), LARGE.to("meta")) == macs


@pytest.mark.parametrize(
    ("depth", "groups", "candidates"),
    [
        (18, 17, [(1, 2), (1, 2), (1, 2), (1, 2)]),
        (34, 33, [(1, 2, 3), (1, 2, 4), (2, 4, 6), (1, 2, 3)]),
        (50, 49, [(1, 2, 3), (1, 2, 4), (2, 4, 6), (1, 2, 3)]),
    ],
)
def test_the_imagenet_search_spaces_are_the_papers(depth, groups, candidates):
    count = min(len(stage) for stage in ResNetShape.unpruned(depth).stages)
    space = inspect(resnet(depth), torch.zeros(1, 3, 64, 64), depths=partial(even_depth_candidates, count=count))
    assert len(space.groups) == groups
    assert all(len(group.candidates) == 8 for group in space.groups)
    assert [stage.candidates for stage in space.stages] == candidates


def test_widths_outside_the_candidates_and_above_the_full_width_can_be_built():
    shape = ResNetShape.from_paper("basic", [3, 17, 30, 70], [1], [1])
    assert ResNet(shape)(SMALL).shape == (1, 10)


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
