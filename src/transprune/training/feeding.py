"""Batches as the loops want them: taken apart by the task, on the device, from data of either kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from transprune.data import (
    ImageData,
    Loader,
    LoaderData,
    SearchLoaders,
    Split,
    divide_loader,
    length_of,
    make_loader,
    no_batches,
    split_halves,
)
from transprune.errors import DataError
from transprune.numerics.structures import on_device, outline, tensors_in
from transprune.training.tasks import Task

Data = ImageData | LoaderData
"""What a network can be trained on."""


class Batch(NamedTuple):
    """One batch."""

    inputs: tuple[Any, ...]
    """Positional arguments of the network."""
    targets: Any
    """What the loss compares its outputs with."""

    @property
    def samples(self) -> int:
        """How many there are: the first dimension of the first input tensor; 1 without one."""
        first = next(tensors_in(self.inputs), None)
        return len(first) if first is not None and first.dim() else 1


class Feed:
    """The batches of a loader, each taken apart by a task and moved to a device.

    Args:
        loader: Yields batches, anew for each `iter`.
        task: Says how to take them apart.
        device: Where they are wanted.
        part: What to call the loader in a message, such as `train`.
    """

    def __init__(self, loader: Iterable[Any], task: Task, device: torch.device, part: str) -> None:
        self._loader, self._task, self._device, self._part = loader, task, device, part

    def __len__(self) -> int:
        """How many batches; a loader that does not say is read once to count."""
        length = length_of(self._loader)
        return sum(1 for _ in self) if length is None else length

    def __iter__(self) -> Iterator[Batch]:
        is_empty = True
        for batch in self._loader:
            is_empty = False
            yield on_device(self._apart(batch), self._device)
        if is_empty:
            raise no_batches(self._part)

    def _apart(self, batch: Any) -> Batch:
        try:
            inputs, targets = self._task.split(batch)
        except Exception as error:  # a user's split may raise anything
            raise DataError(
                f"cannot take apart a batch of the {self._part} loader, {outline(batch)}: "
                f"{error if isinstance(error, DataError) else repr(error)}"
            ) from error
        return Batch(inputs if isinstance(inputs, tuple) else (inputs,), targets)


class SearchFeeds(NamedTuple):
    """The training data of a search."""

    weights: Feed
    """Batches that the weights learn on."""
    architecture: Feed
    """Batches that the architecture learns on."""
    validation: Feed
    """The same samples as `architecture`, to measure on."""


def feed(
    data: Data, part: Literal["train", "test"], task: Task, *, batch_size: int, seed: int, device: torch.device
) -> Feed:
    """Batches to learn from or to measure on.

    Args:
        data: The data.
        part: Which of its parts.
        task: Says how to take a batch apart.
        batch_size: Of `ImageData`; loaders of one's own decide for themselves.
        seed: Order and augmentation of `ImageData`.
        device: Where they are wanted.

    Raises:
        DataError: The data is of no known kind.
    """
    loader: Iterable[Any]
    if isinstance(data, LoaderData):
        loader = data.train if part == "train" else data.test
    else:
        images, is_train = _images(data), part == "train"
        split = images.train if is_train else images.test
        loader = make_loader(split, images, batch_size=batch_size, train=is_train, seed=seed, device=device)
    return Feed(loader, task, device, part)


def search_feeds(
    data: Data, task: Task, *, batch_size: int, weights_share: float, seed: int, device: torch.device
) -> SearchFeeds:
    """The training data in two parts, for a search; see `feed`.

    Args:
        data: The data.
        task: Says how to take a batch apart.
        batch_size: Of `ImageData`.
        weights_share: Share of the samples that the weights learn on, where the data does not come in two parts.
        seed: Decides which samples go where.
        device: Where they are wanted.

    Raises:
        DataError: The data is of no known kind, or cannot be divided.
    """
    if isinstance(data, LoaderData):
        loaders = divide_loader(data, fraction=weights_share, seed=seed)
    else:
        loaders = _image_loaders(_images(data), batch_size, weights_share, seed, device)
    return SearchFeeds(
        Feed(loaders.weights, task, device, "weights"),
        Feed(loaders.architecture, task, device, "architecture"),
        Feed(loaders.validation, task, device, "validation"),
    )


def example_of(data: Data) -> tuple[Tensor, ...]:
    """Inputs of the network, on the CPU, whose values do not matter."""
    if isinstance(data, LoaderData):
        example = data.example if isinstance(data.example, tuple) else (data.example,)
        return tuple(tensor.cpu() for tensor in example)
    return (torch.zeros(1, *_images(data).image_size),)


def _image_loaders(
    images: ImageData, batch_size: int, weights_share: float, seed: int, device: torch.device
) -> SearchLoaders:
    def loader(split: Split, seed: int, *, train: bool) -> Loader:
        return make_loader(split, images, batch_size=batch_size, train=train, seed=seed, device=device)

    weights, architecture = split_halves(images.train, fraction=weights_share, seed=seed)
    return SearchLoaders(
        loader(weights, seed, train=True),
        loader(architecture, seed + 1, train=True),
        loader(architecture, seed, train=False),
    )


def _images(data: Data) -> ImageData:
    if not isinstance(data, ImageData):
        raise DataError(f"cannot use data of the kind {type(data).__name__}: expected ImageData or LoaderData")
    return data
