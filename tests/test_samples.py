"""What was traced holds for any number of samples, or the model is refused before anything is trained."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transprune.errors import ModelError
from transprune.reading.inspection import inspect
from transprune.shrinking import shrink as shrink_module
from transprune.shrinking.shrink import shrink
from transprune.shrinking.traced_network import TracedNetwork
from transprune.tas.sampling import Selection
from transprune.tas.supernet import Supernet


class Between(nn.Module):
    """A function of features [batch, 4, 16] between layers; it gives [batch, 16]."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.function(self.second(self.first(inputs).relu())).relu())


def tokens(batch: int) -> Tensor:
    """Inputs [batch, 4, 6]."""
    return torch.randn(batch, 4, 6, generator=torch.Generator().manual_seed(1))


def at_its_largest(features: Tensor) -> Tensor:
    return features[torch.arange(features.shape[0]), features.sum(2).argmax(1)]


def at_its_largest_behind_all(features: Tensor) -> Tensor:
    return features.transpose(1, 2)[torch.arange(len(features)), :, features.sum(2).argmax(1)]


def numbered(features: Tensor) -> Tensor:
    return features.mean(1) + torch.linspace(0, 0, features.shape[0])[:, None]


def times_the_identity(features: Tensor) -> Tensor:
    return torch.eye(len(features)) @ features.mean(1)


def flat_numbers(features: Tensor) -> Tensor:
    batch, length, width = features.shape
    places = torch.arange(batch).view(-1, 1) * length + features.sum(2).topk(2, dim=1).indices
    return features.reshape(batch * length, width)[places].mean(1)


def gathered(features: Tensor) -> Tensor:
    return features.gather(1, torch.ones(features.shape[0], 1, features.shape[2], dtype=torch.long)).squeeze(1)


def random_order(features: Tensor) -> Tensor:
    order = torch.rand(features.shape[0], features.shape[1]).argsort(1)
    return features.gather(1, order.unsqueeze(2).expand(-1, -1, features.shape[2]))[:, 0]


def noisy(features: Tensor) -> Tensor:
    return (features + torch.randn(features.shape[0], 1, 1)).mean(1)


def noisy_by_channel(features: Tensor) -> Tensor:
    return (features + torch.randn(features.shape)).mean(1)


def some_left_out(features: Tensor) -> Tensor:
    return (features * torch.randint(0, 2, (features.shape[0], 1, 1))).mean(1)


def moved_by_a_grid(features: Tensor) -> Tensor:
    rows = features.transpose(1, 2).unsqueeze(2)
    matrices = torch.eye(2, 3).repeat(len(rows), 1, 1) * 0.5
    return F.grid_sample(rows, F.affine_grid(matrices, rows.shape, align_corners=False), align_corners=False).mean(
        (2, 3)
    )


def repeated(features: Tensor) -> Tensor:
    return (features + torch.arange(4.0).view(1, 4, 1).repeat_interleave(features.shape[0], 0)).mean(1)


def repeated_for_each_head(features: Tensor) -> Tensor:
    heads = features.repeat_interleave(2, dim=0, output_size=2 * features.shape[0])
    return heads.unflatten(0, (features.shape[0], 2)).mean((1, 2))


def samples_second(features: Tensor) -> Tensor:
    queries = torch.ones(2, 1, 4).repeat(1, features.shape[0], 1)
    return torch.einsum("qbt,btc->qbc", queries, features).mean(0)


def table_for_each(features: Tensor) -> Tensor:
    tables = torch.arange(4.0)[:, None].repeat(features.shape[0], 1)
    return (features + tables.view(features.shape[0], 4, 1)).mean(1)


def read_for_its_shape(features: Tensor) -> Tensor:
    return features.mean(1) + torch.linspace(0, 0, features[:, :, 3].shape[0])[:, None]


FOLLOW = (
    *(at_its_largest, at_its_largest_behind_all, numbered, times_the_identity, flat_numbers, gathered, random_order),
    *(noisy, noisy_by_channel, some_left_out, moved_by_a_grid, repeated, samples_second),
    *(table_for_each, read_for_its_shape, repeated_for_each_head),
)


@pytest.mark.parametrize("function", FOLLOW, ids=lambda function: function.__name__)
def test_sizes_that_are_the_number_of_samples_follow_it(function, monkeypatch):
    network, inputs = Between(function).eval(), tokens(1)
    space = inspect(network, inputs)
    assert [group.name for group in space.groups] == ["first", "second"]
    supernet = Supernet(network, space, inputs).eval()
    own = shrink(network, space.smallest_architecture(), inputs)
    assert type(own) is Between
    monkeypatch.setattr(shrink_module, "_disagreement", lambda *_: "the test asks for it")
    traced = shrink(network, space.smallest_architecture(), inputs)
    for batch in (1, 2, 3, 5, 11):
        for one, other in (
            (own, traced),
            (network, lambda x: supernet(Selection.of(space, space.full_architecture()), x)),
        ):
            torch.manual_seed(0)
            expected = one(tokens(batch))
            torch.manual_seed(0)
            torch.testing.assert_close(other(tokens(batch)), expected)


class Kept(nn.Module):
    """Adds what it keeps for each of 64 samples: a state, or a shift."""

    def __init__(self, is_recurrent: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.before, self.cell, self.last = nn.Linear(6, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 5)
        self.register_buffer("states", torch.randn(1, 64, 8, generator=generator))
        self.is_recurrent = is_recurrent

    def forward(self, inputs: Tensor) -> Tensor:
        features, count = self.before(inputs), len(inputs)
        if self.is_recurrent:
            return self.last(self.cell(features, self.states[:, :count])[0])
        return self.last(features + self.states[0].narrow(0, 0, count)[:, None])


@pytest.mark.parametrize("is_recurrent", [True, False])
def test_what_is_kept_for_each_sample_follows_their_number_up_to_all_of_it(is_recurrent):
    network = Kept(is_recurrent).eval()
    space = inspect(network, tokens(1))
    assert [group.name for group in space.groups] == (["before", "cell"] if is_recurrent else ["before"])
    supernet = Supernet(network, space, tokens(1)).eval()
    own = shrink(network, space.full_architecture(), tokens(1)).eval()
    for batch in (1, 3, 40, 64):
        found = supernet(Selection.of(space, space.full_architecture()), tokens(batch))
        torch.testing.assert_close(found, network(tokens(batch)))
        torch.testing.assert_close(own(tokens(batch)), found)


class Recurrent(nn.Module):
    """A recurrent layer, whose first state has the samples on its second axis."""

    def __init__(self, kind: type[nn.RNNBase], is_batch_first: bool) -> None:
        super().__init__()
        self.axis = 1 if is_batch_first else 0
        self.before, self.last = nn.Linear(6, 8), nn.Linear(16, 5)
        self.inside, self.after = kind(8, 8, 2, batch_first=is_batch_first, bidirectional=True), nn.Linear(16, 16)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.before(inputs) if self.axis else self.before(inputs).transpose(0, 1)
        return self.last(self.after(self.inside(features)[0].mean(self.axis)).relu())


@pytest.mark.parametrize("is_batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_first_state_of_a_recurrent_layer_follows_the_samples(kind, is_batch_first):
    network = Recurrent(kind, is_batch_first).eval()
    space = inspect(network, tokens(1))
    supernet = Supernet(network, space, tokens(1)).eval()
    for batch in (1, 2, 3):
        found = supernet(Selection.of(space, space.full_architecture()), tokens(batch))
        torch.testing.assert_close(found, network(tokens(batch)))


def divided(features: Tensor) -> Tensor:
    return features.mean(1) * (1 + 1 / features.shape[0])


def taken_in_turn(features: Tensor) -> Tensor:
    return torch.stack([sample.mean(0) for sample in features])


def split_into_samples(features: Tensor) -> Tensor:
    return torch.cat(features.mean(1).split(1))


def by_strides(features: Tensor) -> Tensor:
    return features.contiguous().as_strided((features.shape[0], 16), (64, 1))


REFUSED = ((divided, "mul"), (taken_in_turn, "getitem"), (split_into_samples, "split"), (by_strides, "as_strided"))


@pytest.mark.parametrize(("function", "operator"), REFUSED, ids=lambda each: getattr(each, "__name__", each))
def test_a_number_of_samples_that_is_written_down_is_refused_with_its_line(function, operator):
    line = Between.forward.__code__.co_firstlineno + 1  # torch keeps the lines of forwards
    message = rf"Between: its forward writes down how many samples .* at '{operator}' \(test_samples\.py:{line}\)"
    with pytest.raises(ModelError, match=message):
        inspect(Between(function), tokens(8))


def test_the_check_leaves_the_callers_model_its_inputs_and_generators_alone():
    network, inputs = Between(noisy).train(), tokens(2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[2]
    inspect(network, inputs)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(inputs, tokens(2))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[2]) == states[1:]


class Insisting(nn.Module):
    """Takes one number of samples only."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.inside, self.outside = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) != self.samples:
            raise ValueError("another number of samples")
        return self.outside(self.inside(inputs).relu().sum(1) / self.samples)


@pytest.mark.parametrize("samples", [2, 7, 11])
def test_a_model_that_takes_one_number_of_samples_only_is_let_pass(samples):
    network = Insisting(samples).eval()
    space = inspect(network, tokens(samples))
    student = shrink(network, space.smallest_architecture(), tokens(samples))
    assert student(tokens(samples)).shape == (samples, 5)


class InPairs(nn.Module):
    """Compares one half of the samples with the other, so that their number must be even."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.inside(inputs).mean(1).unflatten(0, (-1, 2))
        return self.outside(features[:, 0] - features[:, 1])


def test_samples_that_come_in_pairs_are_not_taken_for_single_ones():
    with pytest.raises(ModelError, match="cannot read the model InPairs: its forward writes down how many samples"):
        inspect(InPairs(), tokens(2))


def test_a_network_on_the_meta_device_is_read_without_being_run():
    with torch.device("meta"):
        network = Between(divided)
        assert inspect(network, torch.zeros(2, 4, 6)).groups


def test_a_traced_student_runs_at_any_number_of_samples():
    network = Between(lambda features: at_its_largest(features.view(-1, 4, 16))).eval()
    student = shrink(network, inspect(network, tokens(1)).smallest_architecture(), tokens(1))
    assert isinstance(student, TracedNetwork)
    together = student(tokens(5))
    apart = torch.cat([student(sample) for sample in tokens(5).split(1)])
    torch.testing.assert_close(together, apart)
