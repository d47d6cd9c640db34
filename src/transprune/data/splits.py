"""The splits of a data set (images with labels), and the data set itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol, Self, TypeVar

import torch
from torch import Tensor

from transprune.data.augmentation import Augmentation
from transprune.errors import DataError, OptionError
from transprune.runtime.seeds import generator_of


class Split(Protocol):
    """Images with labels: a training set, a test set, or a part of one."""

    @property
    def labels(self) -> Tensor:
        """Class numbers, int64 [samples], or 0 and 1 for each class, float32 [samples, classes]."""

    def __len__(self) -> int:
        """The number of images."""

    def subset(self, indices: Tensor | Sequence[int]) -> Self:
        """The images at these indices, in this order."""


AnySplit = TypeVar("AnySplit", bound=Split)


@dataclass(frozen=True, eq=False)
class MemorySplit:
    """Images held decoded in memory."""

    images: Tensor
    """uint8 [samples, channels, rows, columns]."""

    labels: Tensor
    """Class numbers, int64 [samples]; or 1 for each class that an image has, 0 for the others, float32 [samples,
    classes]."""

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(
                f"cannot hold images of type {self.images.dtype} and shape {list(self.images.shape)}: "
                "expected uint8 [samples, channels, rows, columns]"
            )
        _check_labels(self.labels, len(self.images))

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor | Sequence[int]) -> Self:
        places = torch.as_tensor(indices, dtype=torch.int64)
        return type(self)(self.images[places], self.labels[places])


class ImageFiles(Protocol):
    """Encoded images by row number, each with a name for messages."""

    def __len__(self) -> int:
        """The number of images."""

    def name(self, row: int) -> str:
        """The name of an image in messages."""

    def open(self, row: int) -> BinaryIO:
        """Opens an encoded image for reading."""


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Images kept as encoded files and decoded as needed."""

    files: ImageFiles
    """Encoded images."""

    rows: Tensor
    """Rows of `files`, int64 [samples]."""

    labels: Tensor
    """Class numbers, int64 [samples]; or 1 for each class that an image has, 0 for the others, float32 [samples,
    classes]."""

    def __post_init__(self) -> None:
        _check_labels(self.labels, len(self.rows))

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor | Sequence[int]) -> Self:
        places = torch.as_tensor(indices, dtype=torch.int64)
        return type(self)(self.files, self.rows[places], self.labels[places])


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedData:
    """The contents of a folder for classification, before any image is decoded."""

    name: str
    train: FileSplit
    test: FileSplit
    classes: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """As `ImageData.left_out`."""
    is_labelled: bool = True
    """As `ImageData.is_labelled`."""
    divided: str = ""
    """As `ImageData.divided`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData:
    """A data set for classification: images, classes, and how images become inputs of a network."""

    name: str
    """Its name in reports."""

    train: Split
    """Images to learn from."""

    test: Split
    """Images to measure accuracy on."""

    classes: tuple[str, ...]
    """The name of each class, in the order of the labels."""

    image_size: tuple[int, int, int]
    """Channels, rows and columns of the images that a loader yields."""

    mean: tuple[float, ...]
    """Mean of each channel, for pixels from 0 to 1."""

    std: tuple[float, ...]
    """Standard deviation of each channel, for pixels from 0 to 1."""

    augmentation: Augmentation
    """Random changes of the training images."""

    left_out: Mapping[str, int] = field(default_factory=dict)
    """The number of files that are not images by their endings, for each ending; without hidden files."""

    is_labelled: bool = True
    """Whether the labels have a meaning; if not, accuracy can be neither trained nor measured."""

    divided: str = ""
    """What was taken for the test images where there were none of their own, in words."""

    def require_labels(self, purpose: str) -> None:
        """Checks that there are labels.

        Args:
            purpose: What needs them, such as "train", for the message.

        Raises:
            DataError: There are none.
        """
        if not self.is_labelled:
            raise DataError(
                f"cannot {purpose} on the images of {self.name!r}: they have no labels; expected a labelled data set, "
                "such as imagefolder:DIR; what needs none is `transprune compress` without --by-loss"
            )

    def __post_init__(self) -> None:
        channels = self.image_size[0]
        if (
            len(self.mean) != channels
            or len(self.std) != channels
            or not all(
                0 < each < math.inf and math.isfinite(mean) for mean, each in zip(self.mean, self.std, strict=True)
            )
        ):
            raise DataError(
                f"cannot normalise {self.name!r} with mean {self.mean} and std {self.std}: "
                f"expected {channels} numbers each, one for a channel, all finite, and every std above 0"
            )
        for part, split in (("train", self.train), ("test", self.test)):
            self._check_channels(part, split)
            place = first_bad_label(split.labels, len(self.classes))
            if place is not None:
                found = split.labels[place].tolist()
                raise DataError(
                    f"cannot use the {part} split of {self.name!r}: image {place} has label {found}; "
                    f"expected 0 to {len(self.classes) - 1} for its {len(self.classes)} classes"
                )

    def _check_channels(self, part: str, split: Split) -> None:
        """Checks that images in memory can be converted to the image size; images in files are converted on reading.

        Raises:
            DataError: Their number of channels is neither that of the image size nor 1 or 3.
        """
        found, wanted = split.images.shape[1] if isinstance(split, MemorySplit) else 3, self.image_size[0]
        if found != wanted and (found not in (1, 3) or wanted not in (1, 3)):
            raise DataError(
                f"cannot use the {part} split of {self.name!r}: its images have {found} channels; expected {wanted}, "
                "or 1 or 3 where 3 or 1 are wanted; drop the others, such as the transparency of RGBA images"
            )


def first_bad_label(labels: Tensor, classes: int) -> int | None:
    """Index of the first label outside 0 ... classes - 1, or of other numbers than 0 and 1; None if there is none."""
    if labels.dim() > 1:
        bad = ((labels != 0) & (labels != 1)).any(1).nonzero() if labels.shape[1] == classes else torch.zeros(1, 1)
    else:
        bad = ((labels < 0) | (labels >= classes)).nonzero()
    return int(bad[0]) if len(bad) else None


def split_halves(split: AnySplit, *, fraction: float = 0.5, seed: int) -> tuple[AnySplit, AnySplit]:
    """Divides a split in two, class by class, so that both parts have the same shares of classes.

    Both parts get at least one image of every class with two or more. Images that may have several classes are drawn
    from all of them.

    Args:
        split: The split to divide.
        fraction: Share of the first part.
        seed: Decides how images are divided.

    Returns:
        The two parts, each in the order of `split`.

    Raises:
        OptionError: `fraction` is not between 0 and 1.
        DataError: One part would be empty.
    """
    first, second = halves_of(split.labels, fraction=fraction, seed=seed)
    return split.subset(first), split.subset(second)


def halves_of(labels: Tensor, *, fraction: float = 0.5, seed: int) -> tuple[Tensor, Tensor]:
    """The indices of the two parts that `split_halves` makes, each int64 and ascending.

    Args:
        labels: As in `Split`.
        fraction: As in `split_halves`.
        seed: As in `split_halves`.

    Raises:
        OptionError: `fraction` is not between 0 and 1.
        DataError: One part would be empty.
    """
    if not 0 < fraction < 1:
        raise OptionError(f"cannot divide a split at fraction={fraction}: expected a number between 0 and 1")
    if labels.dim() > 1:
        labels = torch.zeros(len(labels), dtype=torch.int64)
    generator = generator_of(seed)
    is_first = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        count = round(fraction * len(members))
        if len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        is_first[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    first, second = is_first.nonzero().flatten(), (~is_first).nonzero().flatten()
    if not len(first) or not len(second):
        raise DataError(
            f"cannot divide {len(labels)} images of {len(labels.unique())} classes at fraction={fraction}: "
            "one part would be empty; expected at least two images of some class"
        )
    return first, second


def _check_labels(labels: Tensor, samples: int) -> None:
    is_several = labels.dtype == torch.float32 and labels.dim() == 2 and len(labels) == samples
    if not is_several and (labels.dtype != torch.int64 or labels.shape != (samples,)):
        raise DataError(
            f"cannot label {samples} images with {labels.dtype} {list(labels.shape)}: expected int64 [{samples}], or "
            f"0 and 1 for each class, float32 [{samples}, classes]"
        )
