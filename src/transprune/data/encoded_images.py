"""Decodes images (JPEG, PNG, ...) to uint8 tensors [channels, rows, columns], and makes data sets of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from transprune.data.augmentation import SMALL_SIDE, Augmentation, standard_augmentation
from transprune.data.splits import EncodedData, FileSplit, ImageData, ImageFiles, MemorySplit, Split
from transprune.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

MEMORY_LIMIT = 2 * 2**30
"""Largest size in bytes of a decoded data set that is held in memory; larger ones are decoded as needed."""

LARGE_SIZE = (3, 224, 224)
"""Default channels, rows and columns for images that are large or of different sizes."""

_log = logging.getLogger("transprune.data")

Box = tuple[float, float, float, float]
"""left, top, right, bottom, in pixels."""

View = Callable[[int, int], Box]
"""Maps the rows and columns of an image to the box of it that is used."""


def standard_view(image_size: tuple[int, int, int]) -> View:
    """The box of an image that evaluation uses.

    For small sizes, it is the whole image. For larger ones, it is the box that Resize(256) and CenterCrop(224) would
    leave, scaled to the size, so that one step crops and resizes.

    Args:
        image_size: Channels, rows and columns after resizing.
    """
    _, height, width = image_size

    def whole(rows: int, columns: int) -> Box:
        return (0.0, 0.0, float(columns), float(rows))

    def central(rows: int, columns: int) -> Box:
        scale = min(rows / height, columns / width) * 224 / 256
        left, top = (columns - scale * width) / 2, (rows - scale * height) / 2
        return (left, top, left + scale * width, top + scale * height)

    return whole if is_shown_whole(image_size) else central


def is_shown_whole(image_size: tuple[int, int, int]) -> bool:
    """Whether evaluation resizes the whole image to this size, rather than a central box of it."""
    return max(image_size[1:]) <= SMALL_SIDE


def decode(files: ImageFiles, row: int, image_size: tuple[int, int, int], view: View) -> Tensor:
    """Decodes one image and resizes a box of it bilinearly.

    Args:
        files: Encoded images.
        row: The row of the image.
        image_size: Channels (1: grey, 3: colour), rows and columns of the result.
        view: Which box of the image to use.

    Returns:
        uint8 [channels, rows, columns].

    Raises:
        DataError: The image cannot be read in full; the message names it.
    """
    from PIL import Image

    channels, height, width = image_size
    with opened(files, row) as image:
        plain = with_channels(image, channels)
        box = view(plain.height, plain.width)
        pixels = np.array(plain.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return torch.from_numpy(pixels).view(height, width, channels).permute(2, 0, 1)


def encoded_size(files: ImageFiles, row: int) -> tuple[int, int]:
    """Rows and columns of an image, from its header.

    Raises:
        DataError: It is not an image; the message names it.
    """
    with opened(files, row) as image:
        return image.height, image.width


@contextmanager
def opened(files: ImageFiles, row: int) -> Iterator[Image.Image]:
    """An image, of which only the header is read yet.

    Raises:
        DataError: It is no image, or not a whole one; the message names it.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with files.open(row) as file, Image.open(file) as image:
            yield image
    except (DataError, MemoryError):
        raise
    except Exception as error:  # the decoders raise OSError, ValueError, SyntaxError, struct.error and more
        reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(
            f"cannot read the image {files.name(row)}: {reason}; expected a complete image file "
            "(JPEG, PNG, BMP, WebP, ...): replace it or take it out of the data set"
        ) from error


def check_depth(image: Image.Image) -> None:
    """Checks that an image has 8 bits a channel: Pillow would clip others at 255, which turns most images white.

    Raises:
        ValueError: It has more.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels are of mode {image.mode!r}, not 8 bits a channel")


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """An image in grey (1 channel) or colour (3).

    Raises:
        ValueError: Its pixels have more than 8 bits.
    """
    check_depth(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")  # Pillow cannot convert a palette with transparency to RGB directly
    return image.convert("RGB" if channels == 3 else "L")


def image_data(
    found: EncodedData, *, image_size: tuple[int, int, int] | None, augmentation: Augmentation | None
) -> ImageData:
    """Makes a data set of encoded images.

    Small images of one size keep it; others are resized to 224 x 224. Small images are decoded once and held in memory
    if they fit. To find broken images before training, the header of every image is read, and up to 5000 images of each
    split that stays in files are decoded.

    Args:
        found: The encoded images.
        image_size: Channels, rows and columns; None: decided by the images.
        augmentation: Random changes of the training images; None: the standard ones.

    Raises:
        DataError: An image cannot be read; the message names it.
    """
    train, test = found.train, found.test
    common = _common_size(train, test)
    image_size = image_size or (LARGE_SIZE if common is None else (3, *common))
    size_in_memory = (len(train) + len(test)) * image_size[0] * image_size[1] * image_size[2]
    is_held = max(image_size[1:]) <= SMALL_SIDE and size_in_memory <= MEMORY_LIMIT
    _log.info(
        "%s: %d training and %d test images of %s, %s",
        found.name,
        len(train),
        len(test),
        " x ".join(map(str, image_size)),
        "held in memory" if is_held else "decoded when needed",
    )
    shown_train, train_moments = _prepared(train, image_size, is_held)
    shown_test = shown_train if test is train else _prepared(test, image_size, is_held)[0]
    mean, std = mean_and_std([train_moments])
    return ImageData(
        name=found.name,
        train=shown_train,
        test=shown_test,
        classes=found.classes,
        image_size=image_size,
        mean=mean,
        std=std,
        augmentation=augmentation or standard_augmentation(image_size),
        left_out=found.left_out,
        is_labelled=found.is_labelled,
        divided=found.divided,
    )


def _common_size(*splits: FileSplit) -> tuple[int, int] | None:
    """Rows and columns, if all images have the same and are small."""
    sizes = {encoded_size(split.files, row) for split in set(splits) for row in split.rows.tolist()}
    return sizes.pop() if len(sizes) == 1 and max(max(sizes)) <= SMALL_SIDE else None


def _prepared(split: FileSplit, image_size: tuple[int, int, int], is_held: bool) -> tuple[Split, Tensor]:
    """The split, moved to memory if `is_held`, and the moments of up to 5000 of its images."""
    if is_held:
        inside = held(split, image_size)
        return inside, moments(inside.images[sample_places(len(inside))])
    view = standard_view(image_size)

    def one(row: int) -> Tensor:
        return moments(decode(split.files, row, image_size, view)[None])

    rows = split.rows[sample_places(len(split))].tolist()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return split, torch.stack(list(threads.map(one, rows))).mean(0)


def held(split: Split, image_size: tuple[int, int, int]) -> MemorySplit:
    """A split in memory; images in files are decoded and resized to `image_size` (channels, rows, columns)."""
    if isinstance(split, MemorySplit):
        return split
    if not isinstance(split, FileSplit):
        raise DataError(f"cannot hold a {type(split).__name__} in memory: expected a MemorySplit or a FileSplit")
    # Sequential: for images this small, threads would only wait for the interpreter's lock.
    images = torch.empty(len(split), *image_size, dtype=torch.uint8)
    view = standard_view(image_size)
    for place, row in enumerate(split.rows.tolist()):
        images[place] = decode(split.files, row, image_size, view)
    return MemorySplit(images, split.labels)


def preprocessing(data: ImageData) -> dict[str, Any]:
    """How images become inputs, for `architecture.json`: the steps in words, mean and std, and the classes.

    Args:
        data: The data set that the network learns from.
    """
    return {
        "how": _how(data),
        "mean": list(data.mean),
        "std": list(data.std),
        "classes": list(data.classes),
    }


def _how(data: ImageData) -> str:
    channels, height, width = data.image_size
    size = f"{height} x {width} (rows x columns)"
    is_whole = not isinstance(data.test, FileSplit) or is_shown_whole(data.image_size)
    box = "the whole image" if is_whole else f"the largest central box of the shape {size}, its sides cut to 7/8,"
    kind = "RGB" if channels == 3 else "grey" if channels == 1 else f"{channels} channels"
    return (
        f"{box} is resized to {size} bilinearly, with antialiasing, as {kind}; pixels from 0 to 1, less mean and "
        "divided by std, channel by channel: [batch, channels, rows, columns]"
    )


def said_of_left_out(data: ImageData) -> str:
    """Says how many files were left out, by ending; empty if there are none."""
    if not data.left_out:
        return ""
    count = sum(data.left_out.values())
    endings = ", ".join(f"{many:,} {ending or 'without an ending'}" for ending, many in data.left_out.items())
    return f"{count:,} {'file is' if count == 1 else 'files are'} no image by the ending ({endings})"


SAMPLE = 5000
"""Number of images from which mean and standard deviation of a data set are taken."""


def fit_images(images: Tensor, image_size: tuple[int, int, int]) -> Tensor:
    """Converts images to a number of channels and a size.

    Grey becomes colour by repetition, colour becomes grey by luminance; sizes change by bilinear interpolation.

    Args:
        images: uint8 [samples, channels, rows, columns], 1 or 3 channels.
        image_size: Channels (1 or 3), rows and columns of the result.

    Returns:
        uint8 [samples, *image_size]; `images` itself if they are of that size already.
    """
    if images.shape[1:] == image_size:
        return images
    from torchvision.transforms.v2 import functional as transforms

    channels, height, width = image_size
    if images.shape[1] > channels:
        images = transforms.rgb_to_grayscale(images)
    if images.shape[2:] != (height, width):
        images = transforms.resize(images, [height, width], antialias=True)
    return images.expand(-1, channels, -1, -1)


def sample_places(samples: int, most: int = SAMPLE) -> Tensor:
    """Evenly spread indices, int64 [min(samples, most)]."""
    if samples <= most:
        return torch.arange(samples)
    return torch.arange(most) * samples // most


def moments(images: Tensor) -> Tensor:
    """Mean and mean square of each channel, float64 [2, channels]; pixels count from 0 to 1."""
    pixels = images.double() / 255
    return torch.stack([pixels.mean((0, 2, 3)), pixels.square().mean((0, 2, 3))])


def mean_and_std(parts: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, to 4 digits.

    Args:
        parts: `moments`, each of the same number of pixels, float64 [2, channels].

    Returns:
        The means and the standard deviations; the latter are at least one grey level, so that they can be divided by.
    """
    mean, square = torch.stack(list(parts)).mean(0)
    std = (square - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
    return tuple(round(x, 4) for x in mean.tolist()), tuple(round(x, 4) for x in std.tolist())
