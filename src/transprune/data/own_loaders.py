"""Data from loaders of your own, with batches of any structure."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler, Subset

from transprune.errors import DataError
from transprune.runtime.seeds import generator_of
from transprune.runtime.structures import outline, tensors_in

CARRIED_OVER = (
    "collate_fn",
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
)
"""Settings that a loader derived from another one takes over."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoaderData:
    """Batches from loaders of your own: any structure, size, order and augmentation.

    A loader is anything that can be iterated repeatedly, such as a `DataLoader` or a list of batches. `Task.split` says
    what is in a batch.

    Example:
        >>> batches = [(torch.zeros(8, 4), torch.zeros(8, 1))]
        >>> data = LoaderData(train=batches, test=batches, example=torch.zeros(1, 4))
    """

    train: Iterable[Any]
    """Batches to learn from."""

    test: Iterable[Any]
    """Batches to measure on."""

    example: Any
    """A small batch of inputs: a tensor, a tuple of positional arguments, a mapping of named ones, or `Inputs` for
    both, with tensors nested in them; only shapes, dtypes and flags matter."""

    search: tuple[Iterable[Any], Iterable[Any]] | None = None
    """Training batches of a search: for the weights, and for the architecture. None: the samples of `train` are divided
    at random; it must be a `DataLoader` over an indexed data set."""

    def __post_init__(self) -> None:
        named = [("train", self.train), ("test", self.test), *(("search", part) for part in self.search or ())]
        for name, loader in named:
            if isinstance(loader, Iterator) or not hasattr(loader, "__iter__"):
                raise DataError(
                    f"cannot use a {type(loader).__name__} as {name}: it can be iterated once or not at all; expected "
                    "a DataLoader, a list of batches or another loader that starts anew each time"
                )
            if length_of(loader) == 0:
                raise no_batches(name)
        if next(tensors_in(self.example), None) is None:
            raise DataError(
                f"cannot use the example: it is {outline(self.example)}; expected a tensor, or a tuple or dict of what "
                "the network's forward takes, with tensors in it"
            )


def length_of(loader: Iterable[Any]) -> int | None:
    """The length of a loader in batches; None if it has no `len`."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def no_batches(name: str) -> DataError:
    """The error for an empty loader."""
    return DataError(f"cannot use the {name} loader: it gives no batch; expected at least one")


@dataclass(frozen=True)
class SearchLoaders:
    """The training data of a search."""

    weights: Iterable[Any]
    """Batches that the weights learn on."""
    architecture: Iterable[Any]
    """Batches that the architecture learns on."""
    validation: Iterable[Any]
    """The same samples as `architecture`, to measure on; in a fixed shuffled order, because the norms of a supernet use
    the statistics of each batch, which would be unusual in a batch of one class."""


def divide_loader(data: LoaderData, *, fraction: float, seed: int, processes: int = 1) -> SearchLoaders:
    """The loaders of a search: the two that the data has, or its training loader divided at random.

    Args:
        data: The data.
        fraction: Share of the samples for the weights.
        seed: Decides how samples are divided.
        processes: Number of processes that share each batch.

    Raises:
        DataError: The training loader cannot be divided.
    """
    if data.search is not None:
        weights, architecture = data.search
        architecture = architecture if architecture is not weights else _beside(weights)
        return SearchLoaders(weights, architecture, _beside(architecture))
    loader = _divisible(data.train)
    samples = len(loader.dataset)  # type: ignore[arg-type]
    order = torch.randperm(samples, generator=generator_of(seed)).tolist()
    count = min(max(round(fraction * samples), 2), samples - 2)
    first, second = sorted(order[:count]), order[count:]
    return SearchLoaders(
        _part(loader, first, 2 * processes, is_training=True),
        _part(loader, second, 2 * processes, is_training=True),
        _part(loader, second, 2 * processes, is_training=False),
    )


def _beside(loader: Iterable[Any]) -> Iterable[Any]:
    """A copy of a loader that can be iterated at the same time.

    A loader with persistent workers has a single iterator, and a second `iter` would restart the first.
    """
    if not isinstance(loader, DataLoader) or not loader.persistent_workers:
        return loader
    other = copy.copy(loader)
    other._iterator = None  # holds the workers
    return other


def _divisible(loader: Iterable[Any]) -> DataLoader[Any]:
    found = None
    if not isinstance(loader, DataLoader):
        found = f"it is a {type(loader).__name__}, not a DataLoader"
    elif not hasattr(loader.dataset, "__getitem__") or not hasattr(loader.dataset, "__len__"):
        found = f"its data set, a {type(loader.dataset).__name__}, has no places and length"
    elif loader.batch_size is None:
        found = f"it has no batch size, its batches come from a {type(loader.batch_sampler or loader.dataset).__name__}"
    elif type(loader.sampler) not in (RandomSampler, SequentialSampler):
        found = f"it draws its samples by a {type(loader.sampler).__name__} of its own"
    elif len(loader.dataset) < 4:
        found = f"its data set has {len(loader.dataset)} samples, and each part needs two"
    if found is not None:
        raise DataError(
            f"cannot divide the training loader for a search: {found}; give the two parts as "
            "LoaderData(search=(batches for the weights, batches for the architecture), ...)"
        )
    assert isinstance(loader, DataLoader)
    return loader


def _part(loader: DataLoader[Any], places: list[int], least: int, *, is_training: bool) -> DataLoader[Any]:
    """A loader of some samples of another one, shuffled in training.

    No batch has fewer than `least` samples, which the norms of a supernet need. If the last one would, training drops
    it, and measuring uses larger batches.
    """
    size = min(loader.batch_size or 1, len(places))
    has_rest = size >= least and 0 < len(places) % size < least
    while has_rest and not is_training and 0 < len(places) % size < least:
        size += 1
    return like(
        loader,
        Subset(loader.dataset, places),
        batch_size=size,
        shuffle=is_training,
        drop_last=is_training and (loader.drop_last or has_rest),
    )


def like(loader: DataLoader[Any], samples: Dataset[Any], **settings: Any) -> DataLoader[Any]:
    """A loader of other samples or batches with the other settings of `loader`."""
    return DataLoader(samples, **settings, **{name: getattr(loader, name) for name in CARRIED_OVER})
