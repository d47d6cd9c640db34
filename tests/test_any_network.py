"""What holds for every network: costs, outputs, names and training of the networks that are made of it."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import oracles
from any_networks import (
    ANY,
    AuxiliaryHead,
    FusedAttention,
    PositionedAttention,
    VisionTransformer,
    any_network,
    any_space,
)
from hard_networks import HARD
from small_networks import CASES, CLASSES, ODD_CASES, ConvNorm, example
from transprune.architecture import Architecture
from transprune.errors import ModelError, OptionError
from transprune.reading.inspection import inspect
from transprune.reading.macs import count_macs
from transprune.reading.reading import read
from transprune.shrinking import adapters
from transprune.shrinking import shrink as shrink_module
from transprune.shrinking.adapters import register_adapter
from transprune.shrinking.shrink import kept_entries, shrink
from transprune.shrinking.traced_network import TracedNetwork
from transprune.space import SearchSpace
from transprune.tas.sampling import ArchitectureParameters, Selection
from transprune.tas.supernet import Supernet

SMALL = CASES | ODD_CASES | HARD
ALL = [*ANY, *SMALL]
any_of_the_zoo = pytest.mark.parametrize("name", ANY)


@cache
def network_of(name: str) -> nn.Module:
    """A network of either zoo, in evaluation mode, whose norms all differ. Not to be changed."""
    if name in ANY:
        return any_network(name)
    torch.manual_seed(0)
    network = SMALL[name]().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight.data, module.bias.data, module.running_mean):
                value.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return network


def inputs_of(name: str, batch: int = 2) -> tuple[Tensor, ...]:
    return ANY[name].inputs(batch) if name in ANY else (example(batch),)


@cache
def space_of(name: str) -> SearchSpace:
    return any_space(name) if name in ANY else inspect(network_of(name), example(), ratios=(0.5, 1.0))


@cache
def student_of(name: str, kind: str) -> tuple[Architecture, nn.Module]:
    """A student of a network: the `full`, the `smallest` or a `random` one. Not to be changed."""
    space = space_of(name)
    architecture = {
        "full": space.full_architecture,
        "smallest": space.smallest_architecture,
        "random": lambda: space.random_architecture(3),
    }[kind]()
    return architecture, shrink(network_of(name), architecture, inputs_of(name), reading=space.reading)


def tensors(outputs: object) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


@torch.no_grad()
def outputs_of(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return tensors(network(*inputs))


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-4) -> None:
    for one, other in zip(found, expected, strict=True):
        scale = 1 + float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * scale)


KINDS = pytest.mark.parametrize("kind", ["full", pytest.param("smallest", marks=pytest.mark.long), "random"])


@KINDS
@any_of_the_zoo
def test_predicted_macs_and_parameters_are_those_counted_on_the_shrunk_network_as_integers(name, kind):
    architecture, student = student_of(name, kind)
    space = space_of(name)
    assert count_macs(student, inputs_of(name)) == space.macs(architecture)
    assert oracles.count_parameters(student) == space.params(architecture)
    assert not [fixed for fixed in space.fixed if "not counted" in fixed.reason]


@any_of_the_zoo
def test_the_full_architecture_is_the_network_itself(name):
    network, (_, student) = network_of(name), student_of(name, "full")
    for batch in (2, 3):
        found, expected = (outputs_of(each, inputs_of(name, batch)) for each in (student, network))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert [(path, type(module)) for path, module in student.named_modules(remove_duplicate=False)] == [
        (path, type(module)) for path, module in network.named_modules(remove_duplicate=False)
    ]
    assert list(student.state_dict()) == list(network.state_dict())


@any_of_the_zoo
def test_a_student_is_of_the_networks_own_class_wherever_its_forward_can_follow(name):
    classes = {type(student_of(name, kind)[1]) for kind in ("full", "smallest", "random")}
    assert classes == ({type(network_of(name)), TracedNetwork} if ANY[name].is_traced else {type(network_of(name))})


def exact_architecture(name: str) -> Architecture:
    """Cuts every group but those of which leaving out differs from zeroing."""
    space = space_of(name)
    exact = {group.name for group in space.reading.groups if not group.is_inexact}
    smallest = space.smallest_architecture().widths
    return Architecture(widths={group: width for group, width in smallest.items() if group in exact})


def zeroed(network: nn.Module, kept: dict[str, tuple[np.ndarray, ...]]) -> nn.Module:
    """A copy of a network in which all that is not kept is zero."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        for path, value in network.state_dict().items():
            if path in kept and value.dim():
                mask = torch.zeros_like(value)
                mask[np.ix_(*kept[path])] = 1
                value.mul_(mask)
    return network


INEXACT = {
    *("channels_last", "one_group_normed", "weight_standardised", "channel_attention", "ChannelsAmongThemselves"),
    *("vision_transformer", "torchs_attention", "positioned_attention", "named_attention"),
}
"""Networks with groups over whose channels statistics are taken."""
# Not among them, and not exact: what goes around a narrower block of `blocks_at_the_top` is gone behind it.


@pytest.mark.parametrize("name", [name for name in ALL if name != "blocks_at_the_top"])
def test_leaving_channels_out_is_zeroing_them(name):
    network, inputs, reading = network_of(name), inputs_of(name), space_of(name).reading
    architecture = exact_architecture(name)
    kept = kept_entries(network, architecture, inputs, reading=reading)
    assert (len(architecture.widths) < len(space_of(name).groups)) == (name in INEXACT)
    masked = zeroed(network, kept)
    expected = outputs_of(masked, inputs)
    assert_close(outputs_of(shrink(network, architecture, inputs, reading=reading), inputs), expected)
    if architecture.widths:
        before = outputs_of(network, inputs)
        assert not all(torch.allclose(one, other) for one, other in zip(before, expected, strict=True))
    assert kept.keys() <= network.state_dict().keys()


@any_of_the_zoo
def test_a_shrunk_network_trains_on_other_batches_than_the_examples(name):
    _, student = student_of(name, "random")
    student = copy.deepcopy(student).train()
    for batch in (3, 5):
        student.zero_grad()
        outputs = tensors(student(*inputs_of(name, batch)))
        assert all(output.shape[0] == batch for output in outputs)
        sum(output.square().sum() for output in outputs).backward()
        gradients = {path: value.grad for path, value in student.named_parameters()}
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert all(output.shape[0] == 1 for output in outputs_of(student.eval(), inputs_of(name, 1)))


@pytest.mark.parametrize("name", [name for name in ANY if name != "AuxiliaryHead"])
def test_the_traced_operators_compute_what_the_networks_own_class_does(name, monkeypatch):
    architecture, own = student_of(name, "random")
    monkeypatch.setattr(shrink_module, "_disagreement", lambda *_: "the test asks for it")
    traced = shrink(network_of(name), architecture, inputs_of(name), reading=space_of(name).reading)
    assert isinstance(traced, TracedNetwork)
    assert traced.reason == "the test asks for it"
    assert list(traced.state_dict()) == list(own.state_dict())
    for batch in (1, 3):
        assert_close(outputs_of(traced, inputs_of(name, batch)), outputs_of(own, inputs_of(name, batch)), 1e-5)
    own, traced = copy.deepcopy(own).train(), copy.deepcopy(traced).train()
    for _ in range(2):
        assert_close(outputs_of(traced, inputs_of(name, 3)), outputs_of(own, inputs_of(name, 3)), 1e-5)
    for path, value in own.state_dict().items():
        torch.testing.assert_close(traced.state_dict()[path], value)


@KINDS
@any_of_the_zoo
def test_the_names_of_a_student_are_some_of_the_networks_with_their_types(name, kind):
    network, (_, student) = network_of(name), student_of(name, kind)
    full, state = network.state_dict(), student.state_dict()
    assert state.keys() <= full.keys()
    assert all(value.dtype == full[path].dtype for path, value in state.items())
    dropped = full.keys() - state.keys()
    shallow = [block for stage in space_of(name).stages for block in stage.blocks]
    assert all(path.startswith(tuple(f"{block}." for block in shallow)) for path in dropped)


@pytest.mark.parametrize("verb", ["inspect", "shrink", "Supernet"])
@any_of_the_zoo
def test_the_callers_network_is_untouched(name, verb):
    network = copy.deepcopy(network_of(name)).train()
    before = {path: value.clone() for path, value in network.state_dict().items()}
    modules = [(path, type(module), module.training) for path, module in network.named_modules()]
    attributes = {path: set(vars(module)) for path, module in network.named_modules()}
    space, inputs = space_of(name), inputs_of(name)
    if verb == "inspect":
        read(network, inputs)
    elif verb == "shrink":
        student = shrink(network, space.smallest_architecture(), inputs, reading=space.reading)
        with torch.no_grad():
            for value in student.state_dict().values():
                value.add_(1)
    else:
        supernet = Supernet(network, space, inputs)
        tensors(supernet(Selection.of(space, space.random_architecture(0)), *inputs))[0].sum().backward()
    assert [(path, type(module), module.training) for path, module in network.named_modules()] == modules
    assert {path: set(vars(module)) for path, module in network.named_modules()} == attributes
    assert all(torch.equal(value, before[path]) for path, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


WITHOUT_AUXILIARY = [name for name in ANY if name != "AuxiliaryHead"]


@KINDS
@pytest.mark.parametrize("name", WITHOUT_AUXILIARY)
def test_one_architecture_of_a_supernet_computes_what_its_student_does_in_training(name, kind):
    architecture, student = student_of(name, kind)
    space, inputs = space_of(name), inputs_of(name, 4)
    supernet = Supernet(network_of(name), space, inputs_of(name), alignment="pad").train()
    found = tensors(supernet(Selection.of(space, architecture), *inputs))
    assert_close(found, outputs_of(copy.deepcopy(student).train(), inputs))


@pytest.mark.parametrize("alignment", ["interpolate", "pad"])
@any_of_the_zoo
def test_any_draw_of_a_supernet_runs_and_its_gradient_reaches_every_architecture_parameter(name, alignment):
    torch.manual_seed(0)
    space = space_of(name)
    parameters = ArchitectureParameters(space)
    supernet = Supernet(network_of(name), space, inputs_of(name), alignment=alignment).train()
    for _ in range(4):
        outputs = tensors(supernet(parameters.sample(1.0), *inputs_of(name, 3)))
        sum(output.square().mean() for output in outputs).backward()
    for logits in (parameters.widths, parameters.depths):
        if logits.numel():
            assert logits.grad.isfinite().all()
            assert (logits.grad != 0).any(1).all()


class GatedByAnAttribute(nn.Module):
    """Keeps in an attribute how many channels gate, less one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.last, self.conv = width - 1, nn.Conv2d(width, 2 * width, 1)

    def forward(self, features: Tensor) -> Tensor:
        features = self.conv(features)
        return features[:, : self.last + 1] * features[:, self.last + 1 :].sigmoid()


class GatedMore(GatedByAnAttribute):
    """A subclass, which follows its class."""


@pytest.mark.parametrize("kind", [GatedByAnAttribute, f"{__name__}.GatedByAnAttribute"])
@pytest.mark.parametrize("module", [GatedByAnAttribute, GatedMore])
def test_an_adapter_makes_a_module_that_writes_down_its_channels_follow_the_cut(kind, module, monkeypatch):
    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))
    torch.manual_seed(0)
    network = nn.Sequential(
        ConvNorm(3, 8), module(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    ).eval()
    smallest = inspect(network, example()).smallest_architecture()
    traced = shrink(network, smallest, example())
    assert isinstance(traced, TracedNetwork)
    seen = []

    def follow(cut, original) -> None:
        seen.append((cut.last, original.last))
        cut.last = cut.conv.out_channels // 2 - 1

    register_adapter(kind, follow)
    own = shrink(network, smallest, example())
    assert type(own) is nn.Sequential
    assert (type(own[1]), own[1].last, network[1].last) == (module, 1, 7)
    assert seen == [(7, 7)]
    assert_close(outputs_of(own, (example(3),)), outputs_of(traced, (example(3),)))


def test_an_auxiliary_head_that_runs_in_training_alone_is_cut_with_the_channels_that_it_reads():
    network, space = network_of("AuxiliaryHead"), space_of("AuxiliaryHead")
    student = shrink(network, space.smallest_architecture(), example())
    assert type(student) is AuxiliaryHead
    assert student.auxiliary.in_features == student.stem.conv.out_channels == 4
    assert torch.equal(student.auxiliary.weight, network.auxiliary.weight[:, :4])
    logits, others = student.train()(example(3))
    assert logits.shape == others.shape == (3, CLASSES)


def test_the_heads_of_an_attention_are_searched_rather_than_their_features():
    space = space_of("vision_transformer")
    heads = next(group for group in space.groups if group.name == "blocks.0.attention.qkv")
    assert (heads.width, heads.unit) == (4, 6)
    assert heads.layers == ("blocks.0.attention.qkv",)
    _, student = student_of("vision_transformer", "smallest")
    kept = kept_entries(network_of("vision_transformer"), Architecture({heads.name: 2}), example())
    assert kept[f"{heads.name}.weight"][0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]
    assert isinstance(student.blocks[0].attention, FusedAttention)


def test_even_few_heads_are_searched_rather_than_many_features():
    torch.manual_seed(0)
    network = VisionTransformer(lambda: PositionedAttention(16, 2, tokens=5), width=16, blocks=1)
    space = inspect(network, example())
    heads = next(group for group in space.groups if "attention" in group.name)
    assert (heads.width, heads.unit) == (2, 8)


def test_products_of_matrices_are_layers_of_their_own():
    space = space_of("positioned_attention")
    products = [layer for layer in space.layers if layer.operator == "matmul"]
    assert len(products) == 4
    tokens, heads, features = 5, 4, 2
    assert [layer.macs(layer.inputs.total, layer.outputs.total) for layer in products] == [
        tokens * tokens * heads * features
    ] * 4


def test_a_table_that_has_an_entry_for_every_head_is_cut_with_the_heads():
    architecture = Architecture(widths={"blocks.0.attention.query": 3})
    kept = kept_entries(network_of("positioned_attention"), architecture, example())
    assert [len(entries) for entries in kept["blocks.0.attention.table"]] == [9, 3]
    assert [len(entries) for entries in kept["blocks.0.attention.proj.weight"]] == [8, 6]
    assert [len(entries) for entries in kept["blocks.1.attention.table"]] == [9, 4]


def test_a_buffer_with_a_kernel_for_every_channel_is_cut_with_the_channels():
    _, student = student_of("blurred", "smallest")
    assert student.parts[1].kernel.shape == (4, 1, 3, 3)


def test_a_table_of_words_is_cut_in_its_features_and_stays_tied():
    _, student = student_of("TextNetwork", "smallest")
    assert student.words.weight is student.head.weight
    assert student.words.weight.shape == (11, 4)
    assert (student.words.num_embeddings, student.words.embedding_dim) == (11, 4)


@pytest.mark.parametrize("divisor", [2, 4, 8])
@any_of_the_zoo
def test_candidates_in_channels_are_multiples_of_the_divisor(name, divisor):
    try:
        space = inspect(network_of(name), inputs_of(name), divisor=divisor, reading=space_of(name).reading)
    except ModelError:
        return
    for group in space.groups:
        assert all(width * group.unit % divisor == 0 for width in group.candidates[:-1])
        assert group.candidates[-1] == group.width


class Recurrent(nn.Module):
    """Has an operator that costs something and has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inside = ConvNorm(3, 8), nn.GRU(8, 4, batch_first=True)
        self.before, self.head = nn.Conv2d(8, 8, 1), nn.Linear(4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.before(self.stem(images)).flatten(2).transpose(1, 2)
        return self.head(self.inside(tokens)[0].mean(1))


def test_recurrent_layers_are_counted_and_their_widths_searched():
    space = inspect(Recurrent(), example())
    assert [group.name for group in space.groups] == ["stem.conv", "before", "inside"]
    assert space.macs(Architecture()) == count_macs(Recurrent(), example())
    assert space.params(Architecture()) == oracles.count_parameters(Recurrent())


@pytest.mark.parametrize(
    ("cell", "gates"),
    [(nn.GRUCell(4, 4), 3), (nn.LSTMCell(4, 4), 4), (nn.RNNCell(4, 4), 1), (nn.RNNCell(4, 4, nonlinearity="relu"), 1)],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_cells_of_recurrent_networks_are_counted_gate_by_gate_and_searched(cell, gates):
    class Stepping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.hidden, self.head = cell, nn.Linear(4, 8), nn.Linear(8, CLASSES)

        def forward(self, features: Tensor) -> Tensor:
            state = self.cell(features)
            return self.head(self.hidden(state[0] if isinstance(state, tuple) else state).relu())

    space = inspect(Stepping(), torch.zeros(2, 4))
    assert [group.name for group in space.groups] == ["cell", "hidden"]
    products = gates * (4 * 4 + 4 * 4) + 4 * 8 + 8 * CLASSES
    assert space.macs(Architecture()) == products + gates * (4 + 4) + 8 + CLASSES


class Unfriendly(nn.Module):
    """Its forward cannot be traced."""

    def __init__(self, habit: str) -> None:
        super().__init__()
        self.habit = habit
        self.stem, self.head = ConvNorm(3, 8), nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        if self.habit == "values":
            features = features[features > 0].view(1, -1)[:, :8]
        elif self.habit == "numpy":
            features = torch.from_numpy(features.detach().numpy())
        elif self.habit == "loop":
            while features.abs().max() > 1:
                features = features / 2
        return self.head(features.mean((2, 3)) if features.dim() == 4 else features)


@pytest.mark.parametrize("habit", ["values", "numpy", "loop"])
def test_a_forward_that_cannot_be_traced_is_refused_in_a_few_lines(habit):
    with pytest.raises(ModelError, match=r"cannot read the model Unfriendly: ") as caught:
        inspect(Unfriendly(habit), example())
    assert len(str(caught.value).splitlines()) <= 3
    with pytest.raises(ModelError, match="cannot read the model Unfriendly"):
        shrink(Unfriendly(habit), Architecture(), example())


@pytest.mark.parametrize("name", ["dense", "vision_transformer", "TwoInputs"])
def test_an_example_of_another_shape_is_refused_with_its_shape(name):
    wrong = tuple(tensor[:, :1] for tensor in inputs_of(name))
    with pytest.raises(ModelError, match=r"its forward fails at \S+\.py:\d+ on an example of shape \[2, 1"):
        inspect(network_of(name), wrong)


def test_another_number_of_inputs_is_refused():
    with pytest.raises(ModelError, match="cannot read the model TwoInputs: its forward fails"):
        inspect(network_of("TwoInputs"), example())


@any_of_the_zoo
def test_a_pattern_that_matches_nothing_is_refused(name):
    for option in ("keep", "only"):
        with pytest.raises(OptionError, match=f"{option} 'nowhere'"):
            inspect(network_of(name), inputs_of(name), **{option: ["nowhere"]})
