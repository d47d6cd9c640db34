"""The smaller network is the network that its architecture says, made of the model's own weights."""

import copy
import io
import pickle
import random
import re
from functools import cache

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from hard_networks import HARD, FlattenedToANumber, IndexedStage, Tail
from oracles import count_by_hand, count_parameters
from small_networks import (
    CASES,
    ODD_CASES,
    ConvNorm,
    FreeBlock,
    coupled_stage,
    depthwise,
    example,
    flattened,
    grouped,
    plain,
    residual,
    shared,
    space_of,
    staged,
)
from transprune.architecture import Architecture
from transprune.errors import DataError, ModelError, OptionError, SpaceError
from transprune.models.resnet import ResidualSum, ResNet, ResNetShape, resnet
from transprune.reading.inspection import inspect
from transprune.reading.macs import count_macs
from transprune.reading.reading import Reading, read
from transprune.shrinking.adapters import AttentionOfHeads
from transprune.shrinking.shrink import kept_entries, shrink
from transprune.shrinking.traced_network import TracedNetwork
from transprune.space import SearchSpace

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ALL_CASES = CASES | ODD_CASES | HARD


def telling(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in evaluation mode, with norms whose scales, shifts and statistics all differ."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight, layer.bias, layer.running_mean):
                values.data = torch.randn(values.shape, generator=generator)
            layer.running_var = torch.rand(layer.running_var.shape, generator=generator) + 0.5
    return network.eval()


def some_architectures(space: SearchSpace) -> list[Architecture]:
    """The extremes, every other size at its smallest, and a random one."""
    sizes = [("widths", group) for group in space.groups] + [("depths", stage) for stage in space.stages]
    mixed = [
        Architecture(
            **{
                kind: {choice.name: choice.candidates[0] for named, choice in sizes[start::2] if named == kind}
                for kind in ("widths", "depths")
            }
        )
        for start in (0, 1)
    ]
    shallow = Architecture(depths={stage.name: stage.candidates[0] for stage in space.stages})
    narrow = Architecture(widths={group.name: group.candidates[0] for group in space.groups})
    return [space.full_architecture(), narrow, *mixed, space.random_architecture(0), *([shallow] * bool(space.stages))]


@cache
def shrunk_to_full(case: str) -> tuple[nn.Module, nn.Module]:
    """A network and what shrinking to the full architecture makes of it."""
    network = telling(ALL_CASES[case]())
    return network, shrink(network, Architecture(), example())


@pytest.mark.parametrize("case", ALL_CASES)
def test_shrinking_to_the_full_architecture_changes_no_output_bit_for_bit(case):
    network, student = shrunk_to_full(case)
    with torch.no_grad():
        assert torch.equal(student(example(4)), network(example(4)))
        in_training = [copy.deepcopy(each).train()(example(4)) for each in (student, network)]
        assert torch.equal(*in_training)


@pytest.mark.parametrize("case", CASES)
def test_naming_every_full_size_is_naming_none(case):
    network, student = shrunk_to_full(case)
    named = shrink(network, space_of(CASES[case]).full_architecture(), example())
    assert all(torch.equal(value, named.state_dict()[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("case", ALL_CASES)
def test_shrinking_to_the_full_architecture_keeps_every_name_class_and_value(case):
    network, student = shrunk_to_full(case)
    assert [(name, type(module)) for name, module in student.named_modules()] == [
        (name, type(module)) for name, module in network.named_modules()
    ]
    assert list(student.state_dict()) == list(network.state_dict())
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in student.state_dict().items())
    assert count_parameters(student) == count_parameters(network)


WRITES_DOWN_SIZES = ("FlattenedToANumber", "ViewedToItsOwnShape")


@pytest.mark.parametrize("case", ALL_CASES)
def test_a_shrunk_network_runs_and_counts_to_the_integers_of_its_space(case):
    network = ALL_CASES[case]()
    space = inspect(network, example())
    for architecture in some_architectures(space):
        student = shrink(network, architecture, example(), reading=space.reading)
        assert count_macs(student, example()) == space.macs(architecture)
        assert count_parameters(student) == space.params(architecture)
        student.train()(example(4)).sum().backward()
        if type(student) is type(network):
            assert count_by_hand(student, example()) == space.macs(architecture)
        else:
            assert case in WRITES_DOWN_SIZES
            assert isinstance(student, TracedNetwork)


@pytest.mark.parametrize("case", WRITES_DOWN_SIZES)
def test_where_a_forward_writes_down_a_size_that_was_cut_the_traced_operators_run_and_the_reason_says_why(case):
    network = telling(ALL_CASES[case]())
    student = shrink(network, Architecture(widths={"conv": 3}), example())
    assert isinstance(student, TracedNetwork)
    assert "its own forward cannot follow the cut (RuntimeError: shape" in student.reason
    assert repr(student).startswith(f"TracedNetwork(\n  of {case}: its own forward cannot follow")
    assert type(shrink(network, Architecture(widths={"hidden": 3}), example())) is type(network)
    with torch.no_grad():
        features = nn.functional.conv2d(example(5), network.conv.weight[:3], network.conv.bias[:3], padding=1)
        hidden = nn.functional.linear(features.flatten(1), network.hidden.weight[:, :192], network.hidden.bias)
        torch.testing.assert_close(student(example(5)), network.classifier(hidden.relu()))


def test_where_a_forward_reads_a_block_that_was_dropped_something_without_weights_stands_for_it():
    network = telling(IndexedStage())
    student = shrink(network, Architecture(depths={"blocks": 2}), example())
    assert type(student) is IndexedStage
    assert "blocks.2.conv.weight" not in student.state_dict()
    with torch.no_grad():
        features = network.blocks[1](network.blocks[0](network.stem(example(5))))
        assert torch.equal(student(example(5)), network.tail(features))


@pytest.fixture(scope="module")
def traced() -> TracedNetwork:
    """A student that runs traced operators; not to be changed."""
    student = shrink(telling(FlattenedToANumber()), Architecture(widths={"conv": 3}), example())
    assert isinstance(student, TracedNetwork)
    return student


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 3, 16, 16), (2, 1, 8, 8), (3, 8, 8)])
def test_traced_operators_refuse_inputs_of_another_size_than_the_examples(shape, traced):
    message = re.escape(
        f"on inputs of shape {list(shape)}: the sizes of the example are written into them; expected [batch, 3, 8, 8]"
    )
    with pytest.raises(DataError, match=message):
        traced(torch.zeros(shape))


def test_traced_operators_of_several_inputs_refuse_another_size_or_number_of_them():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.outside = nn.Linear(6, 4), nn.Linear(4, 5)

        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return self.outside(self.inside(one + other).view(-1, 3, 4).sum(1))

    inputs = torch.zeros(2, 3, 6), torch.zeros(2, 3, 6)
    student = shrink(Sum(), Architecture(widths={"inside": 2}), inputs)
    assert student(*inputs).shape == (2, 5)
    with pytest.raises(DataError, match=r"expected \[batch, 3, 6\], \[batch, 3, 6\]"):
        student(inputs[0][:, :2], inputs[1][:, :2])
    with pytest.raises(
        DataError, match=r"'other'; expected .* \[11, 3, 6\] and \[11, 3, 6\], of any number of samples"
    ):
        student(inputs[0])


def test_traced_operators_are_compiled_and_exported_for_any_number_of_samples(traced):
    compiled = torch.compile(traced, backend="eager")
    exported = torch.export.export(traced, (example(4),), dynamic_shapes=({0: torch.export.Dim.AUTO},)).module()
    with torch.no_grad():
        for batch in (2, 5):
            torch.testing.assert_close(compiled(example(batch)), traced(example(batch)))
            torch.testing.assert_close(exported(example(batch)), traced(example(batch)))


def test_a_network_of_traced_operators_is_copied_but_not_pickled(traced):
    twin = copy.deepcopy(traced)
    assert torch.equal(twin(example(3)), traced(example(3)))
    twin.conv.weight.data.zero_()
    assert traced.conv.weight.any()
    for save in (pickle.dumps, lambda network: torch.save(network, io.BytesIO())):
        with pytest.raises(ModelError, match="cannot pickle the operators that were traced from FlattenedToANumber"):
            save(traced)
    torch.save(traced.state_dict(), io.BytesIO())


class Noisy(nn.Module):
    """Adds random numbers to its features, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.inside(inputs)
        return self.outside(features + torch.randn_like(features))


def test_a_forward_that_draws_random_numbers_can_follow_and_the_callers_generators_stay_where_they_are():
    network, states = Noisy().eval(), (torch.get_rng_state(), random.getstate(), np.random.get_state()[2])
    for width in (3, 6):
        assert type(shrink(network, Architecture(widths={"inside": width}), torch.zeros(2, 8))) is Noisy
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[2]) == states[1:]


class DividedByItsWidth(nn.Module):
    """Reads its number of channels when it runs, where a trace holds that of the unpruned network."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(8, 6), nn.Linear(6, 5)
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.inside(inputs)
        return self.outside(features / features.shape[1]) * self.scale


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1.0, 1e3])
def test_whether_a_forward_can_follow_does_not_depend_on_the_size_of_the_outputs(scale):
    network, inputs = DividedByItsWidth(scale).eval(), torch.zeros(2, 8)
    assert type(shrink(network, Architecture(widths={"inside": 6}), inputs)) is DividedByItsWidth
    student = shrink(network, Architecture(widths={"inside": 3}), inputs)
    assert isinstance(student, TracedNetwork)
    assert student.reason == "its own forward computes something else after the cut"


class Numbered(nn.Module):
    """Holds how many rows and columns its matrix has, as the linear layers of GPT-2 do, and views both."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.columns, self.rows = columns, rows
        self.matrix = nn.Parameter(torch.randn(columns, rows))

    def forward(self, features: Tensor) -> Tensor:
        return (features.reshape(-1, self.columns) @ self.matrix).view(*features.shape[:-1], self.rows)


class HoldingSizes(nn.Module):
    """Three layers, and numbers for their forwards; two that are equal by chance mean other things."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.times, self.heads, self.features = [8, 4], 8, 4, 4
        self.beside = [torch.ones(2), torch.ones(2)]
        self.first, self.second, self.third = Numbered(6, 12), Numbered(8, 8), Numbered(16, 5)

    def forward(self, features: Tensor) -> Tensor:
        one, other = self.first(features).split(self.parts, dim=-1)
        heads = self.second(one.tanh()).repeat(1, 2).unflatten(-1, (self.heads, self.features))
        heads = (heads * torch.linspace(1, 2, self.features)).softmax(-2)
        return self.third(heads.flatten(-2)) + other.mean() * self.times


def test_numbers_that_a_module_hands_to_operators_follow_the_cut():
    network, inputs = HoldingSizes().eval(), torch.randn(3, 6)
    space = inspect(network, inputs)
    for seed in range(3):
        architecture = space.random_architecture(seed)
        student = shrink(network, architecture, inputs, reading=space.reading)
        assert isinstance(student, HoldingSizes)
        assert sum(student.parts) == student.first.rows == student.first.matrix.shape[1]
        assert (student.second.columns, student.second.rows) == student.second.matrix.shape
        assert (student.times, student.features) == (8, 4)
        assert (network.parts, network.second.columns) == ([8, 4], 8)


OWN_ATTENTION = ({}, {"bias": False, "add_zero_attn": True}, {"add_bias_kv": True, "kdim": 6, "vdim": 5})


@pytest.mark.parametrize("options", OWN_ATTENTION)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("samples", [3, None])
@pytest.mark.parametrize("mask", [None, torch.ones(4, 4).triu(1).bool(), torch.rand(4, 4), "heads"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_of_heads_is_torchs_where_they_are_as_wide(options, batch_first, samples, mask, need_weights):
    torch.manual_seed(0)
    torchs = nn.MultiheadAttention(8, 2, batch_first=batch_first, **options)
    for parameter in torchs.parameters():
        nn.init.normal_(parameter, std=0.5)
    own = copy.deepcopy(torchs)
    own.__class__ = AttentionOfHeads
    shape = (4,) if samples is None else (samples, 4) if batch_first else (4, samples)
    given = [torch.randn(*shape, width) for width in (8, torchs.kdim, torchs.vdim)]
    padding = torch.arange(4) >= (torch.tensor(3) if samples is None else torch.tensor([[2], [3], [4]]))
    if isinstance(mask, str):
        mask = torch.rand((samples or 1) * 2, 4, 4)
    if mask is not None and mask.dtype != torch.bool:
        padding = torch.zeros(padding.shape).masked_fill(padding, -torch.inf)
    for hidden in (None, padding):
        found, wanted = (
            each(*given, attn_mask=mask, key_padding_mask=hidden, need_weights=need_weights) for each in (own, torchs)
        )
        torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)
        assert (found[1] is None) is not need_weights
        if need_weights:
            torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-5)


def described(network: nn.Module) -> list[tuple[str, type, bool]]:
    return [(name, type(module), module.training) for name, module in network.named_modules()]


@pytest.mark.parametrize(("block", "blocks"), [("basic", (3, 3, 3)), ("bottleneck", (2, 3, 2))])
def test_a_shrunk_resnet_counts_to_the_integers_of_its_space(block, blocks):
    images = torch.zeros(1, 3, 32, 32, device="meta")
    with torch.device("meta"):
        network = ResNet(ResNetShape.uniform("cifar", block, blocks))
    space = inspect(network, images)
    for seed in range(6):
        architecture = space.random_architecture(seed)
        student = shrink(network, architecture, images, reading=space.reading)
        assert count_by_hand(student, images) == space.macs(architecture)
        assert count_parameters(student) == space.params(architecture)


def small_resnet18() -> nn.Module:
    return torchvision.models.resnet18(num_classes=5)


def small_mobilenet() -> nn.Module:
    return torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.5)


def small_vgg() -> nn.Module:
    network = torchvision.models.vgg11_bn(num_classes=5, init_weights=False)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 5))
    return network


@pytest.mark.parametrize(
    ("make", "stages"),
    [
        (small_resnet18, [f"layer{number}" for number in (1, 2, 3, 4)]),
        (
            small_mobilenet,
            [*(f"features.{run}" for run in ("2-3", "4-6", "7-10", "11-13", "14-16")), "features.17.conv.0-1"],
        ),
        (small_vgg, []),
    ],
)
def test_torchvisions_networks_shrink_run_train_and_count_to_the_integers_of_their_space(make, stages):
    images = torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    network = make().eval()
    space = inspect(network, images)
    assert {fixed.reason for fixed in space.fixed} == {"it is an output of the network"}
    assert [stage.name for stage in space.stages] == stages
    with torch.no_grad():
        full = shrink(network, space.full_architecture(), images, reading=space.reading)
        assert torch.equal(full(images), network(images))
    architecture = space.random_architecture(0)
    student = shrink(network, architecture, images, reading=space.reading)
    assert count_by_hand(student, images) == space.macs(architecture)
    assert count_parameters(student) == space.params(architecture)
    student.train()(images).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in student.parameters())


def test_shrinking_a_chain_is_slicing_it_by_hand():
    network = telling(plain())
    student = shrink(network, Architecture(widths={"0": 3, "3": 5}), example())
    by_hand = plain().eval()
    by_hand[0], by_hand[3], by_hand[4], by_hand[8] = (
        *(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1, bias=False)),
        *(nn.BatchNorm2d(5).eval(), nn.Linear(5, 5)),
    )
    full = network.state_dict()
    cuts = {"0.weight": (3,), "0.bias": (3,), "3.weight": (5, 3), "8.weight": (5, 5), "4.num_batches_tracked": ()}
    cuts |= {f"4.{name}": (5,) for name in ("weight", "bias", "running_mean", "running_var")}
    by_hand.load_state_dict(
        {name: value[tuple(slice(size) for size in cuts.get(name, ()))] for name, value in full.items()}
    )
    with torch.no_grad():
        assert torch.equal(student(example(4)), by_hand(example(4)))
        assert not torch.allclose(student(example(4)), network(example(4)))


def test_shrinking_a_depthwise_chain_is_slicing_it_by_hand():
    network = telling(depthwise())
    student = shrink(network, Architecture(widths={"0": 2, "6": 3}), example())
    with torch.no_grad():
        features = nn.functional.conv2d(example(), network[0].weight[:2], network[0].bias[:2])
        features = normed(features, network[1]).clamp(0, 6)
        features = nn.functional.conv2d(features, network[3].weight[:2], network[3].bias[:2], 2, 1, groups=2)
        features = normed(features, network[4]).clamp(0, 6)
        features = nn.functional.conv2d(features, network[6].weight[:3, :2], network[6].bias[:3])
        logits = nn.functional.linear(features.mean(dim=(2, 3)), network[9].weight[:, :3], network[9].bias)
        torch.testing.assert_close(student(example()), logits)


def normed(features: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    width = features.shape[1]
    mean, variance = norm.running_mean[:width], norm.running_var[:width]
    return nn.functional.batch_norm(features, mean, variance, norm.weight[:width], norm.bias[:width])


def test_a_layer_behind_a_flattened_map_keeps_the_elements_of_the_first_channels():
    network = flattened().eval()
    student = shrink(network, Architecture(widths={"0": 3, "4": 2}), example())
    assert torch.equal(student[4].weight, network[4].weight[:2, :48])


@pytest.mark.parametrize("case", CASES)
def test_every_weight_that_is_not_a_new_projections_is_what_is_kept_of_the_models(case):
    network = telling(CASES[case]())
    full = network.state_dict()
    space = inspect(network, example())
    architecture = space.random_architecture(2)
    student, kept = (verb(network, architecture, example(), reading=space.reading) for verb in (shrink, kept_entries))
    for name, value in student.state_dict().items():
        if name in full:
            entries = np.ix_(*kept[name]) if name in kept else ...
            assert np.array_equal(value.numpy(), full[name].numpy()[entries])
        else:
            assert ".shortcut." in name


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"grouped", "flattened_grouped", "stage_with_fixed_block"}))
def test_the_first_channels_are_kept(case):
    network = CASES[case]()
    space = inspect(network, example())
    for axes in kept_entries(network, space.random_architecture(2), example(), reading=space.reading).values():
        assert all(np.array_equal(entries, np.arange(len(entries))) for entries in axes)


def test_of_every_group_of_a_convolution_the_first_channels_are_kept():
    kept = kept_entries(grouped(), Architecture(widths={"body.0.conv": 3, "body.1": 2}), example())
    assert [entries.tolist() for entries in kept["body.0.conv.weight"][:2]] == [[0, 1, 2, 4, 5, 6], [0, 1, 2]]
    assert [entries.tolist() for entries in kept["body.1.weight"][:2]] == [[0, 1, 4, 5], [0, 1, 2]]
    assert kept["body.2.conv.weight"][1].tolist() == [0, 1, 4, 5]


def test_projections_appear_exactly_where_the_two_sides_of_a_sum_differ():
    network = resnet(20)
    reading = read(network, IMAGES)
    for seed in range(8):
        assert_projections_are_where_sides_differ(network, reading, random.Random(seed))


def assert_projections_are_where_sides_differ(network: nn.Module, reading: Reading, draw: random.Random):
    widths = {"stem.conv": draw.choice([8, 16])}
    for stage, width in enumerate((16, 32, 64)):
        for block in range(3):
            widths[f"stages.{stage}.{block}.layer2.conv"] = draw.choice([width // 2, width])
    depths = {f"stages.{stage}": draw.randint(1, 3) for stage in range(3)}
    student = shrink(network, Architecture(widths=widths, depths=depths), IMAGES, reading=reading)
    inputs = widths["stem.conv"]
    for stage, blocks in enumerate(student.stages):
        assert len(blocks) == depths[f"stages.{stage}"]
        for position, block in enumerate(blocks):
            outputs = widths[f"stages.{stage}.{position}.layer2.conv"]
            shortcut = [type(layer) for layer in block.sum.shortcut.children()]
            if stage > 0 and position == 0:
                assert shortcut == [nn.AvgPool2d, nn.Conv2d]
            else:
                assert shortcut == ([nn.Conv2d, nn.BatchNorm2d] if inputs != outputs else [])
            inputs = outputs


def test_a_projection_has_a_norm_only_where_its_sum_asks_for_one():
    student = shrink(residual(), Architecture(widths={"body.0.conv": 2, "body.3.main.conv": 3}), example())
    sums = [module for module in student.modules() if isinstance(module, ResidualSum)]
    kinds = [[type(layer) for layer in each.shortcut.children()] for each in sums]
    assert kinds == [[nn.Conv2d, nn.BatchNorm2d], [nn.Conv2d], [nn.Conv2d]]


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 4), (4, 2), (3, 1)])
def test_a_new_projection_starts_as_the_identity_on_the_channels_that_both_sides_have(inputs, outputs):
    widths = {"body.0.conv": inputs, "body.1.main.conv": outputs}
    student = shrink(residual().eval(), Architecture(widths=widths), example())
    features = torch.randn(2, inputs, 4, 4)
    projected = student.body[1].sum.shortcut[0](features)
    both = min(inputs, outputs)
    assert torch.equal(projected[:, :both], features[:, :both])
    assert not projected[:, both:].any()
    assert not any(layer.training for layer in student.body[1].sum.shortcut.modules())


def test_a_cut_stage_keeps_its_first_blocks_under_their_names():
    network = telling(staged())
    student = shrink(network, Architecture(depths={"body.1": 2, "body.2": 1}), example())
    dropped = ("body.1.2.", "body.2.1.")
    assert list(student.state_dict()) == [name for name in network.state_dict() if not name.startswith(dropped)]
    with torch.no_grad():
        features = network.body[1][1](network.body[1][0](network.body[0](example())))
        logits = network.classifier(network.pool(network.body[2][0](features)).flatten(1))
        assert torch.equal(student(example()), logits)


def test_a_layer_behind_a_cut_stage_reads_the_last_kept_block():
    widths = {"body.1.0.main.conv": 3, "body.1.2.main.conv": 2}
    student = shrink(staged(), Architecture(widths=widths, depths={"body.1": 1}), example())
    assert student.body[2][0].main.conv.in_channels == 3
    student = shrink(staged(), Architecture(widths=widths), example())
    assert student.body[2][0].main.conv.in_channels == 2


def test_a_module_with_two_names_is_cut_once_whatever_is_kept_of_it():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first, self.tail = ConvNorm(3, 8), nn.Conv2d(8, 8, 3, padding=1, groups=2), Tail(8)
            self.second = self.first

        def forward(self, images: Tensor) -> Tensor:
            return self.tail(self.second(self.first(self.stem(images))))

    network = telling(Twice())
    architecture = Architecture(widths={"stem.conv": 3})
    student, kept = shrink(network, architecture, example()), kept_entries(network, architecture, example())
    assert student.first is student.second
    assert kept["stem.conv.weight"][0].tolist() == [0, 1, 2, 4, 5, 6]
    assert torch.equal(student.first.weight, network.first.weight[[0, 1, 2, 4, 5, 6], :3])
    assert torch.equal(student.first.bias, network.first.bias[[0, 1, 2, 4, 5, 6]])


def test_new_channels_of_a_width_above_the_full_one_leave_the_old_ones_alone():
    network = plain().eval()
    student = shrink(network, Architecture(widths={"0": 7}), example())
    assert torch.equal(student[0].weight[:4], network[0].weight)
    assert torch.equal(student[3].weight[:, :4], network[3].weight)
    assert student[0].weight[4:].any()
    assert student(example()).shape == (2, 5)


@pytest.mark.parametrize("case", ["plain", "residual", "depthwise", "staged", "shared", "grouped"])
def test_a_student_from_scratch_has_new_weights_that_depend_on_the_seed_alone(case):
    network = telling(CASES[case]())
    space = inspect(network, example())
    architecture = space.random_architecture(1)
    inherited = shrink(network, architecture, example(), reading=space.reading)

    def drawn(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return shrink(network, architecture, example(), weights="scratch", reading=space.reading).state_dict()

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert {name: value.shape for name, value in first.items()} == {
        name: value.shape for name, value in inherited.state_dict().items()
    }
    assert all(torch.equal(first[name], again[name]) for name in first)
    own = [name for name, _ in network.named_parameters() if name in first]
    assert not [name for name in own if torch.equal(first[name], inherited.get_parameter(name))]
    weights = [name for name, value in first.items() if value.dim() > 1]
    assert not any(torch.equal(first[name], other[name]) for name in weights)


def test_a_student_from_scratch_has_new_weights_behind_parametrizations_and_in_attention():
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attention = weight_norm(nn.Linear(3, 8)), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            embedded = self.embed(tokens)
            return self.attention(embedded, embedded, embedded, need_weights=False)[0]

    network = Attends()
    student = shrink(network, Architecture(), torch.randn(1, 5, 3), weights="scratch")
    before = network.state_dict()
    kept = [name for name, value in student.state_dict().items() if value.any() and torch.equal(value, before[name])]
    assert kept == []


def test_a_student_from_scratch_forgets_running_statistics():
    student = shrink(telling(residual()), Architecture(), example(), weights="scratch")
    for norm in (module for module in student.modules() if isinstance(module, nn.BatchNorm2d)):
        assert not norm.running_mean.any()
        assert torch.equal(norm.running_var, torch.ones_like(norm.running_var))


class OwnParameter(nn.Module):
    """Has a parameter of its own, and a module of torch's that draws its weights by a method of another name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 4)
        self.token = nn.Parameter(torch.full((4,), 7.0))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.tail = nn.Sequential(ConvNorm(4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        tokens = features.flatten(2).transpose(1, 2) + self.token
        attended = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.tail(attended.transpose(1, 2).unflatten(2, (8, 8)))


@pytest.mark.xfail(reason="a parameter whose module has no reset_parameters keeps its values", strict=True)
def test_a_student_from_scratch_inherits_no_parameter_at_all():
    torch.manual_seed(0)
    network = OwnParameter()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    student = shrink(network, Architecture(), example(), weights="scratch")
    inherited = [name for name, value in student.named_parameters() if torch.equal(value, network.get_parameter(name))]
    assert not inherited


@pytest.mark.parametrize("weights", ["inherit", "scratch"])
@pytest.mark.parametrize("case", CASES)
def test_the_callers_model_is_untouched_and_shares_no_memory_with_the_student(case, weights):
    network = telling(CASES[case]()).train()
    network(example()).sum().backward()
    before = copy.deepcopy(network.state_dict())
    gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    modules = described(network)
    student = shrink(network, space_of(CASES[case]).random_architecture(0), example(), weights=weights)
    with torch.no_grad():
        for value in student.state_dict().values():
            value.add_(1)
    assert described(network) == modules
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in network.named_parameters())


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("make", [staged, coupled_stage, residual])
def test_the_student_is_in_the_models_mode(make, is_training):
    network = make().train(is_training)
    student = shrink(network, space_of(make).random_architecture(0), example())
    assert {name: module.training for name, module in student.named_modules()} == dict.fromkeys(
        [name for name, _ in student.named_modules()], is_training
    )


def test_the_student_has_the_models_precision_and_frozen_parameters():
    network = staged().double()
    network.body[0].requires_grad_(False)
    student = shrink(network, space_of(staged).smallest_architecture(), example().double())
    assert {value.dtype for value in student.state_dict().values()} == {torch.float64, torch.int64}
    assert [name for name, value in student.named_parameters() if not value.requires_grad] == [
        f"body.0.{name}" for name, _ in network.body[0].named_parameters()
    ]


def test_the_student_keeps_the_settings_of_its_layers():
    network = nn.Sequential(
        nn.Conv2d(3, 4, (3, 1), stride=(2, 1), padding=(2, 0), dilation=2),
        nn.BatchNorm2d(4, eps=0.1, momentum=0.3, track_running_stats=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5, bias=False),
    )
    student = shrink(network, Architecture(widths={"0": 2}), example())
    convolution = student[0]
    assert (convolution.kernel_size, convolution.stride) == ((3, 1), (2, 1))
    assert (convolution.padding, convolution.dilation) == ((2, 0), (2, 2))
    assert (student[1].eps, student[1].momentum, student[4].bias) == (0.1, 0.3, None)


def test_a_stage_that_loses_blocks_keeps_its_hooks_and_the_modes_of_its_modules():
    blocks = nn.Sequential(*(FreeBlock(4, 4) for _ in range(3)))
    network = nn.Sequential(ConvNorm(3, 4), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).train()
    blocks[0].eval()
    called = []
    blocks.register_forward_hook(lambda *_: called.append(1))
    (stage,) = inspect(network, example()).stages
    student = shrink(network, Architecture(depths={stage.name: 1}), example())
    called.clear()
    student(example())
    assert called == [1]
    assert [name for name, _ in student[1].named_children()] == ["0"]
    assert [module.training for module in student.modules()] == [
        network.get_submodule(name).training for name, _ in student.named_modules()
    ]


@pytest.mark.parametrize(
    ("make", "widths", "path"), [(shared, {"body.3.conv": 2}, "body.1.conv"), (grouped, {"body.2.conv": 2}, "body.1")]
)
def test_layers_that_keep_their_widths_are_left_as_they_are(make, widths, path):
    network = make()
    student = shrink(network, Architecture(widths=widths), example())
    assert torch.equal(student.get_submodule(path).weight, network.get_submodule(path).weight)


def test_a_students_student_is_the_student_of_the_smaller_architecture():
    network = telling(plain())
    once = shrink(network, Architecture(widths={"0": 2, "3": 3}), example())
    twice = shrink(shrink(network, Architecture(widths={"0": 3}), example()), Architecture({"0": 2, "3": 3}), example())
    assert all(torch.equal(value, twice.state_dict()[name]) for name, value in once.state_dict().items())


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (Architecture(widths={"body.9.conv": 2}), r"names the group 'body\.9\.conv'.*its groups are body\.0\.conv"),
        (Architecture(depths={"body.0": 1}), r"names the stage 'body\.0'.*its stages are body\.1, body\.2"),
        (Architecture(depths={"body.1": 4}), r"keeps 4 blocks of stage 'body\.1', which has 3"),
    ],
)
def test_an_architecture_of_another_network_is_refused(architecture, message):
    with pytest.raises(SpaceError, match=message):
        shrink(staged(), architecture, example())


def test_unknown_weights_are_refused():
    with pytest.raises(OptionError, match="weights='teacher'; expected 'inherit' or 'scratch'"):
        shrink(plain(), Architecture(), example(), weights="teacher")
