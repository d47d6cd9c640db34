"""Which images form which batch of an epoch: a pure function of the seed and the epoch number."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PlannedBatch:
    """One batch before its images are fetched."""

    places: Tensor
    """Places in the split, int64 [batch]."""

    seed: int
    """Seed of the random changes in this batch."""

    kept: slice = field(default_factory=lambda: slice(None))
    """Which of the images are wanted: all, or the share of one of several processes."""

    @property
    def count(self) -> int:
        """How many are wanted."""
        return len(self.places[self.kept])

    def share(self, index: int, processes: int) -> PlannedBatch:
        """What one of several processes gets of it; the shares are as equal as they can be."""
        if processes == 1:
            return self
        total = len(self.places)
        return replace(self, kept=slice(index * total // processes, (index + 1) * total // processes))


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """How every epoch is cut into batches."""

    samples: int
    """Images in the split."""

    sizes: tuple[int, ...]
    """Images in each batch."""

    shuffle: bool
    """Draw a new order for each epoch; else keep the order of the split."""

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
    """How many images each batch of an epoch holds.

    Args:
        samples: Images in the split.
        batch_size: Images in a full batch.
        merge_below: Let fewer last images than this join the batch before them.
        drop_last: Leave an incomplete last batch out, unless it is the only one.
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
    # A hash, so that neighbouring seeds and epochs share nothing.
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big")
