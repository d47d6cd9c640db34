"""From encoded images to a data set: the image size, what is held in memory, mean and standard deviation."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from transprune.data.augmentation import SMALL_SIDE, Augmentation, standard_augmentation
from transprune.data.decoding import decode, encoded_size, standard_view
from transprune.data.pixels import mean_and_std, moments, sample_places
from transprune.data.splits import FileSplit, ImageData, MemorySplit, Split

MEMORY_LIMIT = 2 * 2**30
"""Bytes of decoded images that are held in memory; larger data sets are decoded when needed."""

LARGE_SIZE = (3, 224, 224)
"""Channels, rows and columns of images that are large or differ in size, unless asked otherwise."""

_log = logging.getLogger("transprune.data")


def encoded_data(
    name: str,
    *,
    train: FileSplit,
    test: FileSplit,
    classes: tuple[str, ...],
    image_size: tuple[int, int, int] | None,
    augmentation: Augmentation | None,
) -> ImageData:
    """Makes a data set of encoded images.

    Small images of one size keep it; others become 224 x 224. Small images are decoded once and held in memory if they
    fit. The header of every image is read, and of each split that stays in files up to 5000 images are decoded once, so
    that a broken image shows before the training.

    Args:
        name: what to call the data set.
        train: images to learn from.
        test: images to measure accuracy on.
        classes: name of each class.
        image_size: channels, rows and columns, if not to be found from the images.
        augmentation: random changes of the training images, if not the standard ones.

    Raises:
        DataError: if an image cannot be read; the message names it.
    """
    common = _common_size(train, test)
    image_size = image_size or (LARGE_SIZE if common is None else (3, *common))
    size_in_memory = (len(train) + len(test)) * image_size[0] * image_size[1] * image_size[2]
    is_held = max(image_size[1:]) <= SMALL_SIDE and size_in_memory <= MEMORY_LIMIT
    _log.info(
        "%s: %d training and %d test images of %s, %s",
        name,
        len(train),
        len(test),
        " x ".join(map(str, image_size)),
        "held in memory" if is_held else "decoded when needed",
    )
    shown_train, train_moments = _prepared(train, image_size, is_held)
    shown_test, _ = _prepared(test, image_size, is_held)
    mean, std = mean_and_std([train_moments])
    return ImageData(
        name=name,
        train=shown_train,
        test=shown_test,
        classes=classes,
        image_size=image_size,
        mean=mean,
        std=std,
        augmentation=augmentation or standard_augmentation(image_size),
    )


def _common_size(*splits: FileSplit) -> tuple[int, int] | None:
    """Rows and columns, if all images agree on them and are small."""
    sizes = {encoded_size(split.files, row) for split in splits for row in split.rows.tolist()}
    return sizes.pop() if len(sizes) == 1 and max(max(sizes)) <= SMALL_SIDE else None


def _prepared(split: FileSplit, image_size: tuple[int, int, int], is_held: bool) -> tuple[Split, Tensor]:
    """The split, in memory if it is to be held there, and the moments of up to 5000 of its images."""
    if is_held:
        held = MemorySplit(_decoded(split, image_size), split.labels)
        return held, moments(held.images[sample_places(len(held))])
    view = standard_view(image_size)

    def one(row: int) -> Tensor:
        return moments(decode(split.files, row, image_size, view)[None])

    rows = split.rows[sample_places(len(split))].tolist()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return split, torch.stack(list(threads.map(one, rows))).mean(0)


def _decoded(split: FileSplit, image_size: tuple[int, int, int]) -> Tensor:
    # One after the other: for images this small, threads would only wait for the interpreter's lock.
    images = torch.empty(len(split), *image_size, dtype=torch.uint8)
    view = standard_view(image_size)
    for place, row in enumerate(split.rows.tolist()):
        images[place] = decode(split.files, row, image_size, view)
    return images
