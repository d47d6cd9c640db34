"""From planned batches to raw images: by tensor operations from memory, by worker processes from files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from transprune.data.augmentation import Augmentation, augment, random_boxes
from transprune.data.batch_plan import PlannedBatch
from transprune.data.decoding import Box, View, decode, standard_view
from transprune.data.splits import FileSplit, MemorySplit
from transprune.data.worker_signals import start_loading
from transprune.errors import DataError

RawBatch = tuple[Tensor, Tensor]
"""uint8 images [batch, channels, rows, columns] and int64 labels [batch]."""


class Fetcher(Protocol):
    """Fetches the images of planned batches."""

    def fetch(self, plan: list[PlannedBatch]) -> Iterator[RawBatch]:
        """Yields the batches in order."""


class MemoryFetcher:
    """Gathers and augments whole batches on the device that holds the images."""

    def __init__(self, split: MemorySplit, augmentation: Augmentation, device: torch.device) -> None:
        self._images = split.images.to(device)
        self._labels = split.labels.to(device)
        self._augmentation = augmentation

    def fetch(self, plan: list[PlannedBatch]) -> Iterator[RawBatch]:
        """Yields the batches in order."""
        for batch in plan:
            places = batch.places.to(self._images.device, non_blocking=True)
            images = self._images.index_select(0, places)
            generator = torch.Generator().manual_seed(batch.seed)
            # The whole batch, so that every process changes an image as one process alone would.
            changed, labels = augment(images, self._augmentation, generator), self._labels.index_select(0, places)
            yield changed[batch.kept], labels[batch.kept]


class FileFetcher:
    """Decodes and augments in worker processes."""

    def __init__(self, batches: FileBatches, workers: int, *, pin_memory: bool) -> None:
        self._batches = batches
        self._workers = workers
        self._pin_memory = pin_memory

    def fetch(self, plan: list[PlannedBatch]) -> Iterator[RawBatch]:
        """Yields the batches in order."""
        if not plan:
            return
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=plan,
            num_workers=min(self._workers, len(plan)),
            pin_memory=self._pin_memory,
            generator=torch.Generator(),  # else each epoch would draw from the caller's random state
        )
        for batch in start_loading(loader):
            if isinstance(batch, DataError):
                raise batch
            yield batch


@dataclass(frozen=True)
class FileBatches(Dataset):
    """The batches of a split in files: what a worker process runs."""

    split: FileSplit
    """Which images."""

    image_size: tuple[int, int, int]
    """Channels, rows and columns of a decoded image."""

    augmentation: Augmentation
    """Random changes."""

    def __getitem__(self, batch: PlannedBatch) -> RawBatch | DataError:
        """Decodes one batch.

        An unreadable image is returned as its error, because an exception that leaves a worker process becomes a page
        of traceback.
        """
        generator = torch.Generator().manual_seed(batch.seed ^ (batch.kept.start or 0))
        places = batch.places[batch.kept]
        view = standard_view(self.image_size)
        rest = self.augmentation
        if rest.resized_crop:
            # Cut from the image at its full size; what is left to do is the same for the whole batch.
            view, rest = _random_view(generator), replace(rest, resized_crop=False)
        rows = self.split.rows[places].tolist()
        try:
            images = torch.stack([decode(self.split.files, row, self.image_size, view) for row in rows])
        except DataError as error:
            return error
        return augment(images, rest, generator), self.split.labels[places]


def _random_view(generator: torch.Generator) -> View:
    def view(rows: int, columns: int) -> Box:
        left, top, right, bottom = random_boxes(1, rows, columns, generator)[0].tolist()
        return (left, top, right, bottom)

    return view
