"""The supernet equals the reference (`transprune.tas.reference`) and the networks that it stands for."""

import copy
import gc
import itertools
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hard_networks import HARD_FOR_A_SUPERNET, IteratedStage
from oracles import mix_prefixes
from small_networks import CASES, example, residual, space_of
from transprune.architecture import Architecture
from transprune.errors import DataError, OptionError, SpaceError
from transprune.models.resnet import ResNet, ResNetShape, resnet
from transprune.reading.axes import Concatenation, Product
from transprune.reading.inspection import inspect
from transprune.reading.layouts import Constant, Group, Sizes
from transprune.shrinking.shrink import shrink
from transprune.space import SearchSpace
from transprune.tas import reference
from transprune.tas import supernet as supernet_module
from transprune.tas.mixing import map_along, mix_along
from transprune.tas.sampling import ArchitectureParameters, Drawn, Selection
from transprune.tas.supernet import Supernet, padded_sum

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BOTTLENECKS = ResNetShape(
    block="bottleneck", stem=16, stages=tuple(((width, width, 4 * width),) * 2 for width in (16, 32, 64))
)
RESNETS = {
    "resnet14": lambda: resnet(14),
    "resnet20": lambda: resnet(20),
    "bottlenecks": lambda: ResNet(BOTTLENECKS),
}
BLOCKS = {"resnet14": (2, 2, 2), "resnet20": (3, 3, 3), "bottlenecks": (2, 2, 2)}
alignments = pytest.mark.parametrize("alignment", ["interpolate", "pad"])


def supernet_of(network: nn.Module, space: SearchSpace, alignment: str, seed: int = 0) -> Supernet:
    """A supernet at random weights, those of the candidates' norms all different."""
    supernet = Supernet(network, space, example(), alignment=alignment)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return supernet


class SlowBottlenecks(reference.SlowSupernet):
    """The reference with blocks of three convolutions, and a norm on the shortcut that changes the width alone."""

    def block(self, stage, block, inputs, choices):
        path, halves = f"stages.{stage}.{block}", stage > 0 and block == 0
        choice = choices[f"{path}.layer3.conv"]
        features = self.conv_norm(f"{path}.layer1", inputs, choices).relu()
        features = self.conv_norm(f"{path}.layer2", features, choices, stride=2 if halves else 1).relu()
        features, shortcut = self.conv_norm(f"{path}.layer3", features, choices), inputs
        if halves:
            full = self.convolution(f"{path}.sum.shortcut.1", F.avg_pool2d(inputs, 2))
            shortcut = self.mix([full[:, :size] for size in choice.sizes], choice.weights)
        elif f"{path}.sum.shortcut.0.weight" in self.weights:
            names = {"conv.weight": "0.weight", "norm.weight": "1.weight", "norm.bias": "1.bias"}
            own = {f"shortcut.{ours}": self.weights[f"{path}.sum.shortcut.{name}"] for ours, name in names.items()}
            shortcut = replace(self, weights=own).conv_norm("shortcut", inputs, {"shortcut.conv": choice})
        width = max(features.shape[1], shortcut.shape[1])
        return (reference.pad(features, width) + reference.pad(shortcut, width)).relu()


def slow_version(supernet: Supernet, name: str, selection: Selection, images: Tensor) -> Tensor:
    """What the reference computes with the same weights and the same candidates."""
    weights = dict(supernet.network.named_parameters())
    full = {name.removesuffix(".weight"): len(weight) for name, weight in weights.items() if "conv" in name}
    full |= {f"stages.{stage}": blocks for stage, blocks in enumerate(BLOCKS[name])}
    alone = {name: reference.Drawn([size], [0], torch.ones(1)) for name, size in full.items()}  # not searched
    rows = {
        name: weight[None] if weight.dim() == 1 and "classifier" not in name else weight
        for name, weight in weights.items()
    }
    kind = SlowBottlenecks if name == "bottlenecks" else reference.SlowSupernet
    return kind(rows, BLOCKS[name], supernet.alignment)({**alone, **selection.widths, **selection.depths}, images)


def random_parameters(space: SearchSpace, seed: int) -> ArchitectureParameters:
    torch.manual_seed(seed)
    parameters = ArchitectureParameters(space).double()
    with torch.no_grad():
        for parameter in parameters.parameters():
            parameter.normal_()
    return parameters


def gradients(outputs: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Of a fixed random combination of the outputs; zeros where a parameter takes no part."""
    direction = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1), dtype=outputs.dtype)
    found = torch.autograd.grad((outputs * direction).sum(), parameters, allow_unused=True, retain_graph=True)
    return [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, found, strict=True)
    ]


def assert_equal_to_the_reference(name: str, space: SearchSpace, alignment: str, selection: Selection, architecture):
    supernet = supernet_of(RESNETS[name]().double(), space, alignment)
    fast, slow = supernet(selection, IMAGES.double()), slow_version(supernet, name, selection, IMAGES.double())
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    trained = [*supernet.parameters(), *architecture]
    for ours, theirs in zip(gradients(fast, trained), gradients(slow, trained), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * (1 + theirs.abs().max().item()))


@alignments
@pytest.mark.parametrize(
    ("name", "width_samples", "depth_samples"),
    [
        *(("resnet20", widths, depths) for widths, depths in ((1, 1), (1, None), (2, 2), (3, 1), (3, None))),
        *(("bottlenecks", widths, depths) for widths, depths in ((1, 1), (2, 2), (3, None))),
    ],
)
def test_forward_and_gradients_equal_the_reference(name, alignment, width_samples, depth_samples):
    space = inspected(name)
    parameters = random_parameters(space, seed=3)
    selection = parameters.sample(0.7, width_samples=width_samples, depth_samples=depth_samples)
    assert_equal_to_the_reference(name, space, alignment, selection, list(parameters.parameters()))


SPACES: dict[tuple[str, str], SearchSpace] = {}


def inspected(name: str, dimensions: str = "both") -> SearchSpace:
    """The search space of one of the networks, read once."""
    if (name, dimensions) not in SPACES:
        SPACES[name, dimensions] = inspect(RESNETS[name](), IMAGES, dimensions=dimensions)
    return SPACES[name, dimensions]


@alignments
@pytest.mark.parametrize("seed", range(3))
def test_any_draw_equals_the_reference(alignment, seed):
    space = inspected("resnet14")
    parameters = random_parameters(space, seed)
    selection = parameters.sample(1.0)
    assert_equal_to_the_reference("resnet14", space, alignment, selection, list(parameters.parameters()))


def test_a_step_frees_its_memory_without_the_collector_of_cycles():
    space = inspected("resnet14")
    supernet, parameters = (
        Supernet(RESNETS["resnet14"](), space, IMAGES, alignment="pad"),
        ArchitectureParameters(space),
    )
    gc.disable()
    try:
        selection = parameters.sample(1.0)
        loss = supernet(selection, IMAGES).sum()
        loss.backward(inputs=list(parameters.parameters()))  # what it does not reach keeps its features until the end
        left = [weakref.ref(one) for one in (next(iter(selection.depths.values())).weights, loss)]
        del selection, loss
        assert [reference() for reference in left] == [None, None]
    finally:
        gc.enable()


@alignments
@pytest.mark.parametrize("dimensions", ["width", "depth"])
def test_a_search_of_widths_alone_or_of_depths_alone_equals_the_reference(alignment, dimensions):
    space = inspected("resnet14", dimensions)
    parameters = random_parameters(space, seed=5)
    selection = parameters.sample(1.0)
    searched = parameters.widths if dimensions == "width" else parameters.depths
    assert_equal_to_the_reference("resnet14", space, alignment, selection, [searched])


@alignments
def test_a_settled_search_runs_at_the_one_architecture_it_has_settled_on(alignment):
    space = inspected("resnet14")
    architecture = space.random_architecture(4)
    parameters = ArchitectureParameters(space).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for rows, choices, chosen in (
            (parameters.widths, space.groups, architecture.widths),
            (parameters.depths, space.stages, architecture.depths),
        ):
            for row, choice in zip(rows.fill_(-60), choices, strict=True):
                row[choice.candidates.index(chosen[choice.name])] = 0.0
    selection, alone = parameters.sample(1.0), Selection.of(space, architecture)
    for found, expected in ((selection.widths, alone.widths), (selection.depths, alone.depths)):
        assert {name: choice.sizes for name, choice in found.items()} == {n: c.sizes for n, c in expected.items()}
    supernet = supernet_of(resnet(14).double(), space, alignment)
    images = IMAGES.double()
    torch.testing.assert_close(supernet(selection, images), supernet(alone, images), rtol=1e-9, atol=1e-9)


def test_copies_of_a_supernet_compute_the_same_and_learn_apart():
    space = inspected("resnet14")
    supernet = supernet_of(resnet(14), space, "interpolate")
    selection = random_parameters(space, seed=0).float().sample(1.0)
    twin = copy.deepcopy(copy.deepcopy(supernet))
    twin(selection, IMAGES).sum().backward()
    assert all(parameter.grad is None for parameter in supernet.parameters())
    assert torch.equal(twin(selection, IMAGES), supernet(selection, IMAGES))


def test_the_reference_sees_what_the_supernet_is_told():
    space = inspected("resnet14")
    parameters = random_parameters(space, seed=0)
    one, other = parameters.sample(1.0), parameters.sample(1.0)
    supernet = supernet_of(resnet(14).double(), space, "pad")
    stretched = supernet_of(resnet(14).double(), space, "interpolate")
    slow = slow_version(supernet, "resnet14", one, IMAGES.double())
    assert not torch.allclose(supernet(other, IMAGES.double()), slow, rtol=1e-3)
    assert not torch.allclose(stretched(one, IMAGES.double()), slow, rtol=1e-3)


@alignments
def test_the_gradient_reaches_every_drawn_candidate_and_no_other(alignment):
    space = inspected("resnet14")
    parameters = random_parameters(space, seed=2)
    selection = parameters.sample(1.0)
    supernet = supernet_of(resnet(14).double(), space, alignment)
    norms = dict(supernet.network.named_parameters())
    gradient = gradients(supernet(selection, IMAGES.double()), [norms["stem.norm.weight"]])[0]
    choice = selection.widths["stem.conv"]
    width_by_candidate = dict(zip(choice.indices, choice.sizes, strict=True))
    for index, row in enumerate(gradient):
        width = width_by_candidate.get(index, 0)
        assert bool(row[:width].any()) == (width > 0)
        assert not row[width:].any()


@alignments
@pytest.mark.parametrize("name", RESNETS)
def test_the_full_architecture_computes_what_the_plain_network_does_in_training(name, alignment):
    torch.manual_seed(0)
    network, space = RESNETS[name]().train(), inspected(name)
    supernet = Supernet(network, space, IMAGES, alignment=alignment).double()
    full = Selection.of(space, space.full_architecture())
    torch.testing.assert_close(supernet(full, IMAGES.double()), network.double()(IMAGES.double()), rtol=1e-9, atol=1e-9)


@alignments
@pytest.mark.parametrize("case", CASES | HARD_FOR_A_SUPERNET)
def test_the_full_architecture_of_any_network_computes_what_it_does_in_training(case, alignment):
    torch.manual_seed(0)
    make = (CASES | HARD_FOR_A_SUPERNET)[case]
    network, space = make().train(), space_of(make)
    supernet = Supernet(network, space, IMAGES, alignment=alignment)
    full = Selection.of(space, space.full_architecture())
    torch.testing.assert_close(supernet(full, example()), network(example()), rtol=1e-6, atol=1e-6)


WITHOUT_PROJECTIONS = sorted(
    name for name, make in CASES.items() if not any(layer.operator == "projection" for layer in space_of(make).layers)
)


@pytest.mark.parametrize("case", WITHOUT_PROJECTIONS)
@pytest.mark.parametrize("seed", range(2))
def test_one_architecture_computes_what_the_network_shrunk_from_it_does_in_training(case, seed):
    network, space = CASES[case](), space_of(CASES[case])
    architecture = space.random_architecture(seed)
    supernet = supernet_of(network, space, "pad", seed)
    assert_computes_what_its_student_does(network, supernet, architecture, example(4))


@pytest.mark.parametrize("depths", [(1, 1, 1), (2, 1, 3), (3, 3, 3)])
def test_one_architecture_of_a_resnet_computes_what_the_network_shrunk_from_it_does_in_training(depths):
    network, space = resnet(20), inspected("resnet20")
    random = space.random_architecture(sum(depths)).widths
    # Both sides of every sum get one width, so that no projection is needed.
    last = {0: random["stem.conv"], 1: 19, 2: 44}
    widths = {name: last[int(name[7])] if name.endswith("layer2.conv") else width for name, width in random.items()}
    architecture = Architecture(widths=widths, depths=dict(zip(space.stage_index, depths, strict=True)))
    supernet = supernet_of(network, space, "pad")
    assert_computes_what_its_student_does(network, supernet, architecture, IMAGES)


def assert_computes_what_its_student_does(network, supernet: Supernet, architecture: Architecture, images: Tensor):
    trained = copy.deepcopy(network)
    trained.load_state_dict(supernet.plain_weights(architecture), strict=False)
    student = shrink(trained, architecture, images).train()
    expected = supernet(Selection.of(supernet.space, architecture), images)
    torch.testing.assert_close(student(images), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def convolutions(monkeypatch):
    """Shape of the weight of every convolution that runs, in order."""
    shapes: list[tuple[int, ...]] = []
    convolve = F.conv2d

    def recorded(features, weight, *rest, **named):
        shapes.append(tuple(weight.shape))
        assert features.shape[1] == weight.shape[1] * (rest[4] if len(rest) > 4 else named.get("groups", 1))
        return convolve(features, weight, *rest, **named)

    monkeypatch.setattr(F, "conv2d", recorded)
    return shapes


def sliced_shapes(selection: Selection) -> list[tuple[int, ...]]:
    """What the convolutions of a basic ResNet should run on: each once, from the width that arrives to the widest."""
    widest = {name: max(choice.sizes) for name, choice in selection.widths.items()}

    def convolution(name: str, inputs: int, kernel: int = 3) -> list[tuple[int, ...]]:
        return [(widest[name], inputs, kernel, kernel)]

    shapes, inputs = convolution("stem.conv", 3), widest["stem.conv"]
    for stage in range(3):
        depths = selection.depths[f"stages.{stage}"].sizes
        handed_on = []
        for block in range(max(depths)):
            first, last = (f"stages.{stage}.{block}.layer{layer}.conv" for layer in (1, 2))
            shapes += convolution(first, inputs) + convolution(last, widest[first])
            is_halving = stage > 0 and block == 0
            if is_halving:
                shapes += convolution(last, inputs, kernel=1)
            inputs = widest[last] if is_halving else max(inputs, widest[last])
            handed_on.append(inputs)
        inputs = max(handed_on[depth - 1] for depth in depths)
    return shapes


@alignments
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("seed", range(2))
def test_every_convolution_runs_once_at_the_widths_in_use_and_those_of_deeper_blocks_do_not(
    convolutions, alignment, samples, seed
):
    space = inspected("resnet20")
    parameters = random_parameters(space, seed).float()
    selection = parameters.sample(1.0, width_samples=samples, depth_samples=samples)
    supernet = Supernet(resnet(20), space, IMAGES, alignment=alignment)
    convolutions.clear()
    supernet(selection, IMAGES)
    assert convolutions == sliced_shapes(selection)


@alignments
@pytest.mark.parametrize("case", CASES)
def test_any_draw_runs_and_its_gradient_reaches_every_architecture_parameter(case, alignment):
    space = space_of(CASES[case])
    parameters = random_parameters(space, seed=0).float()
    supernet = supernet_of(CASES[case](), space, alignment)
    total = sum(supernet(parameters.sample(1.0), example(4)).square().mean() for _ in range(6))
    total.backward()
    masks = (parameters.width_is_candidate, parameters.depth_is_candidate)
    for logits, mask in zip((parameters.widths, parameters.depths), masks, strict=True):
        if logits.numel():
            assert logits.grad.isfinite().all()
            assert (logits.grad[mask] != 0).all()
            assert not logits.grad[~mask].any()


@alignments
@pytest.mark.parametrize("case", HARD_FOR_A_SUPERNET)
def test_any_draw_runs_on_networks_that_are_hard_to_mix(case, alignment):
    network = HARD_FOR_A_SUPERNET[case]()
    space = inspect(network, example(), ratios=(0.3, 0.6, 1.0))
    supernet = supernet_of(network, space, alignment)
    for narrow in space.groups:
        assert supernet(narrow_in(space, narrow.name), example(4)).isfinite().all()


def narrow_in(space: SearchSpace, name: str) -> Selection:
    """The two smallest widths of one group, and the two largest of all others."""
    weights = torch.tensor([0.3, 0.7])

    def two(choice, smallest: bool) -> Drawn:
        indices = (0, 1) if smallest else (len(choice.candidates) - 2, len(choice.candidates) - 1)
        return Drawn(tuple(choice.candidates[index] for index in indices), indices, weights)

    return Selection(
        widths={group.name: two(group, group.name == name) for group in space.groups},
        depths={stage.name: two(stage, smallest=True) for stage in space.stages},
    )


def test_the_depths_count_however_the_model_runs_its_stage():
    network = IteratedStage()
    space = inspect(network, example())
    supernet = supernet_of(network, space, "pad")
    outputs = [
        supernet(Selection.of(space, Architecture(depths={stage.name: depth})), example(4))
        for stage in space.stages
        for depth in stage.candidates
    ]
    assert all(not torch.allclose(one, other) for one, other in itertools.pairwise(outputs))


@pytest.mark.parametrize("dimensions", ["both", "width", "depth"])
def test_the_supernet_computes_the_same_in_training_and_in_evaluation(dimensions):
    space = inspected("resnet14", dimensions)
    selection = random_parameters(space, seed=1).float().sample(1.0)
    supernet = Supernet(resnet(14), space, IMAGES)
    in_training = supernet.train()(selection, IMAGES)
    assert torch.equal(supernet.eval()(selection, IMAGES), in_training)


@alignments
@pytest.mark.parametrize("case", CASES)
def test_the_callers_model_is_untouched(case, alignment):
    network = CASES[case]().train()
    network(example())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modules = [(name, type(module), module.training) for name, module in network.named_modules()]
    space = space_of(CASES[case])
    supernet = Supernet(network, space, IMAGES, alignment=alignment)
    supernet(random_parameters(space, seed=0).float().sample(1.0), example(4)).sum().backward()
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.add_(1)
    assert [(name, type(module), module.training) for name, module in network.named_modules()] == modules
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("make", [*CASES.values(), *HARD_FOR_A_SUPERNET.values()], ids=lambda make: make.__name__)
def test_the_supernet_starts_from_the_models_weights_under_all_of_their_names(make):
    torch.manual_seed(0)
    network = make()
    space = inspect(network, example())
    weights = Supernet(network, space, example()).plain_weights(space.smallest_architecture())
    named = network.named_parameters(remove_duplicate=False)
    assert all(torch.equal(weights[name], value) for name, value in named)


def test_every_layer_keeps_its_name():
    space = inspected("bottlenecks")
    network = ResNet(BOTTLENECKS)
    named = dict(Supernet(network, space, IMAGES).network.named_parameters())
    assert list(named) == [name for name, _ in network.named_parameters()]


@pytest.mark.parametrize("dimensions", ["both", "width", "depth"])
def test_plain_weights_fit_the_model_and_have_no_running_statistics(dimensions):
    space = inspected("resnet14", dimensions)
    supernet = supernet_of(resnet(14), space, "pad")
    architecture = space.random_architecture(3)
    weights = supernet.plain_weights(architecture)
    expected = {name: value.shape for name, value in resnet(14).named_parameters()}
    assert {name: value.shape for name, value in weights.items()} == expected


def test_plain_weights_are_those_of_the_architectures_candidates_and_copies():
    space = inspected("resnet14")
    supernet = supernet_of(resnet(14), space, "pad")
    weights = supernet.plain_weights(Architecture(widths={"stem.conv": 9}))
    network = supernet.network
    assert torch.equal(weights["stem.norm.weight"], network.stem.norm.weight[3])
    assert torch.equal(weights["stem.norm.bias"], network.stem.norm.bias[3])
    assert torch.equal(weights["stages.0.0.layer1.norm.weight"], network.stages[0][0].layer1.norm.weight[7])
    weights["stem.conv.weight"].zero_()
    assert network.stem.conv.weight.any()


@pytest.mark.parametrize("alignment", ["interpolate", "pad"])
def test_networks_of_any_precision_are_mixed_also_without_norms(alignment):
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    ).double()
    space = inspect(network, example().double())
    supernet = Supernet(network, space, example().double(), alignment=alignment)
    parameters = ArchitectureParameters(space)  # float32
    outputs = supernet(parameters.sample(5.0), example().double())
    outputs.sum().backward()
    assert outputs.dtype == torch.float64
    assert all(each.grad.any() for each in parameters.parameters() if each.numel())


def test_an_unknown_alignment_is_refused():
    with pytest.raises(OptionError, match="alignment='stretch'; expected interpolate or pad"):
        Supernet(residual(), space_of(residual), example(), alignment="stretch")


@alignments
def test_along_an_axis_of_several_groups_each_groups_part_is_mixed_by_itself(alignment):
    names = {
        "a": Drawn((2, 5), (0, 1), torch.tensor([0.3, 0.7])),
        "b": Drawn((1, 3), (0, 1), torch.tensor([0.6, 0.4])),
    }
    product = Product((Constant(4), Group("b", 3), Constant(2)))
    layout = Concatenation((Group("a", 5), product, Constant(3)))
    sizes = Sizes({"a": 5, "b": 3}, is_supernet=True)
    features = torch.randn(4, 32)
    first, second, rest = features.split([5, 24, 3], dim=1)
    mixed_first, by_unit = (
        mix_prefixes(part, names[name].sizes, names[name].weights, None, alignment)
        for name, part in (("a", first), ("b", second.view(4, 4, 3, 2).permute(0, 1, 3, 2).reshape(-1, 3)))
    )
    mixed_second = by_unit.view(4, 4, 2, 3).permute(0, 1, 3, 2).reshape(4, 24)
    found = mix_along(features, map_along(layout, Selection(widths=names, depths={}), sizes, alignment, features), 1)
    torch.testing.assert_close(found, torch.cat([mixed_first, mixed_second, rest], dim=1))


def test_a_residual_sum_pads_its_narrower_side_by_zeros():
    narrow, wide = torch.randn(2, 3, 2, 2), torch.randn(2, 4, 2, 2)
    for total in (padded_sum(narrow, wide, keeps_main_width=False), padded_sum(wide, narrow, keeps_main_width=False)):
        torch.testing.assert_close(total[:, :3], wide[:, :3] + narrow)
        torch.testing.assert_close(total[:, 3:], wide[:, 3:])


def test_a_residual_sum_that_others_share_the_width_of_is_as_wide_as_its_main_side():
    narrow, wide = torch.randn(2, 3, 2, 2), torch.randn(2, 4, 2, 2)
    torch.testing.assert_close(padded_sum(narrow, wide, keeps_main_width=True), narrow + wide[:, :3])
    torch.testing.assert_close(padded_sum(wide, narrow, keeps_main_width=True)[:, :3], wide[:, :3] + narrow)
    torch.testing.assert_close(padded_sum(wide, narrow, keeps_main_width=True)[:, 3:], wide[:, 3:])


def test_the_space_of_another_network_is_refused():
    with pytest.raises(SpaceError, match=r"width group 'body\.0\.conv' of 4, and the model has none of that name"):
        Supernet(resnet(8), space_of(residual), IMAGES)


class Sequence(nn.Module):
    """Attention over any number of tokens that counts them in its forward; of many it reads a second layer."""

    def __init__(self, many: int = 99) -> None:
        super().__init__()
        self.many = many
        self.stem, self.query, self.key = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        places = torch.arange(length)[None, :, None] / length
        hidden = (self.stem(tokens) + places.cos()).relu()
        if length > self.many:
            hidden = hidden + self.second(hidden)
        weights = (self.query(hidden) @ self.key(hidden).transpose(1, 2)).softmax(-1)
        return self.head((weights @ hidden).view(-1, length, 8).sum(1) / length)


def words(samples: int, length: int) -> Tensor:
    return torch.randn(samples, length, 3, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("length", [1, 4, 9])
def test_inputs_of_other_lengths_run_as_the_network_runs_them(length):
    torch.manual_seed(0)
    network = Sequence().eval()
    space = inspect(network, words(2, 5))
    supernet = Supernet(network, space, words(2, 5))
    full = Selection.of(space, space.full_architecture())
    for samples in (3, 7):
        torch.testing.assert_close(supernet(full, words(samples, length)), network(words(samples, length)))
    parameters = ArchitectureParameters(space)
    copy.deepcopy(supernet)(parameters.sample(temperature=1.0), words(16, length)).square().sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in parameters.parameters() if each.numel())


def test_what_many_lengths_cost_is_said_once(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(supernet_module.log, "warning", lambda line, *_: lines.append(line))
    network = Sequence().eval()
    space = inspect(network, words(2, 5))
    supernet = Supernet(network, space, words(2, 5))
    full = Selection.of(space, space.full_architecture())
    for length, said in ((5, 0), (6, 0), (7, 0), (7, 0), (8, 1), (9, 1)):
        supernet(full, words(2, length))
        assert sum("the network is read anew for each" in line for line in lines) == said


def test_a_network_that_is_another_one_at_other_lengths_is_refused_there():
    network = Sequence(many=6).eval()
    space = inspect(network, words(2, 5))
    supernet = Supernet(network, space, words(2, 5))
    full = Selection.of(space, space.full_architecture())
    assert supernet(full, words(2, 6)).shape == (2, 4)
    with pytest.raises(DataError, match=r"\[2, 7, 3\]: .* another way .*expected inputs of the example's sizes"):
        supernet(full, words(2, 7))


def test_images_of_other_sizes_run_with_the_norms_of_their_candidates():
    torch.manual_seed(0)
    network = resnet(8)
    space = inspect(network, torch.randn(2, 3, 16, 16))
    supernet = Supernet(network, space, torch.randn(2, 3, 16, 16))
    drawn = ArchitectureParameters(space).sample(temperature=1.0)
    for size in (16, 24):
        images = torch.randn(4, 3, size, size)
        alone = Supernet(network, inspect(network, images), images)
        assert torch.equal(supernet(drawn, images), alone(drawn, images))
