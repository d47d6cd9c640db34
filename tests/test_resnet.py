"""The paper's CIFAR ResNets, at any widths and depths, without any search."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from oracles import count_by_hand, count_parameters
from transprune.errors import ModelError
from transprune.models.by_name import NAMES, build_model
from transprune.models.resnet import BasicBlock, ResidualSum, ResNet, ResNetShape, initialise, projection, resnet

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SMALL_BOTTLENECK = ResNetShape(
    block="bottleneck", stem=16, stages=tuple(((width, width, 4 * width),) * 2 for width in (16, 32, 64))
)


def random_shape(block: str, style: str, seed: int) -> ResNetShape:
    """A shape of one to three blocks a stage at random widths; many blocks keep the width of the block before."""
    draw = random.Random(f"{block} {style} {seed}")
    stem = last = draw.randint(3, 9)
    stages = []
    for _ in range(3 if style == "cifar" else 4):
        blocks = []
        for _ in range(draw.randint(1, 3)):
            widths = [draw.randint(3, 9) for _ in range(2 if block == "basic" else 3)]
            widths[-1] = last = draw.choice([last, widths[-1]])
            blocks.append(tuple(widths))
        stages.append(tuple(blocks))
    has_norm = style == "imagenet" or draw.random() < 0.5
    return ResNetShape(block=block, stem=stem, stages=tuple(stages), style=style, has_shortcut_norm=has_norm)


def cost_by_formula(shape: ResNetShape, size: int, classes: int) -> tuple[int, int]:
    """MACs and parameters of a shape, from its sums alone."""
    is_imagenet = shape.style == "imagenet"
    kernel, stem_size = (49, size // 2) if is_imagenet else (9, size)
    macs, params = kernel * 3 * shape.stem * stem_size**2, kernel * 3 * shape.stem + 2 * shape.stem
    inputs, size = shape.stem, size // 4 if is_imagenet else size
    for index, stage in enumerate(shape.stages):
        for position, widths in enumerate(stage):
            halves = index > 0 and position == 0
            before, size = size, size // 2 if halves else size
            shortcut_inputs = inputs
            for layer, width in enumerate(widths):
                kernel = 1 if len(widths) == 3 and layer != 1 else 9
                # Only the 1×1 convolution that opens a bottleneck comes before the stride.
                rows = before if len(widths) == 3 and layer == 0 else size
                macs += kernel * inputs * width * rows**2
                params += kernel * inputs * width + 2 * width
                inputs = width
            if halves or shortcut_inputs != inputs:
                has_norm = is_imagenet if halves else shape.has_shortcut_norm
                macs += shortcut_inputs * inputs * size**2
                params += shortcut_inputs * inputs + 2 * inputs * has_norm
    return macs + (inputs + 1) * classes, params + (inputs + 1) * classes


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("style", ["cifar", "imagenet"])
@pytest.mark.parametrize("seed", range(8))
def test_a_network_of_any_shape_counts_to_the_formula(block, style, seed):
    shape = random_shape(block, style, seed)
    network = ResNet(shape, classes=7)
    macs, params = cost_by_formula(shape, size=32, classes=7)
    assert count_by_hand(network, torch.zeros(1, 3, 32, 32)) == macs
    assert count_parameters(network) == params


@pytest.mark.parametrize("depth", [8, 20, 32, 44, 56, 110, 164, 18, 34, 50])
def test_the_name_counts_the_layers_with_weights_on_the_main_path(depth):
    network = resnet(depth)
    main_path = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len([name for name in main_path if "shortcut" not in name]) == depth


def test_a_forward_is_the_stem_the_stages_the_pool_and_the_classifier():
    torch.manual_seed(0)
    network = resnet(14).eval()
    with torch.no_grad():
        features = F.relu(network.stem.norm(network.stem.conv(IMAGES)))
        for stage in network.stages:
            for block in stage:
                features = basic_block_by_hand(block, features)
        pooled = features.mean(dim=(2, 3))
        torch.testing.assert_close(network.features(IMAGES), pooled)
        torch.testing.assert_close(network(IMAGES), pooled @ network.classifier.weight.T + network.classifier.bias)


def basic_block_by_hand(block: BasicBlock, features):
    main = F.relu(block.layer1.norm(block.layer1.conv(features)))
    main = block.layer2.norm(block.layer2.conv(main))
    if main.shape[2] < features.shape[2]:
        return F.relu(main + F.conv2d(F.avg_pool2d(features, 2), block.sum.shortcut[1].weight))
    return F.relu(main + features)


def test_a_bottleneck_halves_the_resolution_in_its_middle_and_norms_the_shortcut_that_changes_the_width_alone():
    torch.manual_seed(0)
    network = ResNet(SMALL_BOTTLENECK).eval()
    block = network.stages[0][0]
    features = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        main = F.relu(block.layer1.norm(block.layer1.conv(features)))
        main = F.relu(block.layer2.norm(block.layer2.conv(main)))
        main = block.layer3.norm(block.layer3.conv(main))
        shortcut = block.sum.shortcut[1](F.conv2d(features, block.sum.shortcut[0].weight))
        torch.testing.assert_close(block(features), F.relu(main + shortcut))
    halving = network.stages[1][0]
    assert [layer.conv.stride for layer in (halving.layer1, halving.layer2, halving.layer3)] == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("depth", [20, 164])
def test_an_unpruned_shortcut_is_an_identity_except_where_the_shape_changes(depth):
    kinds = {
        (stage, block): [type(layer) for layer in each.sum.shortcut.children()]
        for stage, blocks in enumerate(resnet(depth).stages)
        for block, each in enumerate(blocks)
    }
    halving = [nn.AvgPool2d, nn.Conv2d]
    changed = {(1, 0): halving, (2, 0): halving} | ({(0, 0): [nn.Conv2d, nn.BatchNorm2d]} if depth == 164 else {})
    assert kinds == {place: changed.get(place, []) for place in kinds}
    assert isinstance(resnet(depth).stages[1][1].sum.shortcut, nn.Identity)


@pytest.mark.parametrize(("size", "channels", "classes"), [((8, 8), 1, 10), ((32, 32), 3, 100), ((8, 20), 2, 3)])
def test_images_of_any_size_and_channels_become_one_logit_a_class(size, channels, classes):
    network = resnet(8, classes=classes, image_channels=channels)
    assert network(torch.randn(4, channels, *size)).shape == (4, classes)


def test_the_weights_are_drawn_as_the_paper_does():
    torch.manual_seed(0)
    network = resnet(56)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            expected = (2 / (layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1])) ** 0.5
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.25)
            assert abs(layer.weight.mean().item()) < 0.2 * expected
        elif isinstance(layer, nn.BatchNorm2d):
            assert torch.equal(layer.weight, torch.ones_like(layer.weight))
            assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
    assert network.classifier.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert not network.classifier.bias.any()


def test_initialising_redraws_every_weight_and_forgets_running_statistics():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2), nn.LayerNorm(2))
    network(torch.randn(8, 3, 4, 4) + 5)
    for parameter in network.parameters():
        parameter.data.fill_(7.0)
    initialise(network)
    assert not any((parameter == 7).any() for parameter in network.parameters())
    assert not network[1].running_mean.any()
    assert int(network[1].num_batches_tracked) == 0
    assert not network[0].bias.any()


def test_the_same_seed_gives_the_same_weights():
    first, second, other = (resnet_at(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.conv.weight"], other["stem.conv.weight"])


def resnet_at(seed: int) -> ResNet:
    torch.manual_seed(seed)
    return resnet(8)


@pytest.mark.parametrize("depth", [-4, 0, 2, 7, 21, 29, 101, 163])
def test_a_depth_without_a_network_is_refused(depth):
    with pytest.raises(ModelError, match=rf"ResNet of {depth} layers; expected 18, 34 or 50 .* 6n \+ 2 .* or 164"):
        resnet(depth)


def test_the_papers_notation_names_image_channels_the_stem_and_then_every_block():
    shape = ResNetShape.from_paper("basic", [3, 9, 1, 2, 3, 4, 5, 6, 7, 8], blocks=[2, 1, 1], depths=[1, 1, 1])
    assert shape.stem == 9
    assert shape.stages == (((1, 2),), ((5, 6),), ((7, 8),))
    assert shape.has_shortcut_norm


def test_a_derived_bottleneck_network_of_the_paper_has_no_norm_on_its_shortcuts():
    shape = ResNetShape.from_paper("bottleneck", [3, 4, *range(5, 14)], blocks=[1, 1, 1], depths=[1, 1, 1])
    assert shape.stages == (((5, 6, 7),), ((8, 9, 10),), ((11, 12, 13),))
    network = ResNet(shape)
    assert not any(isinstance(layer, nn.BatchNorm2d) for block in network.stages for layer in block[0].sum.modules())


@pytest.mark.parametrize(
    ("block", "widths", "blocks", "depths"),
    [
        ("basic", [3, 8, 8, 8], [1, 1, 1], [1, 1, 1]),
        ("basic", [3, *[8] * 8], [1, 1, 1], [1, 1, 1]),
        ("bottleneck", [3, *[8] * 7], [1, 1, 1], [1, 1, 1]),
        ("basic", [3, *[8] * 7], [1, 1, 1], [1, 1]),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(block, widths, blocks, depths):
    with pytest.raises(
        ModelError, match=rf"{block} ResNet from {len(widths)} widths and {len(depths)} depths; expected"
    ):
        ResNetShape.from_paper(block, widths, blocks, depths)


@pytest.mark.parametrize("depths", [[3, 2, 2], [0, 2, 2], [2, 2, -1]])
def test_depths_that_a_stage_cannot_have_are_refused(depths):
    with pytest.raises(ModelError, match=r"expected widths of at least 1, and 1 to \[2, 2, 2\] blocks"):
        ResNetShape.from_paper("basic", [3, *[8] * 13], blocks=[2, 2, 2], depths=depths)


def test_a_width_of_zero_is_refused():
    with pytest.raises(ModelError, match="narrowest width is 0"):
        ResNetShape.from_paper("basic", [3, *[8] * 6, 0], blocks=[1, 1, 1])


def test_all_blocks_are_kept_where_no_depths_are_given():
    shape = ResNetShape.from_paper("basic", [3, *[8] * 13], blocks=[2, 3, 1])
    assert [len(stage) for stage in shape.stages] == [2, 3, 1]


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_an_imagenet_network_has_a_norm_on_every_shortcut_that_changes_the_shape(depth):
    with torch.device("meta"):
        stages = resnet(depth).stages
    changed = [block.sum.shortcut for stage in stages for block in stage if list(block.sum.shortcut.children())]
    assert [type(shortcut[-1]) for shortcut in changed] == [nn.BatchNorm2d] * (4 if depth == 50 else 3)


def test_an_unknown_kind_of_block_is_refused():
    with pytest.raises(ModelError, match="wide"):
        ResNetShape.from_paper("wide", [3, *[8] * 7], blocks=[1, 1, 1], depths=[1, 1, 1])


def test_a_residual_sum_adds_its_input_through_the_shortcut():
    main, inputs = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    assert torch.equal(ResidualSum()(main, inputs), main + inputs)
    shortcut = nn.Conv2d(2, 4, 1)
    narrow = inputs[:, :2]
    assert torch.equal(ResidualSum(shortcut)(main, narrow), main + shortcut(narrow))


@pytest.mark.parametrize("has_norm", [True, False])
def test_a_projection_is_a_bare_1x1_convolution_with_a_norm_if_asked_for(has_norm):
    layers = list(projection(3, 5, has_norm=has_norm))
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d][: 1 + has_norm]
    assert layers[0].weight.shape == (5, 3, 1, 1)
    assert layers[0].bias is None


def test_a_model_is_built_by_its_name():
    network = build_model("resnet20", classes=7, image_channels=1)
    assert isinstance(network, ResNet)
    assert (network.classifier.out_features, network.stem.conv.in_channels) == (7, 1)
    cifar, imagenet = (20, 32, 44, 56, 110, 164), (18, 34, 50)
    strided = {f"resnet{depth}-strided" for depth in imagenet}
    assert set(NAMES) == {f"resnet{depth}" for depth in cifar + imagenet} | strided


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet_20", "did you mean 'resnet20'"),
        ("vit", "expected one of resnet20, .*resnet50-strided, torchvision:NAME, .*:FUNCTION$"),
    ],
)
def test_an_unknown_model_name_is_refused_with_the_known_ones(name, hint):
    with pytest.raises(ModelError, match=hint):
        build_model(name, classes=10, image_channels=3)
