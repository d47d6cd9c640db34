"""What can be chosen in a network, what cannot, and why."""

import copy
import json
import random
import re
from dataclasses import replace
from inspect import getsourcelines
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hard_networks import (
    MODULES,
    SUPPORTED,
    UNSUPPORTED,
    UNSUPPORTED_MODULES,
    Aliased,
    FlattenedToANumber,
    IndexedStage,
    IteratedStage,
    Probed,
    Scaled,
    TiedWeights,
    ViewedToItsOwnShape,
    repeated_block,
    stage_that_ends_fixed,
)
from oracles import count_by_hand
from small_networks import (
    CASES,
    CLASSES,
    Classifier,
    ConvNorm,
    CoupledBlock,
    FreeBlock,
    PlainBlock,
    coupled_stage,
    depthwise,
    depthwise_behind_stage,
    example,
    flattened,
    grouped,
    plain,
    residual,
    shared,
    staged,
)
from transprune.architecture import Architecture
from transprune.costs import Channels
from transprune.errors import ModelError, OptionError
from transprune.models.resnet import resnet
from transprune.reading.inspection import inspect
from transprune.reading.trace import operator, trace
from transprune.shrinking.shrink import shrink
from transprune.space import SearchSpace


def groups(space: SearchSpace) -> dict[str, tuple[str, ...]]:
    """The layers of every group by its name."""
    return {group.name: group.layers for group in space.groups}


def reasons(space: SearchSpace) -> dict[str, str]:
    """Why each fixed layer or stage is fixed."""
    return {fixed.name: fixed.reason for fixed in space.fixed}


def alone(*layers: str) -> dict[str, tuple[str, ...]]:
    return {layer: (layer,) for layer in layers}


def test_layers_in_a_row_have_a_group_each():
    assert groups(inspect(plain(), example())) == alone("0", "3")


def test_the_classifier_keeps_its_outputs():
    space = inspect(plain(), example())
    assert reasons(space) == {"8": "it is an output of the network"}


def inline_sums() -> nn.Module:
    return Classifier(6, ConvNorm(3, 6), CoupledBlock(6), CoupledBlock(6), ConvNorm(6, 6))


def test_the_sides_of_an_inline_sum_share_a_group():
    shared_widths = [set(layers) for layers in groups(inspect(inline_sums(), example())).values()]
    assert {"body.0.conv", "body.1.second.conv", "body.2.second.conv"} in shared_widths
    assert [layers for layers in shared_widths if len(layers) == 1] == [
        {"body.1.first.conv"},
        {"body.2.first.conv"},
        {"body.3.conv"},
    ]


def test_a_group_is_named_after_the_first_layer_that_produces_its_channels():
    assert groups(inspect(inline_sums(), example()))["body.0.conv"] == (
        *("body.0.conv", "body.1.second.conv", "body.2.second.conv"),
    )


def test_the_sides_of_a_residual_sum_module_have_groups_of_their_own():
    names = ["body.0.conv", "body.1.main.conv", "body.2.main.conv", "body.3.main.conv"]
    assert list(groups(inspect(residual(), example()))) == names


def test_a_shortcuts_convolution_shares_the_group_of_its_main_side():
    space = inspect(residual(), example())
    assert set(groups(space)["body.2.main.conv"]) == {"body.2.main.conv", "body.2.sum.shortcut.0"}


def test_a_projection_is_foreseen_exactly_where_a_sum_has_a_bare_shortcut():
    projections = {
        layer.name: layer for layer in inspect(residual(), example()).layers if layer.operator == "projection"
    }
    assert {name: layer.has_norm for name, layer in projections.items()} == {
        "body.1.sum.shortcut": True,
        "body.3.sum.shortcut": False,
    }
    first = projections["body.1.sum.shortcut"]
    assert (first.inputs.source, first.outputs.source) == ("body.0.conv", "body.1.main.conv")


def test_a_depthwise_convolution_follows_the_channels_it_reads():
    space = inspect(depthwise(), example())
    assert groups(space) == {"0": ("0", "3"), "6": ("6",)}
    follower = next(layer for layer in space.layers if layer.name == "3")
    assert follower.operator == "depthwise"
    assert (follower.inputs, follower.outputs) == (Channels(1), Channels(6, "0"))


def test_a_depthwise_convolution_behind_a_stage_follows_whichever_block_is_last():
    space = inspect(depthwise_behind_stage(), example())
    follower = next(layer for layer in space.layers if layer.operator == "depthwise")
    assert follower.outputs.source == "body.1"
    assert follower.name in groups(space)["body.1.0.conv"]
    assert follower.name in groups(space)["body.1.1.conv"]


def test_a_grouped_convolution_and_what_it_reads_lose_whole_groups_together():
    network = Classifier(8, ConvNorm(3, 8), nn.Conv2d(8, 8, 3, groups=4), ConvNorm(8, 8))
    space = inspect(network, example())
    assert groups(space) == {"body.0.conv": ("body.0.conv", "body.1"), "body.2.conv": ("body.2.conv",)}
    assert [(group.width, group.unit) for group in space.groups] == [(4, 2), (8, 1)]


def test_a_convolution_of_few_groups_keeps_them_and_loses_channels_of_each():
    space = inspect(grouped(), example())
    assert groups(space) == alone("body.0.conv", "body.1", "body.2.conv")
    assert [(group.width, group.unit) for group in space.groups] == [(4, 2), (4, 2), (6, 1)]
    layer = next(layer for layer in space.layers if layer.name == "body.1")
    assert (layer.inputs, layer.outputs) == (Channels(4, "body.0.conv"), Channels(4, "body.1", repeat=2))


def test_a_flattened_feature_map_has_rows_times_columns_elements_a_channel():
    space = inspect(flattened(), example())
    linear = next(layer for layer in space.layers if layer.name == "4")
    assert linear.inputs == Channels(4, "0", repeat=16)
    assert linear.outputs == Channels(6, "4")


def test_a_module_that_is_used_twice_shares_its_group_with_what_it_reads():
    space = inspect(shared(), example())
    assert groups(space) == {"body.0.conv": ("body.0.conv", "body.1.conv"), **alone("body.2.conv", "body.3.conv")}
    assert [layer.is_repeat for layer in space.layers if layer.name == "body.1.conv"] == [False, True]


@pytest.mark.parametrize("network", [Aliased, TiedWeights])
def test_layers_that_share_a_weight_share_a_group(network):
    space = inspect(network(), example())
    [(first, *others)] = [layers for name, layers in groups(space).items() if not name.startswith("tail")]
    assert first == "stem.conv"
    assert others
    assert groups(space).keys() == {"stem.conv", "tail.0.conv", "tail.1.conv"}


def test_nothing_is_listed_as_fixed_twice():
    fixed = [entry.name for entry in inspect(shared(), example()).fixed]
    assert len(fixed) == len(set(fixed))


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_function_fixes_only_what_it_reads_and_is_named_with_its_line(name):
    function, width, called = UNSUPPORTED[name]
    space = inspect(Probed(function, width), example())
    assert groups(space) == alone("after.conv", "last.conv")
    reason = reasons(space)["before.conv"]
    assert f"{called!r}" in reason
    assert "self.operation(self.before(images))" in line_of(reason)


class Products(nn.Module):
    """A product of its channels with themselves, flattened or through a linear layer."""

    def __init__(self, is_flattened: bool) -> None:
        super().__init__()
        self.is_flattened = is_flattened
        self.stem, self.body = ConvNorm(3, 4), ConvNorm(4, 8)
        self.inside, self.head = nn.Linear(8, 7), nn.Linear(64 if is_flattened else 7, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body(self.stem(images)).flatten(2)
        product = maps @ maps.transpose(1, 2)
        return self.head(product.flatten(1)) if self.is_flattened else self.head(self.inside(product).mean(1))


@pytest.mark.parametrize(
    ("is_flattened", "reason"),
    [(True, "it is multiplied with itself"), (False, "the cost of 'inside' would depend on three widths at once")],
)
def test_channels_that_would_count_squared_or_three_at_once_are_fixed(is_flattened, reason):
    space = inspect(Products(is_flattened), example())
    assert reasons(space)["body.conv"] == reason
    assert groups(space).keys() == ({"stem.conv"} if is_flattened else {"stem.conv", "inside"})


def test_channels_that_are_shuffled_among_their_own_halves_and_quarters_are_fixed():
    network = Probed(UNSUPPORTED["added_to_its_shuffle"][0], 8)
    network.before = ConvNorm(3, 8)
    assert reasons(inspect(network, example()))["before.conv"] == "it is multiplied with itself"


def test_behind_an_unsupported_function_costs_are_still_those_of_one_sample():
    network = Probed(*UNSUPPORTED["transformed"][:2])
    space = inspect(network, example())
    assert space.macs(Architecture()) == count_by_hand(network, example())


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_function_that_moves_or_joins_entries_leaves_the_channels_behind_and_before_it_to_be_cut(name):
    function, width, units = SUPPORTED[name]
    space = inspect(Probed(function, width), example())
    before = [group for group in space.groups if "before.conv" in group.layers]
    assert tuple((group.width, group.unit) for group in before) == units
    assert {"after.conv", "last.conv"} <= groups(space).keys()
    assert reasons(space) == {"classifier": "it is an output of the network"}


@pytest.mark.parametrize("name", UNSUPPORTED_MODULES)
def test_an_unsupported_module_fixes_only_what_it_reads_and_is_named_with_its_operator(name):
    make, called = UNSUPPORTED_MODULES[name]
    space = inspect(Probed(make()), example())
    assert groups(space) == alone("after.conv", "last.conv")
    assert f"{called!r}" in reasons(space)["before.conv"]


@pytest.mark.parametrize("name", MODULES)
def test_channels_of_a_supported_module_can_be_cut(name):
    make, units, has_outputs = MODULES[name]
    space = inspect(Probed(make()), example())
    first = space.groups[0]
    assert (first.name, first.width, first.unit) == ("before.conv", *units)
    searched = {"before.conv", "after.conv", "last.conv"} | ({"operation"} if has_outputs else set())
    assert {layer for group in space.groups for layer in group.layers} == searched


def test_the_line_in_a_reason_is_one_of_the_models_code_not_of_torchs():
    space = inspect(Probed(UNSUPPORTED_MODULES["local response norm"][0]()), example())
    assert "self.operation(self.before(images))" in line_of(reasons(space)["before.conv"])


def line_of(reason: str) -> str:
    """The line of code that a reason names."""
    file, line = re.search(r"\((\w+\.py):(\d+)\)", reason).groups()
    path = Path(__file__).parent / file
    assert path.exists(), f"{file} is not the model's file"
    return path.read_text().splitlines()[int(line) - 1]


@pytest.mark.parametrize("network", [FlattenedToANumber, ViewedToItsOwnShape])
def test_channels_that_a_forward_writes_down_as_a_number_are_searched(network):
    assert groups(inspect(network(), example())) == alone("conv", "hidden")


ALL_MODULES = {name: make for name, (make, *_) in (MODULES | UNSUPPORTED_MODULES).items()}


@pytest.mark.parametrize("name", ALL_MODULES)
def test_all_parameters_count(name):
    network = Probed(ALL_MODULES[name]())
    space = inspect(network, example())
    assert space.params(Architecture()) == sum(parameter.numel() for parameter in network.parameters())
    assert not [reason for reason in reasons(space).values() if "not counted" in reason]


def test_a_parameter_that_the_model_itself_multiplies_by_is_a_layer_of_its_own():
    space = inspect(Scaled(), example())
    scale = next(layer for layer in space.layers if layer.name == "scale")
    assert scale.operator == "parameter"
    assert (scale.inputs, scale.outputs) == (Channels(6, "stem.conv"), Channels(1))
    assert [scale.macs(4, 1), scale.params(4, 1)] == [0, 4]


def test_the_buffers_of_a_module_without_a_rule_are_not_listed_as_parameters():
    listed = reasons(inspect(Probed(nn.BatchNorm2d(6, affine=False)), example()))
    assert not [name for name in listed if "running" in name]


def test_stages_are_read_with_their_blocks_and_what_each_hands_on():
    first, second = inspect(staged(), example()).stages
    assert (first.name, first.depth, first.candidates) == ("body.1", 3, (1, 2, 3))
    assert first.blocks == ("body.1.0", "body.1.1", "body.1.2")
    assert [channels.source for channels in first.outputs] == [f"body.1.{block}.main.conv" for block in range(3)]
    assert (second.name, second.depth) == ("body.2", 2)


def test_what_follows_a_stage_reads_its_last_kept_block():
    layers = {layer.name: layer for layer in inspect(staged(), example()).layers}
    assert layers["body.2.0.main.conv"].inputs == Channels(4, "body.1")
    assert layers["body.2.0.sum.shortcut.0"].inputs == Channels(4, "body.1")
    assert layers["classifier"].inputs == Channels(6, "body.2")
    assert layers["body.1.1.main.conv"].inputs == Channels(4, "body.1.0.main.conv")


def test_a_stage_of_one_group_needs_no_last_block():
    layers = {layer.name: layer for layer in inspect(coupled_stage(), example()).layers}
    assert layers["classifier"].inputs.source in groups(inspect(coupled_stage(), example()))


class Tapped(nn.Module):
    """Reads what the first block hands on once more, behind the last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = ConvNorm(3, 6), nn.Sequential(PlainBlock(6), PlainBlock(6))
        self.classifier = nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        first = self.blocks[0](self.stem(images))
        return self.classifier((self.blocks[1](first) + first).mean(dim=(2, 3)))


class FedFromOutside(Tapped):
    """Its second block reads something besides what the first hands on."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        first = self.blocks[0](features)
        second = self.blocks[1].activation(self.blocks[1].conv(first) + features)
        return self.classifier(second.mean(dim=(2, 3)))


def two_classes() -> nn.Module:
    return Classifier(4, ConvNorm(3, 4), nn.Sequential(PlainBlock(4), FreeBlock(4, 4)))


def changing_width() -> nn.Module:
    return Classifier(6, ConvNorm(3, 4), nn.Sequential(FreeBlock(4, 4), FreeBlock(4, 6)))


def changing_size() -> nn.Module:
    return Classifier(4, ConvNorm(3, 4), nn.Sequential(FreeBlock(4, 4), FreeBlock(4, 4, stride=2)))


def single_block() -> nn.Module:
    return Classifier(4, ConvNorm(3, 4), nn.Sequential(PlainBlock(4)))


def bare_layers() -> nn.Module:
    return Classifier(4, ConvNorm(3, 4), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)))


@pytest.mark.parametrize(
    "network",
    [
        *(Tapped, FedFromOutside, two_classes, changing_width, changing_size, single_block, bare_layers),
        repeated_block,
    ],
)
def test_there_is_no_stage_where_blocks_cannot_be_cut_from_the_end(network):
    assert inspect(network(), example()).stages == ()


def test_blocks_may_go_from_a_container_with_a_forward_of_its_own():
    class Doubled(nn.Sequential):
        def forward(self, features: Tensor) -> Tensor:
            return super().forward(features) * 2

    blocks = [PlainBlock(4), PlainBlock(4)]
    network = Classifier(4, ConvNorm(3, 4), Doubled(*blocks)).eval()
    space = inspect(network, example())
    assert [(stage.name, stage.depth) for stage in space.stages] == [("body.1", 2)]
    student = shrink(network, replace(space.full_architecture(), depths={"body.1": 1}), example())
    network.body[1] = Doubled(blocks[0])
    assert torch.equal(student(example()), network(example()))


def test_blocks_may_go_from_a_network_that_is_their_container():
    stem, blocks, head = ConvNorm(3, 4), [PlainBlock(4), PlainBlock(4), PlainBlock(4)], nn.Conv2d(4, 2, 1)
    network = nn.Sequential(stem, *blocks, head).eval()
    space = inspect(network, example())
    assert [(stage.name, stage.blocks) for stage in space.stages] == [("1-3", ("1", "2", "3"))]
    student = shrink(network, replace(space.full_architecture(), depths={"1-3": 1}), example())
    assert type(student) is nn.Sequential
    assert torch.equal(student(example()), nn.Sequential(stem, blocks[0], head).eval()(example()))
    repeated = inspect(nn.Sequential(stem, blocks[0], blocks[0], head), example())
    assert any("'1' stands in it 2 times" in fixed.reason for fixed in repeated.fixed)


def test_the_first_block_of_a_stage_may_change_the_shape():
    network = Classifier(6, ConvNorm(3, 4), nn.Sequential(FreeBlock(4, 6, stride=2), FreeBlock(6, 6)))
    assert [stage.name for stage in inspect(network, example()).stages] == ["body.1"]


@pytest.mark.parametrize("network", [IteratedStage, IndexedStage])
def test_blocks_that_a_forward_runs_itself_are_a_stage(network):
    [stage] = inspect(network(), example()).stages
    assert (stage.name, stage.blocks) == ("blocks", ("blocks.0", "blocks.1", "blocks.2"))


def test_a_container_that_holds_more_than_a_run_of_blocks_gives_the_run():
    network = nn.Sequential(ConvNorm(3, 6), PlainBlock(6), PlainBlock(6), PlainBlock(6), nn.AdaptiveAvgPool2d(1))
    network = nn.Sequential(network, nn.Flatten(), nn.Linear(6, CLASSES))
    assert [(stage.name, stage.depth) for stage in inspect(network, example()).stages] == [("0.1-3", 3)]


class Doubled(nn.Module):
    """Two blocks inside one."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(PlainBlock(4), PlainBlock(4))

    def forward(self, features: Tensor) -> Tensor:
        return self.inside(features)


def test_only_the_outermost_of_nested_stages_counts():
    network = Classifier(4, ConvNorm(3, 4), nn.Sequential(Doubled(), Doubled()))
    assert [stage.name for stage in inspect(network, example()).stages] == ["body.1"]


def test_a_bare_container_of_blocks_is_no_block():
    def pair() -> nn.Sequential:
        return nn.Sequential(PlainBlock(4), PlainBlock(4))

    network = Classifier(4, ConvNorm(3, 4), nn.Sequential(pair(), pair()))
    assert [stage.name for stage in inspect(network, example()).stages] == ["body.1.0", "body.1.1"]


def test_a_layer_behind_a_stage_of_mixed_blocks_reads_the_width_of_the_last_kept_one():
    space = inspect(stage_that_ends_fixed(), example())
    behind = next(layer for layer in space.layers if layer.name == "2.conv")
    widths = {group.name: group.candidates[0] for group in space.groups}
    for stage in space.stages:
        for depth in stage.candidates:
            architecture = Architecture(widths=widths, depths={stage.name: depth})
            handed_on = space.resolve(stage.outputs[depth - 1], architecture)
            assert space.resolve(behind.inputs, architecture) == handed_on


@pytest.mark.parametrize(("dimensions", "has_groups", "has_stages"), [("width", True, False), ("depth", False, True)])
def test_either_dimension_can_be_searched_alone(dimensions, has_groups, has_stages):
    space, both = (inspect(staged(), example(), dimensions=each) for each in (dimensions, "both"))
    assert (bool(space.groups), bool(space.stages)) == (has_groups, has_stages)
    assert space.groups == (both.groups if has_groups else ())
    assert [stage.name for stage in space.stages] == ([stage.name for stage in both.stages] if has_stages else [])
    assert space.macs(Architecture()) == both.macs(Architecture())
    assert space.params(Architecture()) == both.params(Architecture())
    expected = {stage.name: "depths are not searched" for stage in both.stages}
    if dimensions == "depth":
        expected = {group.name: "widths are not searched" for group in both.groups}
    assert expected.items() <= reasons(space).items()


@pytest.mark.parametrize("dimensions", ["width", "depth"])
def test_an_architecture_of_one_dimension_costs_the_same_in_both(dimensions):
    space, both = (inspect(staged(), example(), dimensions=each) for each in (dimensions, "both"))
    for seed in range(5):
        architecture = space.random_architecture(seed)
        assert space.macs(architecture) == both.macs(architecture)
        assert space.params(architecture) == both.params(architecture)


def test_kept_layers_keep_their_width_and_kept_stages_their_depth():
    space = inspect(staged(), example(), keep=["body.1", "body.0.*", "*.2.main.c?nv"])
    assert reasons(space).keys() >= {"body.1", "body.0.conv", "body.1.2.main.conv"}
    assert [stage.name for stage in space.stages] == ["body.2"]
    everything = set(groups(inspect(staged(), example())))
    assert set(groups(space)) == everything - {"body.0.conv", "body.1.2.main.conv"}
    assert reasons(space)["body.1"] == reasons(space)["body.0.conv"] == "it is kept as asked"


def test_keeping_one_layer_of_a_group_keeps_the_group():
    assert groups(inspect(depthwise(), example(), keep=["3"])) == alone("6")


def test_behind_a_kept_stage_the_last_blocks_width_is_read():
    layers = {layer.name: layer for layer in inspect(staged(), example(), keep=["body.1"]).layers}
    assert layers["body.2.0.main.conv"].inputs.source == "body.1.2.main.conv"


def test_what_is_searched_only_is_searched_and_nothing_else():
    space = inspect(staged(), example(), only=["body.0.*", "body.2"])
    assert [group.name for group in space.groups] == ["body.0.conv"]
    assert [stage.name for stage in space.stages] == ["body.2"]
    assert reasons(space)["body.1"] == "it is not among what is searched only, as asked"
    kept = inspect(staged(), example(), only=["body.*"], keep=["body.1*"])
    assert not [choice.name for choice in (*kept.groups, *kept.stages) if choice.name.startswith("body.1")]


@pytest.mark.parametrize("option", ["keep", "only"])
def test_a_pattern_that_matches_nothing_is_refused_with_what_there_is(option):
    with pytest.raises(
        OptionError, match=rf"cannot search with {option} 'layer9\.\*': no layer or stage has such a name"
    ):
        inspect(staged(), example(), **{option: ["body.*", "layer9.*"]})


@pytest.mark.parametrize(("divisor", "candidates"), [(2, (1, 2, 3, 4)), (4, (2, 4)), (3, (3, 4)), (6, (3, 4))])
def test_candidates_of_a_group_cut_in_units_are_multiples_of_the_divisor_in_channels(divisor, candidates):
    space = inspect(grouped(), example(), divisor=divisor)
    first = space.groups[0]
    assert (first.width, first.unit, first.candidates) == (4, 2, candidates)
    assert all(width * first.unit % divisor == 0 for width in first.candidates[:-1])


def test_candidates_follow_the_ratios_the_divisor_and_the_depths():
    space = inspect(staged(), example(), ratios=(0.25, 0.5), depths=lambda depth: (2,))
    assert {group.candidates for group in space.groups} == {(1, 2, 4), (1, 3, 6)}
    assert [stage.candidates for stage in space.stages] == [(2, 3), (2,)]
    even = inspect(staged(), example(), divisor=2)
    assert {group.candidates for group in even.groups} == {(2, 4), (2, 4, 6)}


def test_a_group_of_a_single_candidate_is_fixed():
    network = Classifier(6, nn.Conv2d(3, 1, 1), ConvNorm(1, 6))
    assert reasons(inspect(network, example()))["body.0"] == "it has a single channel"
    network = Classifier(6, nn.Conv2d(3, 4, 1), ConvNorm(4, 6))
    found = reasons(inspect(network, example(), divisor=4))
    assert found == {"body.0": "it has a single candidate", "classifier": "it is an output of the network"}


@pytest.mark.parametrize("depths", [(0, 1), (1, 7)])
def test_a_candidate_depth_that_a_stage_cannot_have_is_refused(depths):
    with pytest.raises(OptionError, match="depth"):
        inspect(staged(), example(), depths=lambda _: depths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": ()}, r"ratios=\[\]"),
        ({"ratios": (0.0, 1.0)}, r"expected ratios in \(0, 1\]"),
        ({"ratios": (0.5, 1.5)}, r"expected ratios in \(0, 1\]"),
        ({"ratios": (float("nan"),)}, r"expected ratios in \(0, 1\]"),
        ({"divisor": 0}, "divisor of at least 1"),
        ({"dimensions": "height"}, "expected 'both', 'width' or 'depth'"),
    ],
)
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        inspect(plain(), example(), **options)


def test_images_of_another_number_of_channels_are_refused_with_their_shape():
    with pytest.raises(ModelError, match=r"cannot read the model ResNet: .* shape \[1, 1, 8, 8\] .*3 channels"):
        inspect(resnet(8), torch.zeros(1, 1, 8, 8))


def test_images_too_small_are_refused_with_their_shape():
    with pytest.raises(ModelError, match=r"forward fails on an example of shape \[1, 3, 1, 1\]"):
        inspect(resnet(8), torch.zeros(1, 3, 1, 1))


class Branching(nn.Module):
    """Its forward depends on the values of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = plain()

    def forward(self, images: Tensor) -> Tensor:
        return self.inside(images if images.sum() > 0 else -images)


def test_a_forward_that_branches_on_values_is_refused_in_a_few_lines():
    with pytest.raises(ModelError, match=r"(?s)cannot trace its forward .* does not branch on the values") as caught:
        inspect(Branching(), example())
    assert len(str(caught.value).splitlines()) <= 3


class Mistaken(nn.Module):
    """Its classifier expects other features than it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classifier = nn.Conv2d(3, 4, 3), nn.Linear(99, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.conv(images).flatten(1))


@pytest.mark.parametrize("network", [Branching(), Mistaken()])
def test_a_refused_forward_is_named_by_its_line_and_torch_adds_nothing(network, capfd):
    line = getsourcelines(type(network).forward)[1] + 1
    with pytest.raises(ModelError, match=rf"its forward .*at {__file__}:{line} on an example"):
        inspect(network, example())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), "'1': it is an output of the network"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "none of its widths and depths can be chosen"),
    ],
)
def test_a_model_with_nothing_to_search_is_refused_with_the_reasons(network, reason):
    with pytest.raises(ModelError, match=reason):
        inspect(network, example())


def test_keeping_everything_leaves_nothing_to_search():
    with pytest.raises(ModelError, match="it is kept as asked"):
        inspect(plain(), example(), keep=["*"])


@pytest.mark.parametrize("case", CASES)
def test_the_callers_model_is_untouched(case):
    network = CASES[case]().train()
    network(example()).sum().backward()
    next(network.children()).eval()
    before = copy.deepcopy(network.state_dict())
    gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    modules = [(name, type(module), module.training) for name, module in network.named_modules()]
    inspect(network, example())
    assert [(name, type(module), module.training) for name, module in network.named_modules()] == modules
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in network.named_parameters())


def test_inspecting_draws_no_random_numbers():
    network = residual()
    states = random.getstate(), torch.get_rng_state()
    inspect(network, example())
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_the_space_depends_on_neither_the_weights_nor_the_mode_nor_the_batch_nor_the_precision():
    reference = inspect(staged().eval(), example(2))
    torch.manual_seed(9)
    assert inspect(staged().train(), example(5)) == reference
    assert inspect(staged().double(), example().double()) == reference


@pytest.mark.parametrize("case", CASES)
def test_a_space_survives_json(case):
    space = inspect(CASES[case](), example())
    assert SearchSpace.from_json(json.dumps(space.to_json())) == space


def test_a_forward_of_several_inputs_is_read_from_a_tuple():
    class TwoImages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = ConvNorm(3, 4), ConvNorm(3, 4)
            self.classifier = nn.Linear(4, CLASSES)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.classifier((self.left(left) + self.right(right)).mean(dim=(2, 3)))

    space = inspect(TwoImages(), (example(), example()))
    assert list(map(set, groups(space).values())) == [{"left.conv", "right.conv"}]


def test_in_place_operators_have_the_rules_of_the_others():
    class InPlace(CoupledBlock):
        def forward(self, features: Tensor) -> Tensor:
            features = features.clone()
            features += self.second(self.first(features))
            return torch.relu_(features)

    network = Classifier(6, ConvNorm(3, 6), InPlace(6))
    names = {operator(node) for node in trace(network, example()).calls}
    assert {"add", "relu"} <= names
    assert {frozenset(layers) for layers in groups(inspect(network, example())).values()} == {
        frozenset({"body.0.conv", "body.1.second.conv"}),
        frozenset({"body.1.first.conv"}),
    }


def test_every_output_of_the_network_keeps_its_width():
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.middle = ConvNorm(3, 4), ConvNorm(4, 6)
            self.classifier = nn.Linear(6, CLASSES)

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            features = self.middle(self.stem(images))
            return {"logits": self.classifier(features.mean(dim=(2, 3))), "features": features}

    space = inspect(TwoHeads(), example())
    assert groups(space) == alone("stem.conv")
    assert reasons(space)["middle.conv"] == reasons(space)["classifier"] == "it is an output of the network"
