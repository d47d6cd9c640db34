"""What a network costs: the operators of a trace against a count of the network itself, and both against paper."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.ops import roi_align

import oracles
import transprune
from transprune.architecture import Architecture
from transprune.errors import ModelError
from transprune.kernels.feature_maps import use_channels_last
from transprune.reading.equality import probes
from transprune.reading.inspection import inspect
from transprune.reading.macs import count_macs, counting
from transprune.shrinking.shrink import shrink
from transprune.shrinking.sort import sort_channels
from transprune.tas.sampling import Selection
from transprune.tas.supernet import Supernet

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
TOKENS = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Four heads written out, with the heads beside the samples or among them."""

    def __init__(self, transposed, *, is_folded: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(12, 16, bias=False) for _ in range(3))
        self.out = nn.Linear(16, 5, bias=False)
        self.transposed, self.is_folded = transposed, is_folded

    def forward(self, tokens: Tensor) -> Tensor:
        samples, count, _ = tokens.shape
        heads = [layer(tokens).unflatten(2, (4, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        if self.is_folded:
            heads = [each.reshape(samples * 4, count, -1) for each in heads]
        query, key, value = heads
        result = (query @ self.transposed(key)).softmax(-1) @ value
        return self.out(result.reshape(samples, 4, count, -1).transpose(1, 2).flatten(2)).mean(1)


class FoldedDepthwise(nn.Module):
    """A depthwise convolution that runs once for each of four heads, as in multiscale attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.each, self.last = (
            nn.Conv2d(3, 24, 1),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.Conv2d(24, 5, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        heads = self.each(features.reshape(len(images) * 4, -1, *features.shape[2:]))
        return self.last(heads.reshape(features.shape)).mean((2, 3))


class Around(nn.Module):
    """A linear layer, any function of its result, and another linear layer beside it, so that there is a choice."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.inside, self.last = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.weight, self.more = nn.Parameter(torch.randn(16, 7)), nn.Parameter(torch.randn(7, 5))
        self.function = function

    def forward(self, tokens: Tensor) -> Tensor:
        features = self.first(tokens)
        return self.function(self, features) + self.last(self.inside(tokens @ self.first.weight.T).relu())


class Recurrent(nn.Module):
    """Recurrent layers between linear ones; what is read is the last step or the last state."""

    def __init__(self, kind, *, reads_state: bool = False, **options) -> None:
        super().__init__()
        self.first, self.rnn = nn.Linear(12, 10), kind(10, 8, batch_first=True, **options)
        with torch.no_grad():
            self.last = nn.Linear(self.rnn(torch.zeros(1, 1, 10))[0].shape[-1], 5)
        self.reads_state = reads_state

    def forward(self, tokens: Tensor) -> Tensor:
        steps, state = self.rnn(self.first(tokens))
        state = state[0] if isinstance(state, tuple) else state
        return self.last(state[-1] if self.reads_state else steps[:, -1])


class Cell(nn.Module):
    """A cell that a loop calls for each step."""

    def __init__(self, kind) -> None:
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(12, 10), kind(10, 8), nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        state = None
        for step in self.first(tokens).unbind(1):
            state = self.cell(step, state)
        return self.last(state[0] if isinstance(state, tuple) else state)


def of_weights(network: nn.Module, steps: int) -> int:
    """Multiply-adds if each weight and bias but those of the last layer is met at each step."""
    return steps * sum(each.numel() for name, each in network.named_parameters() if not name.startswith("last")) + sum(
        each.numel() for each in network.last.parameters()
    )


ATTENTION = 9 * 12 * 48 + 4 * 9 * 9 * 4 * 2 + 9 * 16 * 5
LINEAR = 9 * (12 * 16 + 16) + 9 * 12 * 16 + 9 * 16 * 17 + 9 * 16 * 5 + 9 * 5  # what is around
NETWORKS = {
    "mT": (lambda: Attention(lambda key: key.mT, is_folded=False), TOKENS, ATTENTION),
    "mT, folded": (lambda: Attention(lambda key: key.mT, is_folded=True), TOKENS, ATTENTION),
    "mH": (lambda: Attention(lambda key: key.mH, is_folded=True), TOKENS, ATTENTION),
    "adjoint": (lambda: Attention(lambda key: key.adjoint(), is_folded=False), TOKENS, ATTENTION),
    "depthwise for each head": (FoldedDepthwise, IMAGES, 64 * 24 * (4 + 10) + 64 * 5 * 25),
    "tensordot": (
        lambda: Around(lambda own, features: torch.tensordot(features, own.weight, 1) @ own.more),
        TOKENS,
        LINEAR + 9 * 16 * 7 + 9 * 7 * 5,
    ),
    "inner": (
        lambda: Around(lambda own, features: torch.inner(features, own.weight.T) @ own.more),
        TOKENS,
        LINEAR + 9 * 16 * 7 + 9 * 7 * 5,
    ),
    "a vector": (
        lambda: Around(lambda own, features: (features @ own.weight[:, 0])[..., None]),
        TOKENS,
        LINEAR + 9 * 16,
    ),
    "einsum with dots": (
        lambda: Around(lambda own, features: torch.einsum("...i,ij->...j", features, own.weight) @ own.more),
        TOKENS,
        LINEAR + 9 * 16 * 7 + 9 * 7 * 5,
    ),
    "einsum that sums nothing": (
        lambda: Around(lambda own, features: torch.einsum("bti,bti->bti", features, features)[..., :5]),
        TOKENS,
        LINEAR,
    ),
    "einsum of three": (
        lambda: Around(lambda own, features: torch.einsum("bti,ij,jk->btk", features, own.weight, own.more)),
        TOKENS,
        LINEAR + 9 * 16 * 7 + 9 * 7 * 5,
    ),
    "multi_dot": (
        lambda: Around(lambda own, features: torch.linalg.multi_dot([features.mean(1), own.weight, own.more])[:, None]),
        TOKENS,
        LINEAR + 16 * 7 + 7 * 5,
    ),
    "addbmm": (
        lambda: Around(lambda own, features: torch.addbmm(torch.zeros(9, 9), features, features.mT)[:, :5]),
        TOKENS,
        LINEAR + 9 * 9 * 16,
    ),
    "cdist": (
        lambda: Around(lambda own, features: torch.cdist(features, features)[..., :5]),
        TOKENS,
        LINEAR + 9 * 9 * 16,
    ),
    **{
        f"{kind.__name__} {options}": (
            lambda kind=kind, options=options: Recurrent(kind, **options),
            TOKENS,
            None,
        )
        for kind, options in (
            (nn.LSTM, {}),
            (nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 4}),
            (nn.LSTM, {"bias": False, "reads_state": True}),
            (nn.GRU, {"num_layers": 2, "bidirectional": True}),
            (nn.RNN, {"nonlinearity": "relu", "reads_state": True}),
        )
    },
    **{kind.__name__: (lambda kind=kind: Cell(kind), TOKENS, None) for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)},
}
RECURRENT = [name for name, (_, _, macs) in NETWORKS.items() if macs is None]


def network_of(name: str) -> tuple[nn.Module, Tensor, int]:
    make, example, macs = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    return network, example, of_weights(network, 9) if macs is None else macs


@pytest.mark.parametrize("name", NETWORKS)
def test_predicted_counted_and_computed_macs_are_one_number(name):
    network, example, macs = network_of(name)
    space = inspect(network, example)
    assert count_macs(network, example) == space.macs(space.full_architecture()) == macs
    for architecture in (space.smallest_architecture(), space.random_architecture(1)):
        student = shrink(network, architecture, example, reading=space.reading)
        assert count_macs(student, example) == space.macs(architecture)
        assert oracles.count_parameters(student) == space.params(architecture)


def test_what_no_rule_says_is_a_constant_that_is_shown():
    network, example, macs = network_of("addbmm")
    space = inspect(network, example)
    [constant] = [layer for layer in space.layers if layer.operator == "constant"]
    assert constant.macs(1, 1) == macs - LINEAR
    [reason] = [fixed.reason for fixed in space.fixed if fixed.name == constant.name]
    assert f"{constant.kernel:,} MACs" in reason
    assert "test_counted.py" in reason


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_is_cut_gate_by_gate_into_one_of_its_own_kind(name):
    network, example, _ = network_of(name)
    space = inspect(network, example)
    group = next(group for group in space.groups if group.name in ("rnn", "cell"))
    architecture = space.random_architecture(2)
    student = shrink(network, architecture, example, reading=space.reading)
    path = group.name
    layer, before = getattr(student, path), getattr(network, path)
    assert type(student) is type(network)
    assert (layer.proj_size if getattr(layer, "proj_size", 0) else layer.hidden_size) == architecture.widths[path]
    again = type(layer)(layer.input_size, layer.hidden_size)
    assert again.extra_repr().split(",")[:2] == layer.extra_repr().split(",")[:2]
    weight, kept = ("weight_hh", "weight_hh") if path == "cell" else ("weight_hh_l0", "weight_hh_l0")
    gates = getattr(before, kept).shape[0] // before.hidden_size
    columns = getattr(layer, weight).shape[1]
    expected = getattr(before, kept).unflatten(0, (gates, -1))[:, : layer.hidden_size, :columns].flatten(0, 1)
    assert torch.equal(getattr(layer, weight), expected)


@pytest.mark.parametrize("name", RECURRENT[1:6:2])
def test_sorting_and_the_supernet_know_recurrent_layers(name):
    network, example, _ = network_of(name)
    space = inspect(network, example)
    ordered = sort_channels(network, example, reading=space.reading).eval()
    torch.testing.assert_close(ordered(example), network(example))
    architecture = space.random_architecture(1)
    student = shrink(network, architecture, example, reading=space.reading)
    supernet = Supernet(network, space, example, alignment="pad")
    torch.testing.assert_close(supernet(Selection.of(space, architecture), example), student(example))


def test_a_network_that_computes_other_things_than_were_traced_is_refused():
    class Undecided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 5))

        def forward(self, tokens):
            result = self.layers(tokens)
            return result if torch.compiler.is_compiling() else result + self.layers(tokens)

    with pytest.raises(ModelError, match=f"{2 * 9 * (12 * 16 + 16 + 16 * 5 + 5):,} MACs"):
        inspect(Undecided(), TOKENS)


def test_packed_sequences_count_by_their_steps():
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(12, 8, batch_first=True)

        def forward(self, tokens):
            lengths = [5] * len(tokens)
            return self.rnn(nn.utils.rnn.pack_padded_sequence(tokens, lengths, batch_first=True))[1]

    network = Packed()
    assert count_macs(network, TOKENS) == 5 * sum(each.numel() for each in network.parameters())


def test_other_products_that_torch_hides_are_counted():
    def macs(function) -> int:
        class Called(nn.Module):
            def forward(self, first, second):
                return function(first, second)

        return count_macs(Called(), (torch.ones(1, 4, 6), torch.ones(1, 3, 6)))

    assert macs(lambda first, second: torch.dot(first[0, 0], second[0, 0])) == 6
    # Its rows are computed one by one, so they are its samples.
    assert macs(lambda first, second: torch.addmv(first[0, :, 0], first[0], second[0, 0])) == 6
    assert macs(lambda first, second: nn.functional.bilinear(first, first, torch.ones(5, 6, 6), torch.ones(5))) == 740
    assert macs(lambda first, second: torch.einsum("bti,bsi->bts", first, second)) == 4 * 3 * 6
    assert macs(lambda first, second: torch.conv_tbc(first, torch.ones(1, 6, 2), torch.ones(2))) == 4 * 2 * 7
    assert macs(lambda first, second: nn.functional.conv3d(first[:, None, None], torch.ones(2, 1, 1, 1, 1))) == 48


def test_a_forward_that_insists_on_its_batch_is_counted_by_the_sample():
    class Insisting(nn.Sequential):
        def forward(self, tokens):
            return super().forward(tokens.view(2, 9, 12))

    network = Insisting(nn.Linear(12, 16), nn.Linear(16, 5))
    space = inspect(network, TOKENS)
    assert count_macs(network, TOKENS) == space.macs(space.full_architecture()) == 9 * (13 * 16 + 17 * 5)


def test_counting_calls_nothing_that_a_class_may_have_overridden():
    class Acting(nn.Sequential):
        def train(self, mode=True):
            raise RuntimeError("training begins")

    network = Acting(nn.Linear(12, 16), nn.Linear(16, 5))
    before = copy.deepcopy(network.state_dict())
    assert count_macs(network, TOKENS) == math.prod((9, 16)) * 13 + 9 * 5 * 17
    assert inspect(network, TOKENS).groups
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def crossed(features: Tensor) -> Tensor:
    return (features @ features.mT) @ features


class Steps(nn.Module):
    """A recurrent layer without its state."""

    def __init__(self, kind) -> None:
        super().__init__()
        self.rnn = kind(4, 4, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        return self.rnn(features)[0]


class Called(nn.Module):
    """A function of a tensor."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, features: Tensor) -> Tensor:
        return self.function(features)


class AlongTokens(nn.Module):
    """A layer that has the features as channels."""

    def __init__(self, layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features.mT).mT


FOLDED = {
    "product": lambda: Called(crossed),
    "einsum": lambda: Called(lambda each: torch.einsum("...id,...jd,->...ij", each, each, each.new_ones(())) @ each),
    "einsum of two": lambda: Called(lambda each: torch.einsum("bid,bjd->bij", each, each).softmax(-1) @ each),
    "bmm": lambda: Called(lambda each: torch.bmm(torch.baddbmm(each.new_zeros(1), each, each.transpose(1, 2)), each)),
    "attention": lambda: Called(lambda each: nn.functional.scaled_dot_product_attention(each, each, each)),
    "distances": lambda: Called(lambda each: torch.cdist(each, each) @ each),
    "linear": lambda: nn.Linear(4, 4),
    "layer norm": lambda: nn.LayerNorm(4),
    "convolution": lambda: AlongTokens(nn.Conv1d(4, 4, 3, padding=1)),
    "depthwise": lambda: AlongTokens(nn.Conv1d(4, 4, 3, padding=1, groups=4)),
    "grouped": lambda: AlongTokens(nn.Conv1d(4, 4, 1, groups=2)),
    "transposed": lambda: AlongTokens(nn.ConvTranspose1d(4, 4, 3, padding=1)),
    "batch norm": lambda: AlongTokens(nn.BatchNorm1d(4)),
    "gate": lambda: Called(lambda each: torch.cat([nn.functional.glu(each, -1)] * 2, -1)),
    "recurrent": lambda: Steps(nn.LSTM),
    "gated recurrent": lambda: Steps(nn.GRU),
    "sums": lambda: Called(lambda each: each.cumsum(1) + each.mean(1, keepdim=True)),
    "scattered": lambda: Called(lambda each: torch.zeros_like(each).index_add(1, torch.arange(9) // 2, each)),
    "vector": lambda: Called(lambda each: each * (each @ each.new_ones(4))[..., None]),
}


class Folded(nn.Module):
    """Parts that run for each sample and head, with the heads folded into the samples."""

    def __init__(self, names) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 5)
        self.parts = nn.ModuleList(FOLDED[name]() for name in names)

    def forward(self, tokens: Tensor) -> Tensor:
        features = self.first(tokens).unflatten(2, (4, -1)).transpose(1, 2)
        samples, heads, count, _ = features.shape
        features = features.reshape(samples * heads, count, -1)
        for part in self.parts:
            features = part(features)
        return self.last(features.reshape(samples, heads, count, -1).transpose(1, 2).flatten(2))


@settings(max_examples=16, deadline=None, derandomize=True)
@given(names=st.lists(st.sampled_from(sorted(FOLDED)), min_size=1, max_size=4))
def test_operators_that_run_for_each_head_cost_what_is_counted(names):
    torch.manual_seed(0)
    network = Folded(names).eval()
    try:
        space = inspect(network, TOKENS)
    except ModelError as error:
        if "none of its widths" not in str(error):
            raise
        return
    for architecture in (space.full_architecture(), space.smallest_architecture(), space.random_architecture(1)):
        student = shrink(network, architecture, TOKENS, reading=space.reading)
        assert count_macs(student, TOKENS) == space.macs(architecture)
        assert oracles.count_parameters(student) == space.params(architecture)
    torch.testing.assert_close(
        shrink(network, space.full_architecture(), TOKENS, reading=space.reading)(TOKENS), network(TOKENS)
    )


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("einsum of three", ["first", "weight", "inside"]),
        ("multi_dot", ["first", "weight", "inside"]),
        ("tensordot", ["first", "weight", "inside"]),
        ("inner", ["first", "weight", "inside"]),
        ("cdist", ["first", "inside"]),
    ],
)
def test_products_of_many_forms_have_widths(name, groups):
    network, example, _ = network_of(name)
    space = inspect(network, example)
    assert [group.name for group in space.groups] == groups
    architecture = space.random_architecture(1)
    student = shrink(network, architecture, example, reading=space.reading)
    supernet = Supernet(network, space, example, alignment="pad")
    torch.testing.assert_close(supernet(Selection.of(space, architecture), example), student(example))


def test_a_chain_that_ends_in_a_vector_is_counted_from_there():
    with counting() as counter:
        torch.linalg.multi_dot([torch.ones(9, 16), torch.ones(16, 7), torch.ones(7)])
    assert counter.macs == 16 * 7 + 9 * 16


@pytest.mark.parametrize("name", ["bare", "experts", "as in GPT-2", "weight norm", "spectral norm", "scattered", "bag"])
def test_widths_of_layers_that_no_module_of_torch_holds(name):
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Parameter(torch.randn(12, 16)), nn.Parameter(torch.randn(16, 5))

        def forward(self, tokens):
            return (tokens @ self.first).relu() @ self.last

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Parameter(torch.randn(4, 12, 16)), nn.Parameter(torch.randn(4, 16, 5))
            self.gate = nn.Linear(12, 4)

        def forward(self, tokens):
            hidden = torch.einsum("btd,edh->beth", tokens, self.first).relu()
            chosen = self.gate(tokens).softmax(-1).mT[..., None]
            return (torch.einsum("beth,eho->beto", hidden, self.last) * chosen).sum(1)

    class Linear1D(nn.Module):
        def __init__(self, inputs, outputs) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

        def forward(self, features):
            return torch.addmm(self.bias, features.flatten(0, 1), self.weight).unflatten(0, features.shape[:2])

    class Scattered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 5)
            self.register_buffer("ends", torch.arange(9) // 2)

        def forward(self, tokens):
            sources = self.first(tokens)
            ends = self.ends[None, :, None].expand_as(sources)
            summed = torch.zeros(len(tokens), 5, sources.shape[2]).scatter_add(1, ends, sources)
            return self.last(summed.index_add(1, self.ends, sources))

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.first, self.last = nn.EmbeddingBag(20, 12), nn.Linear(12, 16), nn.Linear(16, 5)

        def forward(self, words):
            return self.last(self.first(self.table(words)).relu())

    torch.manual_seed(0)
    network, macs, groups = {
        "bare": (Bare(), 9 * 12 * 16 + 9 * 16 * 5, ["first"]),
        "experts": (Experts(), 4 * 9 * (12 * 16 + 16 * 5) + 9 * 13 * 4, ["first", "gate"]),
        "as in GPT-2": (nn.Sequential(Linear1D(12, 16), nn.GELU(), Linear1D(16, 5)), 9 * 12 * 16 + 9 * 16 * 5, ["0"]),
        "weight norm": (
            nn.Sequential(parametrizations.weight_norm(nn.Linear(12, 16)), nn.Linear(16, 5)),
            9 * 13 * 16 + 9 * 17 * 5,
            ["0"],
        ),
        "spectral norm": (
            nn.Sequential(parametrizations.spectral_norm(nn.Linear(12, 16)), nn.Linear(16, 5)),
            9 * 13 * 16 + 9 * 17 * 5 + 12 * 16 + 16,
            ["0"],
        ),
        "scattered": (Scattered(), 9 * 13 * 16 + 5 * 17 * 5, ["first"]),
        "bag": (Bag(), 13 * 16 + 17 * 5, ["first"]),
    }[name]
    example = torch.randint(20, (2, 6)) if name == "bag" else TOKENS
    space = inspect(network.eval(), example)
    assert [group.name for group in space.groups] == groups
    assert space.macs(space.full_architecture()) == macs
    architecture = space.smallest_architecture()
    student = shrink(network, architecture, example, reading=space.reading)
    assert count_macs(student, example) == space.macs(architecture)
    assert oracles.count_parameters(student) == space.params(architecture)


def test_looking_leaves_nothing_in_the_network_or_in_what_its_hooks_know():
    network, seen = nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 5)), {}
    network[0].register_forward_hook(lambda module, inputs, output: seen.update(features=output))
    network[1].register_forward_hook(lambda module, inputs, output: setattr(network, "logits", output))
    for _ in range(2):
        space = inspect(network, TOKENS)
        shrink(network, space.smallest_architecture(), TOKENS, reading=space.reading)
    assert seen == {}
    assert not hasattr(network, "logits")
    network(TOKENS)
    assert seen["features"].requires_grad
    assert inspect(network, TOKENS).groups
    assert network.logits.requires_grad  # a copy went without its history


def test_what_a_forward_keeps_below_a_module_is_copied_without_a_history():
    class Keeping(nn.Linear):
        def forward(self, tokens):
            self.__dict__.setdefault("kept", {})["last"] = [super().forward(tokens)]
            return self.kept["last"][0]

    network = nn.Sequential(Keeping(12, 16), nn.Linear(16, 5))
    assert inspect(network, TOKENS).groups
    network(TOKENS)
    space = inspect(network, TOKENS)
    student = shrink(network, space.smallest_architecture(), TOKENS, reading=space.reading)
    assert count_macs(student, TOKENS) == space.macs(space.smallest_architecture())
    assert network[0].kept["last"][0].requires_grad


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("weights", ["inherit", "scratch"])
@pytest.mark.parametrize("form", ["weight norm", "weight norm of a whole", "spectral norm", "masks"])
def test_weights_that_hooks_compute_are_searched(form, weights):
    def normed(layer: nn.Module) -> nn.Module:
        return {
            "weight norm": lambda: utils.weight_norm(layer),
            "weight norm of a whole": lambda: utils.weight_norm(layer, dim=None),
            "spectral norm": lambda: utils.spectral_norm(layer),
            "masks": lambda: prune.l1_unstructured(layer, "weight", 0.3),
        }[form]()

    torch.manual_seed(0)
    network = nn.Sequential(normed(nn.Linear(12, 16)), nn.ReLU(), normed(nn.Linear(16, 5)))
    network(TOKENS).sum().backward()  # the weights have a history now, which no copy can have
    network.eval()
    space = inspect(network, TOKENS)
    assert [group.name for group in space.groups] == ["0"]
    student = shrink(network, space.full_architecture(), TOKENS, reading=space.reading)
    torch.testing.assert_close(student(TOKENS), network(TOKENS))
    architecture = space.random_architecture(1)
    student = shrink(network, architecture, TOKENS, reading=space.reading, weights=weights)
    assert count_macs(student, TOKENS) == space.macs(architecture)
    assert oracles.count_parameters(student) == space.params(architecture)
    assert student[0].weight.shape == (architecture.widths["0"], 12)
    assert student[0].out_features == architecture.widths["0"]
    student.train()(TOKENS).sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    if weights == "scratch" and form != "spectral norm":  # drawn small, whatever the lengths were
        assert student[0].weight.std() < 0.02 < network[0].weight.std()


def test_a_forward_that_computes_the_same_at_another_cost_is_not_kept():
    """Where the tokens are 2 or 3 wide, it begins with memories [.., 1, 1], which any size can be added to."""

    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.keys, self.last = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, tokens):
            tokens = self.first(tokens)
            keys = self.keys(tokens).unflatten(-1, (2, -1))
            size = tokens.shape[-1] // 2
            memory, read = tokens.new_zeros(len(tokens), 2, size, size), []
            for key in keys.unbind(1):
                known = torch.einsum("bhk,bhkv->bhv", key, memory)
                memory = memory + key.unsqueeze(-1) * (key - known).unsqueeze(-2)
                read.append(torch.einsum("bhk,bhkv->bhv", key, memory))
            return self.last(torch.stack(read, 1).flatten(-2))

    network = Remembering()
    space = inspect(network, TOKENS)
    for width, follows in ((4, True), (3, False)):
        architecture = Architecture(widths={"first": width, "keys": 2})
        student = shrink(network, architecture, TOKENS, reading=space.reading)
        assert count_macs(student, TOKENS) == space.macs(architecture)
        assert isinstance(student, Remembering) == follows
    assert "MACs instead of" in student.reason


def test_a_network_in_training_is_cut_as_in_evaluation():
    """In training, each look at a spectrally normed weight is a step of the iteration that finds the norm."""
    layers = [nn.Linear(12, 16), nn.Linear(16, 5)]
    network = nn.Sequential(*map(parametrizations.spectral_norm, layers)).train()
    before = copy.deepcopy(network.state_dict())
    student = shrink(network, inspect(network, TOKENS).full_architecture(), TOKENS)
    assert student.training
    assert network.training
    for found in (student, network):
        torch.testing.assert_close(found.state_dict(), before, rtol=0, atol=0)


class Centred(nn.Module):
    """A parametrization without a way back from the weight."""

    def forward(self, weight):
        return weight - weight.mean(1, keepdim=True)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("form", ["weight norm", "old weight norm", "masks", "centred"])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_computed_weights_are_drawn_anew_too(form, kind):
    layer = kind(3, 8, 1)
    {
        "weight norm": lambda: parametrizations.weight_norm(layer),
        "old weight norm": lambda: utils.weight_norm(layer),
        "masks": lambda: prune.l1_unstructured(layer, "weight", 0.3),
        "centred": lambda: parametrize.register_parametrization(layer, "weight", Centred()),
    }[form]()
    example = torch.randn(2, 3, *[4] * (layer.weight.dim() - 2))
    network = nn.Sequential(layer, nn.ReLU(), kind(8, 5, 1))
    network(example)
    space = inspect(network, example)
    student = shrink(network, space.full_architecture(), example, reading=space.reading, weights="scratch")
    learned, drawn = network[0].weight, student[0].weight
    assert ((learned - drawn).abs()[learned != 0] > 1e-6).all()
    student(example)
    torch.testing.assert_close(student[0].weight, drawn)  # what it is computed from was drawn


@pytest.mark.parametrize("is_same", [False, True])
def test_pairs_of_two_widths_leave_one_of_them_searched(is_same):
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(12, 8), nn.Linear(12, 8 if is_same else 6)
            self.both, self.last = nn.Bilinear(8, 8 if is_same else 6, 16), nn.Linear(16, 5)

        def forward(self, tokens):
            one = self.one(tokens)
            return self.last(self.both(one, one if is_same else self.other(tokens)))

    space = inspect(Pairs(), TOKENS)
    assert [group.name for group in space.groups] == (["both"] if is_same else ["one", "both"])
    assert any("three widths" in fixed.reason for fixed in space.fixed)
    architecture = space.smallest_architecture()
    student = shrink(Pairs(), architecture, TOKENS, reading=space.reading)
    assert count_macs(student, TOKENS) == space.macs(architecture)


def test_heads_whose_results_are_returned_in_training_alone_keep_their_outputs():
    class Exits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(12, 16), nn.Linear(16, 16)])
            self.heads = nn.ModuleList([nn.Linear(16, 5), nn.Linear(16, 5)])

        def forward(self, tokens):
            found = []
            for layer, head in zip(self.layers, self.heads, strict=True):
                tokens = layer(tokens).relu()
                found.append(head(tokens))  # in evaluation nothing reads the first of them
            return found if self.training else found[-1]

    space = inspect(Exits(), TOKENS)
    assert [group.name for group in space.groups] == ["layers.0", "layers.1"]
    student = shrink(Exits(), space.smallest_architecture(), TOKENS, reading=space.reading)
    assert [head.shape[-1] for head in student.train()(TOKENS)] == [5, 5]


def test_samples_that_lie_in_one_batch_one_after_the_other_are_counted_each():
    class Triplet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))

        def forward(self, anchor, other):
            return self.trunk(torch.cat([anchor, other])).chunk(2)

    space = inspect(Triplet(), (TOKENS, TOKENS))
    assert [group.name for group in space.groups] == ["trunk.0"]
    assert space.macs(space.full_architecture()) == 2 * 9 * (13 * 16 + 17 * 5)
    architecture = space.smallest_architecture()
    student = shrink(Triplet(), architecture, (TOKENS, TOKENS), reading=space.reading)
    assert count_macs(student, (TOKENS, TOKENS)) == space.macs(architecture)


def test_two_towers_that_are_compared_with_each_other_count_samples_alike():
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(12, 16), nn.Linear(7, 16)

        def forward(self, images, texts):
            logits = self.one(images) @ self.other(texts).mT
            return logits, logits.mT

    assert inspect(Towers(), (torch.randn(2, 12), torch.randn(2, 7))).reading.trace.axes == (0, 0)


def test_boxes_of_images_are_the_samples_where_an_output_is_of_a_box():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 4, 5)

        def forward(self, images, boxes):
            return self.head(roi_align(self.body(images), boxes, 2).flatten(1))

    boxes = torch.tensor([[0.0, 0, 0, 4, 4], [1.0, 2, 2, 7, 7], [1.0, 0, 1, 6, 5]])  # as many as samples are tried with
    space = inspect(Heads(), (IMAGES, boxes))
    assert space.reading.trace.axes == (None, 0)
    images, tried = probes((torch.zeros_like(IMAGES), boxes), space.reading.trace)
    assert images.any()
    assert torch.equal(tried, boxes)  # drawn at random, they would read outside of the images
    assert [group.name for group in space.groups] == ["body"]
    architecture = space.smallest_architecture()
    student = shrink(Heads(), architecture, (IMAGES, boxes), reading=space.reading)
    assert count_macs(student, (IMAGES, boxes)) == space.macs(architecture)
    assert student.head.in_features == 4 * architecture.widths["body"]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_poolings_that_are_undone_where_they_took_their_entries_from(rank):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    pool, undo = (getattr(nn, f"{name}{rank}d") for name in ("MaxPool", "MaxUnpool"))

    class Undone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = conv(3, 8, 1), conv(8, 5, 1)
            self.pool, self.undo = pool(2, return_indices=True), undo(2)

        def forward(self, features):
            return self.last(self.undo(*self.pool(self.first(features))))

    network, example = Undone().eval(), torch.randn(2, 3, *[4] * rank)
    space = inspect(network, example)
    assert [group.name for group in space.groups] == ["first"]
    architecture = space.smallest_architecture()
    student = shrink(network, architecture, example, reading=space.reading)
    assert count_macs(student, example) == space.macs(architecture)


@pytest.mark.parametrize("name", ["rfft", "fft2", "pairs", "outer", "bilinear", "select"])
def test_widths_that_lie_beside_what_an_operator_mixes(name):
    forwards = {
        "rfft": lambda self, x: self.last(torch.fft.irfft(torch.fft.rfft(self.first(x), dim=1), n=9, dim=1)),
        "fft2": lambda self, x: self.last(torch.fft.fft2(self.first(x)[:, :, None], dim=(1, 2)).real[:, :, 0]),
        "pairs": lambda self, x: self.last(torch.view_as_complex(torch.stack([self.first(x)] * 2, -1)).real),
        "outer": lambda self, x: F.linear(x, torch.outer(self.long, self.wide)).relu() @ self.last.weight.mT,
        "bilinear": lambda self, x: self.last(self.both(x, x)),
        "select": lambda self, x: self.last((x @ self.stacked[0]).relu() + x @ self.stacked[1]),
    }

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 5)
            if name == "outer":
                self.long, self.wide = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(12))
            if name == "bilinear":
                self.both = nn.Bilinear(12, 12, 16)
            if name == "select":
                self.stacked = nn.Parameter(torch.randn(2, 12, 16))

        forward = forwards[name]

    network = Beside().eval()
    space = inspect(network, TOKENS)
    assert [group.width for group in space.groups] == [16]
    assert space.macs(space.full_architecture()) == count_macs(network, TOKENS)
    architecture = space.smallest_architecture()
    student = shrink(network, architecture, TOKENS, reading=space.reading)
    assert count_macs(student, TOKENS) == space.macs(architecture)
    assert oracles.count_parameters(student) == space.params(architecture)


def test_biases_of_an_attention_count_its_own_outputs():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.last = nn.MultiheadAttention(12, 3, batch_first=True), nn.Linear(12, 5)

        def forward(self, tokens):
            return self.last(self.inside(tokens, tokens, tokens, need_weights=False)[0])

    network = Attending().eval()
    space = inspect(network, TOKENS)
    architecture = Architecture(widths={"inside.out_proj": 7})
    student = shrink(network, architecture, TOKENS, reading=space.reading)
    assert type(student) is Attending
    assert count_macs(student, TOKENS) == space.macs(architecture)


def test_a_causal_mask_that_a_transformer_looks_into_is_traced():
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(12, 4, 16, batch_first=True)
            self.layers, self.last = nn.TransformerEncoder(layer, 1), nn.Linear(12, 5)

        def forward(self, tokens):
            return self.last(self.layers(tokens, mask=nn.Transformer.generate_square_subsequent_mask(9)))

    network = Causal().eval()
    space = inspect(network, TOKENS)
    student = shrink(network, space.smallest_architecture(), TOKENS, reading=space.reading)
    assert count_macs(student, TOKENS) == space.macs(space.smallest_architecture())
    full = shrink(network, space.full_architecture(), TOKENS, reading=space.reading)
    torch.testing.assert_close(full(TOKENS), network(TOKENS))


@pytest.mark.parametrize("name", ["no rows", "gradients"])
def test_parameters_without_entries_and_gradients_in_a_forward_are_read(name):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.nothing = nn.Linear(12, 16), nn.Linear(16, 5), nn.Parameter(torch.ones(0, 3))

        def forward(self, tokens):
            with torch.set_grad_enabled(name == "gradients"):
                return self.last(self.first(tokens).relu()) + self.nothing.sum()

    assert [group.name for group in inspect(Odd(), TOKENS).groups] == ["first"]


def test_an_averaged_model_is_the_network_that_it_averages():
    network = nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 5))
    averaged = torch.optim.swa_utils.AveragedModel(network)
    assert [group.name for group in inspect(averaged, TOKENS).groups] == ["0"]
    assert type(shrink(averaged, inspect(averaged, TOKENS).smallest_architecture(), TOKENS)) is nn.Sequential


def test_parameters_of_four_axes_that_are_no_kernels_keep_their_layout():
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.modes = nn.Conv2d(3, 4, 1), nn.Parameter(torch.randn(4, 4, 3, 3, dtype=torch.cfloat))

    network = Spectral()
    use_channels_last(network)
    assert network.modes.is_contiguous()
    assert network.conv.weight.is_contiguous(memory_format=torch.channels_last)


class Routed(nn.Module):
    """A kernel that is the mean of several, which a network weighs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.route, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(10, 3)
        self.kernels = nn.Parameter(torch.randn(4, 10, 8, 3, 3))

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images).relu()
        shares = self.route(features.mean((2, 3))).softmax(-1).mean(0)
        kernel = (shares.view(-1, 1, 1, 1, 1) * self.kernels).sum(0)
        return self.last(nn.functional.conv2d(features, kernel).relu().mean((2, 3)))


class SharedKeys(nn.Module):
    """Attention in which two queries share a key and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(12, 6 * 4), nn.Linear(12, 3 * 4), nn.Linear(12, 3 * 4)
        self.last = nn.Linear(6 * 4, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        layers = (self.query, self.key, self.value)
        parts = [layer(tokens).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in layers]
        return self.last(nn.functional.scaled_dot_product_attention(*parts, enable_gqa=True).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("make", "example"), [(Routed, IMAGES), (SharedKeys, TOKENS)])
def test_three_widths_of_a_parameter_and_shared_keys_are_counted(make, example):
    torch.manual_seed(0)
    network = make().eval()
    space = inspect(network, example)
    assert space.groups
    for architecture in (space.smallest_architecture(), space.random_architecture(1)):
        student = shrink(network, architecture, example, reading=space.reading)
        assert oracles.count_parameters(student) == space.params(architecture)
        assert count_macs(student, example) == space.macs(architecture)


class SharedBy(nn.Module):
    """Attention in which several queries share each of two keys and values, written out in one way or another."""

    def __init__(self, way: str, queries: int) -> None:
        super().__init__()
        self.way, self.heads, self.times = way, 2 * queries, queries
        self.query, self.key, self.value = nn.Linear(12, 8 * queries), nn.Linear(12, 8), nn.Linear(12, 8)
        self.out, self.last = nn.Linear(8 * queries, 12), nn.Linear(12, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query(tokens).unflatten(-1, (self.heads, 4)).transpose(1, 2)
        key, value = (each(tokens).unflatten(-1, (-1, 4)).transpose(1, 2) for each in (self.key, self.value))
        if self.way == "repeat":
            key, value = (each.repeat_interleave(self.times, dim=1) for each in (key, value))
        elif self.way == "expand":
            key, value = (each[:, :, None].expand(-1, -1, self.times, -1, -1).flatten(1, 2) for each in (key, value))
        found = nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=self.way == "asked")
        return self.last(self.out(found.transpose(1, 2).flatten(2)).mean(1))


@pytest.mark.parametrize("way", ["repeat", "expand", "asked"])
def test_of_many_queries_that_share_a_key_some_can_go(way):
    torch.manual_seed(0)
    network = SharedBy(way, queries=5).eval()
    space = inspect(network, TOKENS)
    group = next(each for each in space.groups if each.name == "query")
    assert (group.width, group.unit) == (5, 8)
    assert "key" in {each.name for each in space.fixed}
    architecture = transprune.Architecture(widths={"query": 3})
    student = shrink(network, architecture, TOKENS, reading=space.reading)
    assert type(student) is SharedBy
    assert student.key.out_features == 8
    with torch.no_grad():  # each key is left with its first three queries
        network.out.weight.view(12, 2, 5, 4)[:, :, 3:] = 0
    torch.testing.assert_close(student(TOKENS), network(TOKENS))
    assert oracles.count_parameters(student) == space.params(architecture)
    assert count_macs(student, TOKENS) == space.macs(architecture)
    few = inspect(SharedBy(way, queries=2).eval(), TOKENS)  # as many as keys: they go with these
    assert {each.name: (each.width, each.unit) for each in few.groups}["query"] == (2, 8)
    assert "key" not in {each.name for each in few.fixed}


class FusedQueries(nn.Module):
    """One projection of several queries, a key and a value for each of some heads, as Falcon writes it."""

    def __init__(self, keys: int, queries: int, place: list[int]) -> None:
        super().__init__()
        self.keys, self.place = keys, place
        self.fused, self.out = nn.Linear(12, keys * (queries + 2) * 4), nn.Linear(keys * queries * 4, 12)
        self.last = nn.Linear(12, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        fused = self.fused(tokens).unflatten(-1, (self.keys, -1, 4))
        query = fused[:, :, :, :-2]
        key, value = (fused[:, :, :, place].expand_as(query) for place in (self.place, [-1]))
        heads = [each.flatten(2, 3).transpose(1, 2) for each in (query, key, value)]
        return self.last(self.out(nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize(("keys", "queries"), [(1, 6), (2, 6)])
def test_queries_are_cut_where_key_and_value_are_looked_up_from_the_end(keys, queries):
    torch.manual_seed(0)
    network = FusedQueries(keys, queries, [-2]).eval()
    space = inspect(network, TOKENS)
    group = next(each for each in space.groups if each.name == "fused")
    assert (group.width, group.unit) == (queries, 4 * keys)
    architecture = transprune.Architecture(widths={"fused": 2})
    student = shrink(network, architecture, TOKENS, reading=space.reading)
    assert type(student) is FusedQueries
    with torch.no_grad():
        network.out.weight.view(12, keys, queries, 4)[:, :, 2:] = 0
    torch.testing.assert_close(student(TOKENS), network(TOKENS))
    assert oracles.count_parameters(student) == space.params(architecture)
    assert count_macs(student, TOKENS) == space.macs(architecture)


def test_queries_are_whole_where_a_key_is_looked_up_from_the_start():
    space = inspect(FusedQueries(1, 6, [6]).eval(), TOKENS)
    assert "reads it by number" in {each.name: each.reason for each in space.fixed}["fused"]


class Strange(nn.Sequential):
    """Its `train` begins a training, its `eval` does nothing."""

    def train(self, data, epochs=1):
        raise AssertionError("a training began")

    def eval(self):
        return self


class Frozen(nn.Sequential):
    """Keeps its norms as they are, and returns nothing when it is put into a mode."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()


@pytest.mark.parametrize("kind", [Strange, Frozen])
def test_networks_learn_whatever_their_train_does_otherwise(kind):
    torch.manual_seed(0)
    network = kind(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    batches = [(torch.randn(16, 4), torch.arange(16) % 2)] * 2
    data = transprune.LoaderData(train=batches, test=batches, search=(batches, batches), example=torch.zeros(2, 4))
    short = transprune.TrainingOptions(epochs=1, warm_up_epochs=0)
    trained = transprune.train(network, data, short)
    assert not any(module.training for module in trained.modules())
    assert trained[1].num_batches_tracked == (0 if kind is Frozen else 2)
    found = transprune.search(trained, data, "macs=0.6", transprune.SearchOptions(epochs=1, warm_up_epochs=0))
    student = transprune.distill(
        found.student, trained, data, transprune.DistillationOptions(epochs=1, warm_up_epochs=0)
    )
    assert transprune.evaluate(student, data).top1 is not None


def test_parameters_that_are_no_floats_are_left_as_they_are_when_samples_are_told():
    network = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    network.mask = nn.Parameter(torch.ones(3, dtype=torch.bool), requires_grad=False)
    assert inspect(network, torch.randn(4, 6)).groups


@pytest.mark.parametrize("turn", ["H", "mH", "T"])
def test_a_parameter_that_is_turned_before_a_product_is_a_layer(turn):
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.last = nn.Parameter(torch.randn(16, 12)), nn.Linear(16, 5)

        def forward(self, rows: Tensor) -> Tensor:
            return self.last((rows @ getattr(self.weight, turn)).relu())

    assert [group.width for group in inspect(Turned(), torch.randn(4, 12)).groups] == [16]


class Heard(nn.Module):
    """A spectrogram [batch, frequencies, frames] as an image."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 3)
        self.register_buffer("window", torch.hann_window(32))

    def forward(self, sounds):
        heard = torch.stft(sounds, 32, 16, window=self.window, return_complex=True).abs()
        return self.last(self.first(heard[:, None]).relu().mean((2, 3)))


@pytest.mark.parametrize("frames", [10, 11, 13])
def test_an_axis_as_long_as_the_traced_batch_is_not_taken_for_it(frames):
    network, sounds = Heard().eval(), torch.randn(2, 16 * (frames - 1))
    space = inspect(network, sounds)
    assert [group.name for group in space.groups] == ["first"]
    smallest = space.smallest_architecture()
    student = shrink(network, smallest, sounds, reading=space.reading)
    assert count_macs(student, sounds) == space.macs(smallest) < count_macs(network, sounds)


class Halved(nn.Module):
    """Computes a part of its forward at half the precision."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, rows):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.second(self.first(rows).relu())
        return self.last(hidden.float())


def test_a_student_keeps_the_regions_of_another_precision():
    network, rows = Halved().eval(), torch.randn(4, 6)
    space = inspect(network, rows)
    student = shrink(network, space.full_architecture(), rows)
    assert type(student) is Halved
    assert torch.equal(student(rows), network(rows))
    assert type(shrink(network, space.smallest_architecture(), rows)) is Halved
