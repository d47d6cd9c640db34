"""Sorting puts the channels that matter most first and changes nothing else."""

import copy

import pytest
import torch
from torch import Tensor, nn

from any_networks import ANY, any_network
from hard_networks import HARD
from small_networks import CASES, ODD_CASES, ConvNorm, PlainBlock, example, plain
from test_any_network import assert_close, inputs_of, network_of, outputs_of, space_of
from transprune.architecture import Architecture
from transprune.errors import OptionError
from transprune.models.resnet import ResidualSum
from transprune.reading.axes import Concatenation, FreeSum, Product, StageEnd
from transprune.reading.inspection import inspect
from transprune.reading.layouts import Constant, Group
from transprune.reading.reading import GroupFacts, read
from transprune.shrinking.shrink import kept_entries, shrink
from transprune.shrinking.sort import ChannelWeights, magnitude, sort_channels, units_of

ALL = [*ANY, *CASES, *ODD_CASES, *HARD]
SORTED: dict[str, nn.Module] = {}


def sorted_network(name: str) -> nn.Module:
    """A sorted network of the zoo. Not to be changed."""
    if name not in SORTED:
        SORTED[name] = sort_channels(network_of(name), inputs_of(name), reading=space_of(name).reading)
    return SORTED[name]


@pytest.mark.parametrize("name", ALL)
def test_sorting_changes_no_output(name):
    expected = outputs_of(network_of(name), inputs_of(name, 3))
    assert_close(outputs_of(sorted_network(name), inputs_of(name, 3)), expected, 1e-4)


@pytest.mark.parametrize("name", ANY)
def test_sorting_keeps_every_name_and_class_and_every_value_somewhere(name):
    network, ordered = network_of(name), sorted_network(name)
    assert [(path, type(module)) for path, module in ordered.named_modules()] == [
        (path, type(module)) for path, module in network.named_modules()
    ]
    for path, value in network.state_dict().items():
        assert torch.equal(ordered.state_dict()[path].flatten().sort().values, value.flatten().sort().values)


def of_group(network: nn.Module, name: str, group: GroupFacts) -> tuple[list[ChannelWeights], int]:
    """All parameters of a group, found by what shrinking keeps at each width, and the group's width.

    Only for groups that alone make up the axes that they take part in.
    """
    width, inputs, reading = group.width, inputs_of(name), space_of(name).reading
    cuts = [Architecture({group.name: count}) for count in range(1, width + 1)]
    kept = [kept_entries(network, cut, inputs, reading=reading) for cut in cuts]
    found: list[ChannelWeights] = []
    for path, parameter in network.named_parameters():
        for axis in range(parameter.dim()):
            if len(kept[0][path][axis]) < parameter.shape[axis]:
                entries = [set(at_width[path][axis].tolist()) for at_width in kept]
                units = [min(u for u in range(width) if e in entries[u]) for e in range(parameter.shape[axis])]
                found.append(ChannelWeights(path, parameter, axis, torch.tensor(units)))
    return found, width


@pytest.mark.parametrize(
    "name", ["plain", "depthwise", "flattened", "gated", "vision_transformer", "squeeze_excitation"]
)
def test_the_more_important_channels_come_first(name):
    for group in space_of(name).reading.groups:
        if not group.is_ordered:
            weights, width = of_group(sorted_network(name), name, group)
            scores = magnitude(weights, width)
            assert (scores.diff() <= 1e-9 * scores.max()).all()
            before = magnitude(*of_group(network_of(name), name, group))
            torch.testing.assert_close(before.sort(descending=True).values, scores)


def test_importance_weighs_every_layer_the_same():
    first, second = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[10.0], [20.0]])
    weights = [
        ChannelWeights("first", first, 0, torch.tensor([0, 1])),
        ChannelWeights("second", second, 0, torch.tensor([0, 1])),
        ChannelWeights("bias", torch.tensor([5.0, 6.0]), 0, torch.tensor([0, 1])),
    ]
    expected = torch.tensor([5 / 7 + 100 / 250, 9 / 7 + 400 / 250], dtype=torch.float64)
    torch.testing.assert_close(magnitude(weights, 2), expected)


def test_entries_of_no_unit_do_not_count():
    weights = ChannelWeights("conv", torch.ones(5, 1), 0, torch.tensor([0, -1, 1, 1, -1]))
    assert weights.by_unit(torch.tensor([1.0, 10.0, 2.0, 4.0, 10.0]), 3).tolist() == [1.0, 6.0, 0.0]


def test_an_importance_of_ones_own_decides_the_order():
    network = plain().eval()
    seen: dict[str, list[tuple[str, int]]] = {}

    def last_first(weights: list[ChannelWeights], width: int) -> Tensor:
        seen[weights[0].name] = [(each.name, each.axis) for each in weights]
        return torch.arange(width)

    ordered = sort_channels(network, example(), last_first)
    assert torch.equal(ordered[0].weight, network[0].weight.flip(0))
    assert torch.equal(ordered[3].weight, network[3].weight.flip(0, 1))
    assert torch.equal(ordered[8].weight, network[8].weight.flip(1))
    assert seen == {
        "0.weight": [("0.weight", 0), ("0.bias", 0), ("3.weight", 1)],
        "3.weight": [("3.weight", 0), ("4.weight", 0), ("4.bias", 0), ("8.weight", 1)],
    }


def flat_stage() -> nn.Module:
    torch.manual_seed(0)
    blocks = nn.Sequential(*(PlainBlock(4) for _ in range(2)))
    return nn.Sequential(ConvNorm(3, 4, stride=4), blocks, nn.Flatten(), nn.Linear(16, 5)).eval()


def reversed_order(weights: list[ChannelWeights], width: int) -> Tensor:
    return torch.arange(width)


def test_channels_that_are_read_together_with_their_neighbours_keep_their_order():
    network = any_network("channel_attention")
    ordered = sort_channels(network, example(), reversed_order)
    assert torch.equal(ordered.parts[0].conv.weight, network.parts[0].conv.weight.flip(1))
    assert torch.equal(ordered.stem.conv.weight, network.stem.conv.weight.flip(0))
    names = {group.name: group.is_ordered for group in read(network, example()).groups}
    assert names == {"stem.conv": False, "parts.0.conv": True}


@pytest.mark.parametrize(
    "name",
    [
        "staged",
        "IteratedStage",
        "depthwise_behind_stage",
        "channels_last",
        "cross_stage",
        "flat_stage",
        "stage_that_ends_fixed",
    ],
)
def test_blocks_can_still_be_left_out_of_a_sorted_network(name):
    network, inputs = flat_stage() if name == "flat_stage" else network_of(name), inputs_of(name, 3)
    space = inspect(network, inputs)
    shallow, known = Architecture(depths={stage.name: 1 for stage in space.stages}), {"reading": space.reading}
    assert shallow.depths
    expected = outputs_of(shrink(network, shallow, inputs, **known), inputs)
    ordered = sort_channels(network, inputs, **known)
    assert_close(outputs_of(shrink(ordered, shallow, inputs, **known), inputs), expected)


def test_a_channel_that_is_added_to_one_that_keeps_its_place_keeps_its_own():
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inside, self.sum = ConvNorm(3, 6), ConvNorm(6, 6), ResidualSum()
            self.tail = ConvNorm(6, 4)

        def forward(self, images: Tensor) -> Tensor:
            features = self.stem(images)
            return self.tail(self.sum(self.inside(features).flip(1), features)).mean((2, 3))

    network = Added().eval()
    ordered = sort_channels(network, example(), reversed_order)
    assert_close(outputs_of(ordered, (example(),)), outputs_of(network, (example(),)))
    assert torch.equal(ordered.stem.conv.weight, network.stem.conv.weight)


def test_both_sides_of_a_free_sum_and_all_blocks_of_a_stage_have_one_order():
    called: list[list[str]] = []

    def importance(weights: list[ChannelWeights], width: int) -> Tensor:
        called.append([each.name for each in weights])
        return torch.arange(width)

    network = network_of("staged")
    ordered = sort_channels(network, example(), importance)
    assert len(called) == 2
    writers = [sorted({name for name in names if name.endswith("conv.weight")}) for names in called]
    assert {"body.0.conv.weight", *(f"body.1.{block}.main.conv.weight" for block in range(3))} <= set(writers[0])
    assert {f"body.2.{block}.main.conv.weight" for block in range(2)} <= set(writers[1])
    assert_close(outputs_of(ordered, (example(3),)), outputs_of(network, (example(3),)))


def test_what_a_forward_makes_itself_keeps_its_order():
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = ConvNorm(3, 6), nn.Linear(6, 5)

        def forward(self, images: Tensor) -> Tensor:
            features = self.stem(images).mean((2, 3))
            return self.head(features * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))

    network = Weighted().eval()
    ordered = sort_channels(network, example(), reversed_order)
    assert torch.equal(ordered.stem.conv.weight, network.stem.conv.weight)
    assert_close(outputs_of(ordered, (example(),)), outputs_of(network, (example(),)))


def test_a_channel_that_nothing_reads_comes_last():
    network = plain()
    with torch.no_grad():
        network[0].weight[0] = 0
        network[3].weight[:, 0] = 0
        network[0].weight[2] *= 100
    ordered = sort_channels(network.eval(), example())
    assert not ordered[0].weight[-1].any()
    assert torch.equal(ordered[0].weight[0], network[0].weight[2])


def test_a_student_of_sorted_channels_has_the_most_important_ones():
    network = plain().eval()
    importance = torch.tensor([1.0, 4.0, 3.0, 2.0])
    ordered = sort_channels(network, example(), lambda _, width: importance if width == 4 else torch.ones(width))
    student = shrink(ordered, Architecture({"0": 2}), example())
    assert torch.equal(student[0].weight, network[0].weight[[1, 2]])
    assert torch.equal(student[3].weight, network[3].weight[:, [1, 2]])


def test_equal_channels_keep_their_order():
    ordered = sort_channels(network_of("plain"), example(), lambda _, width: torch.ones(width))
    assert all(
        torch.equal(value, ordered.state_dict()[name]) for name, value in network_of("plain").state_dict().items()
    )


@pytest.mark.parametrize("name", ANY)
def test_the_callers_network_is_untouched(name):
    network = copy.deepcopy(network_of(name)).train()
    before = {path: value.clone() for path, value in network.state_dict().items()}
    ordered = sort_channels(network, inputs_of(name), reading=space_of(name).reading)
    with torch.no_grad():
        for value in ordered.state_dict().values():
            value.add_(1)
    assert network.training
    assert ordered.training
    assert all(torch.equal(value, before[path]) for path, value in network.state_dict().items())


@pytest.mark.parametrize("importance", [torch.ones(3), None, torch.full((4,), torch.nan)])
def test_an_importance_that_is_not_a_number_for_each_unit_is_refused(importance):
    with pytest.raises(OptionError, match=r"channels of '0': .*; expected one number for each of the 4"):
        sort_channels(plain(), example(), lambda weights, width: importance)


def test_the_units_of_a_layout_are_numbered_wherever_they_stand():
    inside = Product((Constant(2), Group("a", 3)))
    assert units_of(inside, "a").tolist() == [0, 1, 2, 0, 1, 2]
    assert units_of(Product((Group("a", 2), Constant(2))), "a").tolist() == [0, 0, 1, 1]
    joined = Concatenation((Constant(1), inside, Group("b", 2)))
    assert units_of(joined, "a").tolist() == [-1, 0, 1, 2, 0, 1, 2, -1, -1]
    assert units_of(joined, "b").tolist() == [-1] * 7 + [0, 1]
    assert units_of(StageEnd("s", (Group("b", 2), Group("a", 2))), "a").tolist() == [0, 1]
    assert units_of(FreeSum("sum", Group("a", 2), Group("b", 2)), "b").tolist() == [-1, -1]


class ComplexMatrix(nn.Module):
    """A product with complex weights, of whose result the absolute values are read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 6, dtype=torch.complex64))
        self.out = nn.Linear(6, 3)

    def forward(self, features):
        return self.out((features.to(torch.complex64) @ self.weight).abs())


def test_complex_weights_weigh_by_their_magnitudes():
    network = ComplexMatrix()
    with torch.no_grad():
        network.out.weight.fill_(1.0)
        network.weight[:, 3] = 2j
        network.weight[:, 1] = 1.0
    ordered = sort_channels(network, torch.randn(2, 4))
    assert ordered.weight[:, 0].eq(2j).all()
    assert ordered.weight[:, 1].eq(1).all()
