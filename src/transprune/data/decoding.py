"""From encoded images (JPEG, PNG, ...) to uint8 tensors [channels, rows, columns]."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from transprune.data.augmentation import SMALL_SIDE
from transprune.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[float, float, float, float]
"""left, top, right, bottom, in pixels."""

View = Callable[[int, int], Box]
"""Which box of an image with so many rows and columns is shown."""


class ImageFiles(Protocol):
    """Encoded images by row number, each with a name for messages."""

    def __len__(self) -> int:
        """How many images there are."""

    def name(self, row: int) -> str:
        """What to call the image of a row in a message."""

    def open(self, row: int) -> BinaryIO:
        """The encoded image of a row, opened for reading."""


@dataclass(frozen=True)
class FolderFiles:
    """Image files in folders."""

    paths: tuple[Path, ...]
    """One file for each row."""

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, row: int) -> str:
        """The path of the file."""
        return str(self.paths[row])

    def open(self, row: int) -> BinaryIO:
        """The file, opened for reading."""
        return self.paths[row].open("rb")


def standard_view(image_size: tuple[int, int, int]) -> View:
    """The box in which an image is shown when nothing is random.

    Images for a small size are shown whole. For a larger size it is the box that Resize(256) and CenterCrop(224) leave
    (and its like for other sizes), cut and resized in one step.

    Args:
        image_size: channels, rows and columns after resizing.
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
    """Whether images for a size are resized as a whole; else a central box of them is."""
    return max(image_size[1:]) <= SMALL_SIDE


def decode(files: ImageFiles, row: int, image_size: tuple[int, int, int], view: View) -> Tensor:
    """One image, in colour or grey as asked, its view resized bilinearly to the size asked.

    Args:
        files: encoded images.
        row: which of them.
        image_size: channels (1 or 3), rows and columns of the result.
        view: which box of the image to show.

    Returns:
        uint8 [channels, rows, columns].

    Raises:
        DataError: if the image cannot be read in full; the message names it.
    """
    from PIL import Image

    channels, height, width = image_size
    with _opened(files, row) as image:
        plain = _with_channels(image, channels)
        box = view(plain.height, plain.width)
        pixels = np.array(plain.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return torch.from_numpy(pixels).view(height, width, channels).permute(2, 0, 1)


def encoded_size(files: ImageFiles, row: int) -> tuple[int, int]:
    """Rows and columns of an image, from its header.

    Raises:
        DataError: if it is no image; the message names it.
    """
    with _opened(files, row) as image:
        return image.height, image.width


@contextmanager
def _opened(files: ImageFiles, row: int) -> Iterator[Image.Image]:
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


def _with_channels(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # Pillow would cut these values off at 255 and make nearly everything white.
        raise ValueError(f"its pixels are of mode {image.mode!r}, not 8 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")  # a palette with transparency cannot become RGB directly
    return image.convert("RGB" if channels == 3 else "L")
