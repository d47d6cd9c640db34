"""Batches of images, a function of seed and epoch.

An epoch is planned (which images form which batch, and a seed for each batch), fetched as raw images, and normalised.
All randomness comes from the plan, so that any device and any number of worker processes give the same batches.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from transprune.data.augmentation import Augmentation, augment, random_boxes
from transprune.data.encoded_images import Box, View, decode, fit_images, standard_view
from transprune.data.splits import FileSplit, ImageData, MemorySplit, Split
from transprune.errors import DataError, OptionError
from transprune.runtime import choose_device
from transprune.runtime.environment import available_cores
from transprune.runtime.interruption import start_loading

MOST_WORKERS = 16
SHARED_MEMORY = "/dev/shm"
"""What batches of worker processes are handed over in, where the system has it as a disk."""
ON_THEIR_WAY = 2
"""Batches that each worker has ready."""

_log = logging.getLogger("transprune.data")
RawBatch = tuple[Tensor, Tensor]
"""uint8 images [batch, channels, rows, columns] and int64 labels [batch]."""


class Loader:
    """Yields normalised batches; each `iter` is the next epoch.

    `epoch` is the number of the epoch that the next `iter` yields, from 0; set it to continue an earlier training.
    """

    def __init__(
        self, plan: EpochPlan, fetcher: Fetcher, data: ImageData, device: torch.device, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.epoch = 0
        self._share = share
        self._plan = plan
        self._fetcher = fetcher
        self._device = device
        self._image_size = data.image_size
        mean, std = torch.tensor(data.mean), torch.tensor(data.std)
        self._scale = (1 / (255 * std)).view(-1, 1, 1).to(device)
        self._shift = (-mean / std).view(-1, 1, 1).to(device)

    def __len__(self) -> int:
        return len(self._plan.sizes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.epoch += 1
        return self.batches(self.epoch - 1)

    def batches(self, epoch: int, *, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch (from 0), starting with batch `first`."""
        own = (batch.share(*self._share) for batch in self._plan.batches(epoch)[first:])
        return self._normalised([batch for batch in own if batch.count])

    def _normalised(self, batches: list[PlannedBatch]) -> Iterator[tuple[Tensor, Tensor]]:
        for raw, labels in self._fetcher.fetch(batches):
            images = fit_images(raw.to(self._device, non_blocking=True), self._image_size)
            yield (
                images.float().mul_(self._scale).add_(self._shift),
                labels.to(self._device, non_blocking=True),
            )


def make_loader(
    split: Split,
    data: ImageData,
    *,
    batch_size: int,
    train: bool,
    seed: int,
    device: torch.device | str,
    drop_last: bool | None = None,
    workers: int | None = None,
    share: tuple[int, int] = (0, 1),
    least: int | None = None,
) -> Loader:
    """Prepares batches of a split.

    Args:
        split: The images: `data.train`, `data.test` or a part of one.
        data: The data set, for its image size, normalisation and augmentation.
        batch_size: Images per batch; a split with fewer images gives one smaller batch.
        train: Shuffle and augment.
        seed: Decides order and augmentation, together with the epoch number.
        device: Device of the batches, and of images held in memory.
        drop_last: Drop an incomplete last batch, unless it is the only one. By default it is kept, or merged with the
            batch before it if it has fewer than `least` images for each process.
        workers: Processes that decode images in files; by default one for each core, at most 16.
        share: Index of this process, from 0, and number of processes. Each process gets its share of every batch, and
            skips batches in which it has no image.
        least: Images of a batch that each process needs; by default 2 in training, since batch norm cannot learn from
            one image, and 0 otherwise.

    Returns:
        A loader of float32 images [batch, channels, rows, columns] and int64 labels [batch] on `device`.

    Raises:
        OptionError: `batch_size` or `workers` is out of range.
        DataError: The split is empty, of an unknown kind, or too small to share.
    """
    if batch_size < 1 or (workers is not None and workers < 0):
        raise OptionError(
            f"cannot load with batch_size={batch_size} and workers={workers}: "
            "expected at least 1 image in a batch, and 0 or more workers"
        )
    if not len(split):
        raise DataError(f"cannot load batches of {data.name!r}: the split has no images")
    least = share[1] * (least if least is not None else 2 if train else 0)
    merge_below = least if drop_last is None else 0
    sizes = batch_sizes(len(split), batch_size, merge_below=merge_below, drop_last=bool(drop_last))
    if share[1] > 1 and min(sizes) < least:
        raise DataError(
            f"cannot share a batch of {min(sizes)} images of {data.name!r} among {share[1]} processes: expected at "
            f"least {least} images; start fewer processes, or choose a larger batch size"
        )
    plan = EpochPlan(samples=len(split), sizes=sizes, shuffle=train, seed=seed)
    device = choose_device(device)
    return Loader(plan, _fetcher(split, data, train, device, workers), data, device, share)


def _fetcher(split: Split, data: ImageData, train: bool, device: torch.device, workers: int | None) -> Fetcher:
    augmentation = data.augmentation if train else Augmentation()
    if isinstance(split, MemorySplit):
        return MemoryFetcher(split, augmentation, device)
    if isinstance(split, FileSplit):
        batches = FileBatches(split, data.image_size, augmentation)
        workers = min(available_cores(), MOST_WORKERS) if workers is None else workers
        return FileFetcher(batches, workers, pin_memory=device.type == "cuda")
    raise DataError(f"cannot load batches of a {type(split).__name__}: expected a MemorySplit or a FileSplit")


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
        for batch in plan:
            places = batch.places.to(self._images.device, non_blocking=True)
            images = self._images.index_select(0, places)
            generator = torch.Generator().manual_seed(batch.seed)
            # Augment the whole batch, not only this process's share, so that the draws do not depend on the processes.
            changed, labels = augment(images, self._augmentation, generator), self._labels.index_select(0, places)
            yield changed[batch.kept], labels[batch.kept]


class FileFetcher:
    """Decodes and augments in worker processes."""

    def __init__(self, batches: FileBatches, workers: int, *, pin_memory: bool) -> None:
        self._batches = batches
        self._workers = workers
        self._pin_memory = pin_memory

    def fetch(self, plan: list[PlannedBatch]) -> Iterator[RawBatch]:
        if not plan:
            return
        workers = min(self._workers, len(plan))
        fitting = workers_that_fit(max(batch.count for batch in plan) * math.prod(self._batches.image_size), workers)
        if fitting < workers:
            _log.warning(
                "%d of %d processes load data: shared memory (%s) has no room for more of these batches; give it more "
                "(docker run --shm-size=2g), or choose a smaller batch size",
                *(fitting, workers, SHARED_MEMORY),
            )
            self._workers = workers = fitting
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=plan,
            num_workers=workers,
            prefetch_factor=ON_THEIR_WAY if workers else None,
            pin_memory=self._pin_memory,
            generator=torch.Generator(),  # otherwise each epoch would draw from the global random state
        )
        for batch in start_loading(loader):
            if isinstance(batch, DataError):
                raise batch
            yield batch


def workers_that_fit(batch_bytes: int, workers: int) -> int:
    """How many of the worker processes have room for their batches in shared memory; 0: this process loads them.

    Half of what is free is left to other loaders.
    """
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # a system that shares memory otherwise
        return workers
    return min(workers, free // (2 * ON_THEIR_WAY * max(batch_bytes, 1)))


@dataclass(frozen=True)
class FileBatches(Dataset):
    """The batches of a split in files, as worker processes decode them."""

    split: FileSplit
    """The images."""

    image_size: tuple[int, int, int]
    """Channels, rows and columns of a decoded image."""

    augmentation: Augmentation
    """Random changes."""

    def __getitem__(self, batch: PlannedBatch) -> RawBatch | DataError:
        """Decodes one batch.

        The error of an unreadable image is returned, since one raised in a worker would arrive as a page of traceback.
        """
        generator = torch.Generator().manual_seed(batch.seed ^ (batch.kept.start or 0))
        places = batch.places[batch.kept]
        view = standard_view(self.image_size)
        rest = self.augmentation
        if rest.resized_crop:
            # Crop each image at its full size, before it is resized; the other changes apply to the whole batch.
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


@dataclass(frozen=True, eq=False)
class PlannedBatch:
    """One batch before its images are fetched."""

    places: Tensor
    """Indices into the split, int64 [batch]."""

    seed: int
    """Seed of the random changes in this batch."""

    kept: slice = field(default_factory=lambda: slice(None))
    """The images to yield: all, or the share of this process."""

    @property
    def count(self) -> int:
        """The number of images to yield."""
        return len(self.places[self.kept])

    def share(self, index: int, processes: int) -> PlannedBatch:
        """The batch with the share of one of several processes; shares are as equal as possible."""
        if processes == 1:
            return self
        total = len(self.places)
        return replace(self, kept=slice(index * total // processes, (index + 1) * total // processes))


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """How every epoch is divided into batches."""

    samples: int
    """Images in the split."""

    sizes: tuple[int, ...]
    """Images in each batch."""

    shuffle: bool
    """Draw a new order for each epoch; otherwise keep the order of the split."""

    seed: int
    """Decides order and augmentation, together with the epoch number."""

    def batches(self, epoch: int) -> list[PlannedBatch]:
        """The batches of an epoch, in order."""
        order = torch.arange(self.samples)
        if self.shuffle:
            generator = torch.Generator().manual_seed(_mixed(self.seed, epoch))
            order = torch.randperm(self.samples, generator=generator)
        parts = order[: sum(self.sizes)].split(list(self.sizes))
        return [PlannedBatch(part, _mixed(self.seed, epoch, number)) for number, part in enumerate(parts)]


def batch_sizes(samples: int, batch_size: int, *, merge_below: int, drop_last: bool) -> tuple[int, ...]:
    """The number of images in each batch of an epoch.

    Args:
        samples: Images in the split.
        batch_size: Images in a full batch.
        merge_below: Merge the last batch with the one before it if it has fewer images than this.
        drop_last: Drop an incomplete last batch, unless it is the only one.
    """
    full, rest = divmod(samples, batch_size)
    if not full:
        return (rest,)
    sizes = [batch_size] * full
    if rest < merge_below:
        sizes[-1] += rest
    elif rest and not drop_last:
        sizes.append(rest)
    return tuple(sizes)


def _mixed(*numbers: int) -> int:
    # A hash, so that neighbouring seeds and epochs give unrelated draws.
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big")
