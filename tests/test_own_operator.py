"""An operator that transprune is taught behaves as the same network written with operators that it knows."""

import copy

import pytest
import torch
from torch import library, nn
from torch.nn import functional as F

import transprune
from oracles import count_parameters
from transprune.errors import ModelError, OptionError
from transprune.reading.rules import RULES, register_rule

FEATURES = torch.randn(4, 6, 12, generator=torch.Generator().manual_seed(0))
WIDTHS = {"0": 16, "1": 9}


@library.custom_op("oddlab::square_linear", mutates_args=())
def square_linear(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(features.relu().square(), weight, bias)


@square_linear.register_fake
def _(features, weight, bias):
    return features.new_empty(*features.shape[:-1], weight.shape[0])


def keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.has_bias = inputs[2] is not None


def gradients(ctx, gradient):
    features, weight = ctx.saved_tensors
    flat = gradient.flatten(0, -2)
    inner = 2 * features.relu() * (gradient @ weight)
    return inner, flat.T @ features.relu().square().flatten(0, -2), flat.sum(0) if ctx.has_bias else None


square_linear.register_autograd(gradients, setup_context=keep)


@library.custom_op("oddlab::linear", mutates_args=())
def other_linear(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Has the name of an operator of torch, and does something else."""
    return (features @ weight.T).flip(-1)


@other_linear.register_fake
def _(features, weight):
    return features.new_empty(*features.shape[:-1], weight.shape[0])


def known(features, weight, bias):
    return F.linear(features.relu().square(), weight, bias)


class SquareLinear(nn.Module):
    """Calls the operator that is taught, or what it is written with."""

    def __init__(self, inputs, outputs, compute, *, has_bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs)) if has_bias else None
        self.is_own = compute is square_linear

    def forward(self, features):
        return (square_linear if self.is_own else known)(features, self.weight, self.bias)


def network(compute, *, has_bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 32), SquareLinear(32, 24, compute, has_bias=has_bias), nn.Linear(24, 5))


def square_linear_axes(call):
    *before, inputs = call.axes("features")
    outputs, read = call.axes("weight")
    call.unify(inputs, read)
    if call["bias"] is not None:
        call.unify(outputs, call.axes("bias")[0])
    call.add_layer("linear", inputs=read, outputs=outputs, positions=before)
    return [*before, outputs]


@pytest.fixture(autouse=True)
def _own_rules():
    """Each test begins without rules for these operators, and leaves none."""
    before = dict(RULES)
    for name in ("oddlab::square_linear", "oddlab::linear", "rot90"):
        RULES.pop(name, None)
    yield
    RULES.clear()
    RULES.update(before)


def outputs_and_gradients(supernet, selection):
    outputs = supernet(selection, FEATURES.double())
    outputs.square().sum().backward()
    return outputs, [parameter.grad for parameter in supernet.parameters()]


def test_without_a_rule_its_widths_are_fixed_and_the_operator_is_named():
    with pytest.raises(ModelError, match=r"'oddlab::square_linear' .*has no rule"):
        transprune.inspect(network(square_linear), FEATURES)


@pytest.mark.parametrize("has_bias", [True, False])
def test_with_a_rule_its_widths_and_costs_are_those_of_the_network_it_stands_for(has_bias):
    register_rule(square_linear, square_linear_axes)
    own, plain = (transprune.inspect(network(each, has_bias=has_bias), FEATURES) for each in (square_linear, known))
    assert [group.name for group in own.groups] == ["0", "1"]
    assert own.groups == plain.groups
    assert own.layers == plain.layers
    tokens, bias = FEATURES.shape[1], int(has_bias)
    by_hand = tokens * ((12 * 16 + 16) + (16 * 9 + bias * 9) + (9 * 5 + 5))
    assert own.macs(transprune.Architecture(widths=WIDTHS, depths={})) == by_hand


@pytest.mark.parametrize("weight_outputs", [None, 0])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("alignment", ["interpolate", "pad"])
def test_the_supernet_mixes_its_widths_as_those_of_the_network_it_stands_for(alignment, has_bias, weight_outputs):
    register_rule(square_linear, square_linear_axes, weight_outputs=weight_outputs)
    found = []
    for compute in (square_linear, known):
        model = network(compute, has_bias=has_bias).double()
        space = transprune.inspect(model, FEATURES.double())
        torch.manual_seed(1)
        selection = transprune.ArchitectureParameters(space).double().sample(1.0)
        supernet = transprune.Supernet(model, space, FEATURES.double(), alignment=alignment)
        found.append(outputs_and_gradients(supernet, selection))
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found[0][0], found[1][0])


def test_the_smaller_network_has_the_operator_and_computes_what_the_full_one_does_with_channels_at_zero():
    register_rule(square_linear, square_linear_axes)
    model = network(square_linear)
    architecture = transprune.Architecture(widths=WIDTHS, depths={})
    small = transprune.shrink(model, architecture, FEATURES)
    space = transprune.inspect(model, FEATURES)
    assert type(small[1]) is SquareLinear
    assert small[1].weight.shape == (9, 16)
    assert count_parameters(small) == space.params(architecture)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for layer, kept in zip(masked, (16, 9), strict=False):
            layer.weight[kept:], layer.bias[kept:] = 0, 0
    torch.testing.assert_close(small(FEATURES), masked(FEATURES))


def test_a_search_trains_it():
    register_rule(square_linear, square_linear_axes)
    images, labels = torch.randn(32, 6, 12), torch.randint(5, (32,))

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network(square_linear)

        def forward(self, images):
            return self.layers(images).mean(1)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=8)
    data = transprune.LoaderData(train=loader, test=loader, example=images[:2])
    options = transprune.SearchOptions(epochs=1, batch_size=8)
    found = transprune.search(Pooled(), data, "macs=0.5", options)
    assert found.actual <= found.target
    assert set(found.architecture.widths) == {"layers.0", "layers.1"}


def test_a_rule_for_an_operator_of_torch_is_by_its_name():
    class Turned(nn.Module):
        def forward(self, images):
            return torch.rot90(images, 1, (2, 3))

    def turned_axes(call):
        *before, rows, columns = call.axes("self")
        return [*before, columns, rows] if call["k"] % 2 else [*before, rows, columns]

    model, images = nn.Sequential(nn.Conv2d(3, 16, 3), Turned(), nn.Conv2d(16, 4, 3)), torch.randn(2, 3, 8, 7)
    with pytest.raises(ModelError, match="'rot90'"):
        transprune.inspect(model, images)
    register_rule("rot90", turned_axes)
    space = transprune.inspect(model, images)
    assert [group.name for group in space.groups] == ["0"]
    small = transprune.shrink(model, space.smallest_architecture(), images)
    assert transprune.count_macs(small, images) == space.macs(space.smallest_architecture())


def test_an_operator_of_another_namespace_has_no_rule_of_torchs():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(24, 32))

        def forward(self, features):
            return other_linear(features, self.weight)

    model = nn.Sequential(nn.Linear(12, 32), Other(), nn.Linear(24, 5))
    with pytest.raises(ModelError, match="'oddlab::linear'"):
        transprune.inspect(model, FEATURES)


def test_what_computes_it_may_be_given():
    calls = []

    def run(arguments):
        calls.append(sorted(arguments))
        return known(arguments["features"], arguments["weight"], arguments["bias"])

    register_rule(square_linear, square_linear_axes, run=run)
    model = network(square_linear)
    space = transprune.inspect(model, FEATURES)
    supernet = transprune.Supernet(model, space, FEATURES)
    supernet(transprune.ArchitectureParameters(space).sample(1.0), FEATURES)
    assert calls
    assert all(names == ["bias", "features", "weight"] for names in calls)


def test_a_second_rule_is_refused_unless_it_is_to_replace_the_first():
    for operator in ("oddlab::square_linear", "linear"):
        if operator not in RULES:
            register_rule(operator, square_linear_axes)
        first = RULES[operator]
        with pytest.raises(OptionError, match=f"'{operator}': it has one already.*replace=True"):
            register_rule(operator, square_linear_axes)
        assert RULES[operator] is first
        register_rule(operator, square_linear_axes, replace=True)
        assert RULES[operator] is not first


@pytest.mark.parametrize("operator", [torch.ops.oddlab.square_linear, torch.ops.oddlab.square_linear.default])
def test_an_operator_is_known_by_any_of_its_forms(operator):
    register_rule(operator, square_linear_axes)
    assert "oddlab::square_linear" in RULES


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("oddlab::square_linaer", square_linear_axes), {}, "torch does not know; did you mean oddlab::square_linear?"),
        ((F.relu, square_linear_axes), {}, "expected a function of torch's library.custom_op"),
        ((square_linear, None), {}, "axes is None; expected a function `def axes.call.`"),
        ((square_linear, lambda: []), {}, "axes is <lambda>()"),
        ((square_linear, lambda call, more: []), {}, r"axes is <lambda>\(call, more\)"),
        ((square_linear, square_linear_axes), {"run": known}, r"run is known\(features, weight, bias\)"),
    ],
)
def test_what_is_no_operator_and_no_rule_is_refused_with_a_way_out(arguments, options, message):
    with pytest.raises(OptionError, match=message):
        register_rule(*arguments, **options)
    assert "oddlab::square_linear" not in RULES


def test_a_rule_that_names_another_axis_than_the_outputs_is_refused():
    def turned(call):
        *positions, _ = call.axes("features")
        outputs, inputs = call.axes("weight")
        call.add_layer("linear", inputs=inputs, outputs=outputs, positions=positions, along=0)
        return [*positions, outputs]

    register_rule(square_linear, turned)
    with pytest.raises(ModelError, match=r"'turned' says add_layer\(..., along=0\).*expected along=2"):
        transprune.inspect(network(square_linear), FEATURES)


def test_a_rule_whose_axes_are_not_those_of_the_result_is_named():
    def forgets_the_positions(call):
        return [call.axes("weight")[0]]

    register_rule(square_linear, forgets_the_positions)
    with pytest.raises(
        ModelError, match=r"'oddlab::square_linear' .*'forgets_the_positions' gives axes of the sizes \[24\]"
    ):
        transprune.inspect(network(square_linear), FEATURES)
