"""Augmentation of training images, as functions of whole batches: uint8 [batch, channels, rows, columns].

Every function draws only from the generator it is given. The generator is on the CPU, whatever the device of the
images, so that a seed gives the same images everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from transprune.errors import OptionError, expected_one_of
from transprune.on_demand import check_fields
from transprune.options import AugmentationName

SMALL_SIDE = 64
"""Images up to this many pixels per side are padded and cropped; larger ones get a random resized crop."""
COLOUR_AXES = (
    (0.2175, (-0.5675, -0.5808, -0.5836)),
    (0.0188, (0.7192, -0.0045, -0.6948)),
    (0.0045, (0.4009, -0.8140, 0.4203)),
)
"""Eigenvalues and eigenvectors of the covariance of ImageNet's RGB values (Krizhevsky et al., 2012, section 4.1)."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of a training image; none by default."""

    flip: bool = False
    """Flip left to right with probability 1/2."""

    pad: int = 0
    """Pad each side with this many zero pixels, then crop to the original size at a random position."""

    resized_crop: bool = False
    """Crop a box of random area and aspect ratio and resize it to the image size."""

    colour_jitter: tuple[float, float, float, float] | None = None
    """Largest change of brightness, contrast and saturation (x: a factor from 1 − x to 1 + x) and of hue (a share of
    the colour circle, either way), applied in random order; colour images only."""

    lighting: float = 0.0
    """Standard deviation of a shift along each of `COLOUR_AXES`, in units of its eigenvalue; colour images only."""

    def __post_init__(self) -> None:
        check_fields(self)
        jitter = self.colour_jitter or (0.0, 0.0, 0.0, 0.0)
        if min(*jitter, self.lighting) < 0 or max(jitter) > 1 or jitter[3] > 0.5:
            raise OptionError(
                f"cannot augment with colour_jitter={self.colour_jitter} and lighting={self.lighting}: expected three "
                "numbers from 0 to 1 and one from 0 to 0.5, and a lighting of at least 0"
            )
        if self.pad < 0:
            raise OptionError(f"cannot augment with pad={self.pad}: expected 0 (no crop) or more pixels")
        if self.pad and self.resized_crop:
            raise OptionError(
                f"cannot augment with both pad={self.pad} and resized_crop: each of them crops; choose one"
            )


def standard_augmentation(image_size: tuple[int, int, int]) -> Augmentation:
    """The usual augmentation for natural images of this size (channels, rows, columns)."""
    if max(image_size[1:]) <= SMALL_SIDE:
        return Augmentation(flip=True, pad=4)
    return Augmentation(flip=True, resized_crop=True)


def named_augmentation(
    name: AugmentationName, image_size: tuple[int, int, int], *, standard: Augmentation
) -> Augmentation:
    """The augmentation with a name.

    Args:
        name: `none`; `standard`; `shift` moves images by up to an eighth and never flips them (for digits, letters,
            signs); `imagenet` is the paper's for ImageNet: resized crops, flips, and changes of colour and lighting
            for colour images.
        image_size: Channels, rows and columns that images are resized to.
        standard: The standard augmentation of this data set.

    Raises:
        OptionError: There is none of that name.
    """
    if name not in get_args(AugmentationName):
        raise OptionError(f"cannot use the augmentation {name!r}: {expected_one_of(name, get_args(AugmentationName))}")
    if name == "standard":
        return standard
    if name == "none":
        return Augmentation()
    if name == "shift":
        return Augmentation(pad=max(1, min(image_size[1:]) // 8))
    if image_size[0] != 3:
        return Augmentation(flip=True, resized_crop=True)
    return Augmentation(flip=True, resized_crop=True, colour_jitter=(0.4, 0.4, 0.4, 0.2), lighting=0.1)


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Applies random changes, drawn separately for each image.

    Args:
        images: uint8 [batch, channels, rows, columns].
        augmentation: Which changes.
        generator: Source of randomness, on the CPU.

    Returns:
        uint8 of the same shape.
    """
    if augmentation.resized_crop:
        images = random_resized_crop(images, generator)
    if augmentation.pad:
        images = random_crop(images, augmentation.pad, generator)
    if augmentation.flip:
        images = random_flip(images, generator)
    if augmentation.colour_jitter is not None:
        images = random_colours(images, augmentation.colour_jitter, generator)
    if augmentation.lighting:
        images = random_lighting(images, augmentation.lighting, generator)
    return images


def random_crop(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Shifts each image by up to `pad` pixels in each direction, filling with zeros.

    Args:
        images: [batch, channels, rows, columns].
        pad: Largest shift in pixels.
        generator: Source of randomness, on the CPU.

    Returns:
        A tensor of the same shape and type.
    """
    batch, channels, height, width = images.shape
    tops, lefts = torch.randint(2 * pad + 1, (2, batch, 1, 1), generator=generator).to(images.device, non_blocking=True)
    rows = tops + torch.arange(height, device=images.device)[:, None]
    columns = lefts + torch.arange(width, device=images.device)
    places = (rows * (width + 2 * pad) + columns).view(batch, 1, -1).expand(-1, channels, -1)
    # One gather over flattened pixels is several times faster on a CPU than indexing rows and columns separately.
    return F.pad(images, (pad,) * 4).flatten(2).gather(2, places).view_as(images)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flips each image left to right with probability 1/2 ([batch, channels, rows, columns])."""
    chosen = (torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5).to(images.device, non_blocking=True)
    return torch.where(chosen, images.flip(3), images)


def random_resized_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crops a random box from each image and resizes it bilinearly to the image size.

    Args:
        images: uint8 [batch, channels, rows, columns].
        generator: Source of randomness, on the CPU.

    Returns:
        uint8 of the same shape.
    """
    height, width = images.shape[2:]
    left, top, right, bottom = random_boxes(len(images), height, width, generator).unbind(1)
    zero = torch.zeros_like(left)
    across = torch.stack([(right - left) / width, zero, (right + left) / width - 1], dim=1)
    down = torch.stack([zero, (bottom - top) / height, (bottom + top) / height - 1], dim=1)
    boxes = torch.stack([across, down], dim=1).to(images.device, non_blocking=True)
    grid = F.affine_grid(boxes, list(images.shape), align_corners=False)
    cut = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return cut.round_().to(torch.uint8)


def random_boxes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Boxes of random area (8% to 100% of the image) and aspect ratio (3:4 to 4:3) at random positions.

    Source: Szegedy et al., 2015, arXiv:1409.4842, section 6.

    Deviation: a box that is too tall or too wide is clipped to the image instead of being drawn again.

    Args:
        count: How many boxes.
        height: Rows of the image.
        width: Columns of the image.
        generator: Source of randomness, on the CPU.

    Returns:
        float32 [count, 4]: left, top, right, bottom, in pixels.
    """
    areas, shapes, across, down = torch.rand(4, count, generator=generator)
    areas = height * width * (0.08 + 0.92 * areas)
    shapes = torch.exp((2 * shapes - 1) * math.log(4 / 3))
    widths = (areas * shapes).sqrt().clamp(1, width)
    heights = (areas / shapes).sqrt().clamp(1, height)
    lefts, tops = across * (width - widths), down * (height - heights)
    # Rounding may push the sums past the border, which image libraries reject.
    rights, bottoms = (lefts + widths).clamp(max=width), (tops + heights).clamp(max=height)
    return torch.stack([lefts, tops, rights, bottoms], dim=1)


def random_colours(images: Tensor, strength: tuple[float, float, float, float], generator: torch.Generator) -> Tensor:
    """Changes brightness, contrast, saturation and hue of each image, in random order.

    Args:
        images: uint8 [batch, 3, rows, columns].
        strength: As `Augmentation.colour_jitter`.
        generator: Source of randomness, on the CPU.

    Returns:
        uint8 of the same shape.
    """
    from torchvision.transforms.v2 import functional as transforms

    changes = (
        transforms.adjust_brightness,
        transforms.adjust_contrast,
        transforms.adjust_saturation,
        transforms.adjust_hue,
    )
    draws = (2 * torch.rand(len(images), len(changes), generator=generator) - 1) * torch.tensor(strength)
    factors = draws + torch.tensor([1.0, 1.0, 1.0, 0.0])
    orders = torch.rand(len(images), len(changes), generator=generator).argsort(1)
    plans = zip(images, factors.tolist(), orders.tolist(), strict=True)
    return torch.stack(
        [reduce(lambda image, place: changes[place](image, own[place]), order, image) for image, own, order in plans]
    )


def random_lighting(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Shifts the colour of each image along the principal axes of natural colours.

    Source: Krizhevsky et al., 2012, ImageNet Classification with Deep Convolutional Neural Networks, section 4.1.

    Args:
        images: uint8 [batch, 3, rows, columns].
        deviation: Standard deviation of the shift along each of `COLOUR_AXES`, in units of its eigenvalue.
        generator: Source of randomness, on the CPU.

    Returns:
        uint8 of the same shape.
    """
    directions = torch.tensor([[255 * value * part for part in vector] for value, vector in COLOUR_AXES])
    shifts = deviation * torch.randn(len(images), len(COLOUR_AXES), generator=generator) @ directions
    shifted = images.float() + shifts[:, :, None, None].to(images.device, non_blocking=True)
    return shifted.round_().clamp_(0, 255).to(torch.uint8)
