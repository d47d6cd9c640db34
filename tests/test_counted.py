"""What a network costs: the operators of a trace against a count of the network itself, and both against paper."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import oracles
from transprune.errors import ModelError
from transprune.reading.inspection import inspect
from transprune.reading.macs import count_macs
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


@pytest.mark.parametrize("name", ["einsum of three", "multi_dot", "addbmm", "cdist"])
def test_what_no_rule_says_is_a_constant_that_is_shown(name):
    network, example, macs = network_of(name)
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
    assert layer.hidden_size == architecture.widths[path]
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
    assert macs(lambda first, second: torch.addmv(first[0, :, 0], first[0], second[0, 0])) == 24
    assert macs(lambda first, second: nn.functional.bilinear(first, first, torch.ones(5, 6, 6), torch.ones(5))) == 740
    assert macs(lambda first, second: torch.einsum("bti,bsi", first, second)) == 4 * 3 * 6
    assert macs(lambda first, second: torch.conv_tbc(first, torch.ones(1, 6, 2), torch.ones(2))) == 4 * 2 * 7
    assert macs(lambda first, second: nn.functional.conv3d(first[:, None, None], torch.ones(2, 1, 1, 1, 1))) == 48


def test_counting_calls_nothing_that_a_class_may_have_overridden():
    class Acting(nn.Sequential):
        def train(self, mode=True):
            raise RuntimeError("training begins")

    network = Acting(nn.Linear(12, 16), nn.Linear(16, 5))
    before = copy.deepcopy(network.state_dict())
    assert count_macs(network, TOKENS) == math.prod((9, 16)) * 13 + 9 * 5 * 17
    assert inspect(network, TOKENS).groups
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
