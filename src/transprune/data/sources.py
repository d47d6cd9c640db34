"""Loads data sets by specification: `digits`, `cifar10:DIR`, `imagefolder:DIR`, ..."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transprune.data.augmentation import Augmentation, named_augmentation, standard_augmentation
from transprune.data.encoded_images import fit_images, image_data, mean_and_std, moments, sample_places
from transprune.data.imagefolder import read_imagefolder, read_images
from transprune.data.parquet import read_parquet
from transprune.data.splits import ImageData, MemorySplit, split_halves
from transprune.errors import DataError, expected_one_of
from transprune.options import AugmentationName, Normalisation
from transprune.runtime.files import expanded

_log = logging.getLogger("transprune.data")

SPECIFICATIONS = ("digits", "cifar10:DIR", "cifar100:DIR", "imagefolder:DIR", "parquet:DIR", "images:DIR")

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel; pixels count from 0 to 1."""

CIFAR_STATISTICS: dict[str, Statistics] = {
    "cifar10": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    "cifar100": ((129.3 / 255, 124.1 / 255, 112.4 / 255), (68.2 / 255, 65.4 / 255, 70.4 / 255)),
}
"""As commonly published for the training images."""
NAMED_STATISTICS: dict[str, Statistics] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    **CIFAR_STATISTICS,
    "none": ((0.0,), (1.0,)),
}
"""Statistics by name: `imagenet` for trained networks of torchvision and many others, `none` for pixels from 0 to 1."""


def load_data(
    spec: str,
    *,
    image_size: tuple[int, int, int] | None = None,
    augmentation: Augmentation | AugmentationName | None = None,
    download: bool = False,
    mean: Normalisation | float | None = None,
    std: Normalisation | float | None = None,
) -> ImageData:
    """Loads a data set.

    >>> load_data("digits").image_size
    (1, 8, 8)

    Args:
        spec: `digits`, `cifar10:DIR`, `cifar100:DIR`, `imagefolder:DIR`, `parquet:DIR`, or `images:DIR` for all images
            in a folder and its subfolders, without labels.
        image_size: Channels (1 or 3), rows and columns; None: those of the data set.
        augmentation: Random changes of the training images, or their name; None: the standard ones.
        download: Download `cifar10` or `cifar100` if it is missing.
        mean: Mean of each channel to normalise with, for pixels from 0 to 1; a number for all channels; or the name
            of known figures: `imagenet`, `cifar10`, `cifar100` or `none`. None or `data`: those of the training images.
        std: Standard deviation of each channel, likewise; a name given for only one of the two applies to both.

    Raises:
        DataError: The specification is unknown, or the data is missing or malformed.
    """
    kind, _, place = spec.partition(":")
    _check(spec, kind, place)
    if image_size is not None and not _is_size(image_size):
        raise DataError(
            f"cannot load {spec!r} as {image_size}: expected 1 or 3 channels, then rows and columns, as in (3, 32, 32)"
        )
    chosen = None if isinstance(augmentation, str) else augmentation
    if kind == "digits":
        data = load_digits(image_size=image_size, augmentation=chosen)
    elif kind in CIFAR_STATISTICS:
        folder = expanded(place)
        data = load_cifar(kind, folder, image_size=image_size, augmentation=chosen, download=download)
    else:
        data = _load_folder(spec, image_size, chosen)
    if isinstance(augmentation, str):
        data = replace(data, augmentation=named_augmentation(augmentation, data.image_size, standard=data.augmentation))
    return normalised(data, mean, std)


def _is_size(value: Any) -> bool:
    """Whether it is channels, rows and columns."""
    is_three = isinstance(value, Sequence) and len(value) == 3
    return is_three and all(isinstance(each, Integral) and int(each) > 0 for each in value) and value[0] in (1, 3)


def normalised(data: ImageData, mean: Normalisation | float | None, std: Normalisation | float | None) -> ImageData:
    """The data set with another normalisation, as `load_data` takes it.

    Raises:
        DataError: It has no number for each channel, no such name is known, or the mean is not one of pixels from 0
            to 1.
    """
    mean, std = (other if one is None and isinstance(other, str) else one for one, other in ((mean, std), (std, mean)))
    given = [_figures(data, asked, part, own) for part, (asked, own) in enumerate(((mean, data.mean), (std, data.std)))]
    return replace(data, mean=given[0], std=given[1])


def _figures(
    data: ImageData, asked: Normalisation | float | None, part: int, own: tuple[float, ...]
) -> tuple[float, ...]:
    """Figures for each channel; a single one is that of all of them."""
    if isinstance(asked, int | float):
        asked = (float(asked),)
    if asked is None or asked == "data":
        return own
    if isinstance(asked, str) and asked not in NAMED_STATISTICS:
        raise DataError(
            f"cannot normalise {data.name!r} with {asked!r}: {expected_one_of(asked, [*NAMED_STATISTICS, 'data'])}, or "
            "a number for each channel"
        )
    figures = NAMED_STATISTICS[asked][part] if isinstance(asked, str) else tuple(asked)
    if part == 0 and any(figure > 1 for figure in figures):
        raise DataError(
            f"cannot normalise {data.name!r} with the mean {', '.join(f'{each:g}' for each in figures)}: pixels are "
            "from 0 to 1 here; expected figures in that range: where they are of pixels from 0 to 255, mean and "
            "standard deviation divided by 255"
        )
    return figures * len(own) if len(figures) == 1 else figures


def _load_folder(spec: str, image_size: tuple[int, int, int] | None, augmentation: Augmentation | None) -> ImageData:
    kind, _, place = spec.partition(":")
    folder = expanded(place)
    if not os.path.isdir(folder):
        raise DataError(f"cannot load {spec!r}: there is no folder {folder} (looked from {Path.cwd()})")
    read = {"imagefolder": read_imagefolder, "parquet": read_parquet, "images": read_images}[kind]
    found = read(folder)
    if found.divided:
        _log.warning("%s: %s", spec, found.divided)
    return image_data(found, image_size=image_size, augmentation=augmentation)


def load_digits(
    *, image_size: tuple[int, int, int] | None = None, augmentation: Augmentation | None = None
) -> ImageData:
    """Loads the 1797 handwritten digits that come with scikit-learn, 8 x 8 pixels in 17 grey levels.

    The split is fixed: 80% of each class to train on, the others to test on.

    Args:
        image_size: Channels, rows and columns; None: 1 x 8 x 8.
        augmentation: Random changes; None: a shift of up to one pixel, and no flip, since a mirrored digit is none.
    """
    from sklearn.datasets import load_digits as load

    digits = load()
    images = (torch.from_numpy(digits.images)[:, None] * (255 / 16)).round().to(torch.uint8)
    train, test = split_halves(MemorySplit(images, torch.from_numpy(digits.target)), fraction=0.8, seed=0)
    return _in_memory(
        "digits",
        train,
        test,
        classes=tuple(map(str, digits.target_names)),
        image_size=image_size,
        augmentation=augmentation or Augmentation(pad=1),
    )


def load_cifar(
    kind: str,
    folder: Path,
    *,
    image_size: tuple[int, int, int] | None = None,
    augmentation: Augmentation | None = None,
    download: bool = False,
) -> ImageData:
    """Loads CIFAR-10 or CIFAR-100 from the authors' files (the Python version).

    Args:
        kind: `cifar10` or `cifar100`.
        folder: The folder that contains `cifar-10-batches-py` or `cifar-100-python`.
        image_size: Channels, rows and columns; None: 3 x 32 x 32.
        augmentation: Random changes; None: a shift of up to four pixels and a flip.
        download: Download the files if they are missing.

    Raises:
        DataError: The files are missing or damaged, or cannot be downloaded.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    kinds = {"cifar10": CIFAR10, "cifar100": CIFAR100}
    try:
        parts = [kinds[kind](folder, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise DataError(_cifar_message(kind, folder, kinds[kind].base_folder, download, error)) from error
    train, test = (MemorySplit(_channels_first(part.data), torch.tensor(part.targets)) for part in parts)
    return _in_memory(
        kind,
        train,
        test,
        classes=tuple(parts[0].classes),
        image_size=image_size,
        augmentation=augmentation or standard_augmentation((3, 32, 32)),
        statistics=CIFAR_STATISTICS[kind],
    )


def _check(spec: str, kind: str, place: str) -> None:
    known = {specification.partition(":")[0]: specification for specification in SPECIFICATIONS}
    if kind not in known:
        near = difflib.get_close_matches(kind, known, n=1)
        is_folder = bool(spec) and os.path.isdir(expanded(spec))
        meant = f"imagefolder:{spec}" if is_folder else known[near[0]] if near else ""
        hint = f"; did you mean {meant}?" if meant else ""
        raise DataError(f"cannot load data {spec!r}: expected one of {', '.join(SPECIFICATIONS)}{hint}")
    if known[kind] != kind and not place:
        raise DataError(f"cannot load data {spec!r}: it does not say in which folder; expected {known[kind]}")
    if known[kind] == kind and spec != kind:
        raise DataError(f"cannot load data {spec!r}: {kind} needs no folder; expected {kind!r} alone")


def _in_memory(
    name: str,
    train: MemorySplit,
    test: MemorySplit,
    *,
    classes: tuple[str, ...],
    image_size: tuple[int, int, int] | None,
    augmentation: Augmentation,
    statistics: Statistics | None = None,
) -> ImageData:
    """A data set held at its own size; the loader resizes each batch, so that enlarging takes no memory."""
    own_size = train.images.shape[1:]
    channels, height, width = image_size or own_size
    if statistics is None or channels != len(statistics[0]):
        sample = train.images[sample_places(len(train))]
        statistics = mean_and_std([moments(fit_images(sample, (channels, *own_size[1:])))])
    return ImageData(
        name=name,
        train=train,
        test=test,
        classes=classes,
        image_size=(channels, height, width),
        mean=statistics[0],
        std=statistics[1],
        augmentation=augmentation,
    )


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _cifar_message(kind: str, folder: Path, files: str, download: bool, error: Exception) -> str:
    if download:
        return f"cannot download {kind} to {folder}: {error}; check the connection or copy {files} there by hand"
    return (
        f"cannot load {kind}:{folder}: {folder / files} is missing or not as its authors publish it; "
        "download it with --download (in Python: download=True)"
    )
