"""Data from ordinary loaders: what a loader may be, and how one is divided for a search."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset, WeightedRandomSampler

from transprune.data import LoaderData, divide_loader
from transprune.errors import DataError
from transprune.options import SearchOptions, TrainingOptions
from transprune.searching.search import search
from transprune.training.batches import Feed
from transprune.training.evaluation import evaluate
from transprune.training.loop import Setup
from transprune.training.tasks import Task, regression
from transprune.training.train import estimate_statistics, train

EXAMPLE = torch.zeros(1, 2)


def numbered(samples):
    """Samples that carry their number: inputs [samples, 2], targets [samples, 1]."""
    number = torch.arange(float(samples))[:, None]
    return TensorDataset(number.repeat(1, 2), number)


def data_of(train, test=None, search=None):
    return LoaderData(train=train, test=test if test is not None else train, search=search, example=EXAMPLE)


def numbers_in(loader):
    return [[int(number) for number in targets] for _, targets in loader]


def flat(batches):
    return [number for batch in batches for number in batch]


def divided(loader, fraction=0.5, seed=0):
    return divide_loader(data_of(loader), fraction=fraction, seed=seed)


class Endless(IterableDataset):
    """Two batches, and no length."""

    def __iter__(self):
        return iter([(torch.randn(4, 2), torch.randn(4, 1)) for _ in range(2)])


@pytest.mark.parametrize(
    ("samples", "batch_size", "fraction"), [(40, 8, 0.5), (41, 8, 0.25), (10, 64, 0.5), (4, 2, 0.9)]
)
def test_the_parts_of_a_loader_hold_every_sample_once_in_the_shares_asked_for(samples, batch_size, fraction):
    parts = divided(DataLoader(numbered(samples), batch_size), fraction)
    weights, validation = parts.weights.dataset, parts.validation.dataset
    assert sorted([*weights.indices, *validation.indices]) == list(range(samples))
    assert abs(len(weights) - fraction * samples) <= 2
    assert flat(numbers_in(parts.validation)) == validation.indices
    assert set(flat(numbers_in(parts.architecture))) <= set(validation.indices)


def test_the_seed_decides_which_samples_go_where():
    loader = DataLoader(numbered(40), 8)
    first, again, other = (divided(loader, seed=seed).weights.dataset.indices for seed in (0, 0, 1))
    assert first == again != other


def test_training_parts_are_shuffled_and_the_validation_part_is_not():
    parts = divided(DataLoader(numbered(40), 8))
    assert numbers_in(parts.weights) != numbers_in(parts.weights)
    assert numbers_in(parts.validation) == numbers_in(parts.validation)


def test_the_validation_part_is_mixed_where_the_samples_stand_in_order():
    validation = flat(numbers_in(divided(DataLoader(numbered(40), 8)).validation))
    assert validation != sorted(validation)


@pytest.mark.parametrize(("samples", "sizes"), [(18, [4, 4]), (20, [4, 4, 2])])
def test_a_training_part_has_no_batch_of_one_sample(samples, sizes):
    parts = divided(DataLoader(numbered(samples), 4))
    assert [len(batch) for batch in numbers_in(parts.weights)] == sizes
    assert sum(len(batch) for batch in numbers_in(parts.validation)) == samples // 2


def test_the_parts_collate_as_the_loader_does():
    def as_dict(samples):
        return {"count": len(samples)}

    parts = divided(DataLoader(numbered(16), 4, collate_fn=as_dict))
    assert [batch["count"] for part in (parts.weights, parts.validation) for batch in part] == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        ([(torch.zeros(4, 2), torch.zeros(4, 1))], "it is a list, not a DataLoader"),
        (DataLoader(Endless(), batch_size=None), "its data set, a Endless, has no places and length"),
        (
            DataLoader(numbered(8), 4, sampler=WeightedRandomSampler([1.0] * 8, 8)),
            "by a WeightedRandomSampler of its own",
        ),
        (DataLoader(numbered(8), batch_sampler=[[0, 1], [2, 3]]), "no batch size, its batches come from a list"),
        (DataLoader(numbered(8), batch_size=None), "no batch size, its batches come from a TensorDataset"),
        (DataLoader(numbered(3), 1), "its data set has 3 samples, and each part needs two"),
    ],
)
def test_a_loader_that_cannot_be_divided_is_refused_with_the_way_out(loader, reason):
    with pytest.raises(DataError, match=f"cannot divide the training loader for a search: .*{reason}.*search="):
        divided(loader)


def test_two_given_parts_are_used_as_they_are():
    first, second = [(torch.zeros(4, 2), torch.zeros(4, 1))], [(torch.ones(4, 2), torch.ones(4, 1))]
    parts = divide_loader(data_of(first, search=(first, second)), fraction=0.9, seed=0)
    assert (parts.weights, parts.architecture, parts.validation) == (first, second, second)


@pytest.mark.parametrize("part", ["train", "test", "search"])
def test_what_can_be_iterated_only_once_is_refused(part):
    batches = [(torch.zeros(4, 2), torch.zeros(4, 1))]
    given = {"train": batches, "test": batches}
    given[part] = (batches, iter(batches)) if part == "search" else iter(batches)
    with pytest.raises(DataError, match=f"cannot use a list_iterator as {part}: it can be iterated once"):
        LoaderData(**given, example=EXAMPLE)


OPTIONS = TrainingOptions(epochs=2, warm_up_epochs=0, learning_rate=0.01)


class Silent(IterableDataset):
    """No batch, and no length."""

    def __iter__(self):
        return iter([])


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("empty", [[], DataLoader(Silent(), batch_size=None)], ids=["list", "without length"])
def test_a_loader_without_batches_is_named(part, empty):
    batches = [(torch.zeros(4, 2), torch.zeros(4, 1))]
    given = {"train": batches, "test": batches, part: empty}
    with pytest.raises(DataError, match=f"cannot use the {part} loader: it gives no batch; expected at least one"):
        train(nn.Linear(2, 1), LoaderData(**given, example=EXAMPLE), OPTIONS, task=regression())


def test_data_of_an_unknown_kind_is_refused():
    with pytest.raises(DataError, match="data of the kind int: expected ImageData, LoaderData, a DataLoader"):
        train(nn.Linear(2, 1), 8, OPTIONS, task=regression())


def test_a_loader_without_a_length_trains_and_its_learning_rate_still_ends_at_zero():
    seen = []
    loader = DataLoader(Endless(), batch_size=None)
    train(nn.Linear(2, 1), data_of(loader), OPTIONS, task=Task(loss=F.mse_loss), setup=Setup(on_epoch=seen.append))
    assert [figures["learning_rate"] > 0 for figures in seen] == [True, True]
    assert seen[1]["learning_rate"] < seen[0]["learning_rate"]


def test_the_same_seed_gives_the_same_weights_whatever_the_callers_random_state():
    data = data_of(DataLoader(TensorDataset(torch.randn(32, 2), torch.randn(32, 1)), 8, shuffle=True))
    torch.manual_seed(0)
    network = nn.Linear(2, 1)
    weights = []
    for seed in (3, 3, 4):
        torch.rand(seed + len(weights))  # moves the caller's random state
        weights.append(train(network, data, OPTIONS, task=regression(), setup=Setup(seed=seed)).weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_weights_and_the_architecture_of_a_search_learn_on_their_own_loaders():
    seen = {"weights": 0, "architecture": 0}

    class Counted:
        """Two batches; counts how often they are read."""

        def __init__(self, part):
            self.part = part

        def __iter__(self):
            seen[self.part] += 1
            return iter([(torch.ones(4, 2), torch.ones(4, 1))] * 2)

        def __len__(self):
            return 2

    data = data_of([(torch.ones(4, 2), torch.ones(4, 1))], search=(Counted("weights"), Counted("architecture")))
    network = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
    options = SearchOptions(epochs=3, learning_rate=0.01)
    search(network, data, "params=0.5", options, task=regression())
    assert seen == {"weights": 3, "architecture": 6}, "three passes each, and three validations"


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_the_parts_of_a_search_may_be_one_loader_and_are_iterated_all_at_once(persistent_workers):
    loader = DataLoader(torch.arange(4), 1, num_workers=1, persistent_workers=persistent_workers)
    parts = divide_loader(data_of(EXAMPLE, search=(loader, loader)), fraction=0.5, seed=0)
    rows = zip(parts.weights, parts.architecture, parts.validation, strict=True)
    assert [tuple(map(int, row)) for row in rows] == [(place,) * 3 for place in range(4)]


def test_batch_norms_get_the_statistics_of_the_training_loader():
    images, labels = torch.randn(32, 1, 4, 4), torch.zeros(32)
    data = LoaderData(
        train=DataLoader(TensorDataset(images, labels), 32), test=[(images + 9, labels)], example=images[:1]
    )
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 1))
    estimated = estimate_statistics(network, data, task=regression())
    assert torch.allclose(estimated[0].running_mean, images.mean())
    assert torch.equal(network[0].running_mean, torch.zeros(1))


def test_evaluation_reads_the_test_loader_alone():
    data = LoaderData(train=[None], test=[(torch.zeros(4, 2), torch.ones(4, 1))], example=EXAMPLE)
    network = nn.Linear(2, 1)
    nn.init.zeros_(network.bias)
    assert evaluate(network, data, task=regression()).mse == 1.0


@pytest.mark.parametrize(
    ("samples", "processes", "sizes"), [(34, 1, [9, 8]), (40, 1, [8, 8, 4]), (38, 4, [10, 9]), (6, 4, [3])]
)
def test_a_validation_part_has_no_batch_too_small_for_a_norm(samples, processes, sizes):
    loader = DataLoader(numbered(samples), 8)
    parts = divide_loader(data_of(loader), fraction=0.5, seed=0, processes=processes)
    assert [len(batch) for batch in numbers_in(parts.validation)] == sizes


def test_a_supernet_is_measured_on_samples_that_leave_one_over():
    network = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    data = data_of(DataLoader(numbered(34), 8, shuffle=True))
    found = search(network, data, "macs=0.6", SearchOptions(epochs=1, batch_size=8), task=regression())
    assert found.actual <= found.target


@pytest.mark.parametrize("rows", [8, 6])
def test_batches_of_other_sizes_than_the_example_are_spoken_of(rows, capsys):
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))
    samples = TensorDataset(torch.zeros(16, 1, rows, rows), torch.zeros(16, 1))
    loader = DataLoader(samples, 4)
    data = LoaderData(train=loader, test=loader, example=torch.zeros(1, 1, 8, 8))
    search(network, data, "macs=0.6", SearchOptions(epochs=1, batch_size=4), task=regression())
    said = "hold samples of the shapes [[1, 6, 6]], the example of [[1, 8, 8]]"
    assert (said in capsys.readouterr().err) == (rows == 6)


def test_a_distributed_sampler_draws_another_order_in_every_epoch():
    sampler = DistributedSampler(numbered(16), num_replicas=2, rank=0)
    batches = Feed(DataLoader(numbered(16), 4, sampler=sampler), regression(), torch.device("cpu"), "train")
    first, second = ([int(number) for batch in batches for number in batch.targets] for _ in range(2))
    assert sorted(first) != first != second
