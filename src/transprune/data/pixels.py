"""Statistics and sizes of decoded images, uint8 [samples, channels, rows, columns]."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

SAMPLE = 5000
"""So many images are enough for the mean and standard deviation of a data set."""


def fit_images(images: Tensor, image_size: tuple[int, int, int]) -> Tensor:
    """Brings images to a number of channels and a size.

    Grey becomes colour by repetition, colour becomes grey by brightness; the size changes by bilinear interpolation.

    Args:
        images: uint8 [samples, channels, rows, columns], 1 or 3 channels.
        image_size: Channels (1 or 3), rows and columns wanted.

    Returns:
        uint8 [samples, *image_size]; `images` itself if nothing is to be done.
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
    """Evenly spread places, int64 [min(samples, most)]: every place if there are few."""
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
        parts: The `moments` of equally many pixels each, float64 [2, channels].

    Returns:
        The means and the standard deviations; the latter at least one grey level, so that one can divide by them.
    """
    mean, square = torch.stack(list(parts)).mean(0)
    std = (square - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
    return tuple(round(x, 4) for x in mean.tolist()), tuple(round(x, 4) for x in std.tolist())
