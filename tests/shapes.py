"""Images to segment and a small U-Net, and what the figures of a segmentation are, pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from transprune.data import LoaderData

CLASSES = 3
SIZE = 16


def draw_shapes(samples: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """A disc and a square on noise, in grey: images [samples, 1, 16, 16], classes 0, 1 and 2 [samples, 16, 16]."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    labels = torch.zeros(samples, SIZE, SIZE, dtype=torch.int64)
    for label in labels:
        (row, top), (column, left) = torch.randint(3, SIZE - 5, (2, 2), generator=generator).tolist()
        label[(rows - row) ** 2 + (columns - column) ** 2 <= 9] = 1
        label[top : top + 5, left : left + 5] = 2
    grey = torch.tensor([0.0, 1.0, -1.0])[labels]
    images = grey + 0.5 * torch.randn(labels.shape, generator=generator)
    return images[:, None], labels


def shapes_data(*, samples: int = 128, batch_size: int = 16) -> LoaderData:
    """Loaders of such images."""
    train = TensorDataset(*draw_shapes(samples, seed=0))
    test = TensorDataset(*draw_shapes(64, seed=1))
    return LoaderData(
        train=DataLoader(train, batch_size, shuffle=True),
        test=DataLoader(test, 48),
        example=torch.zeros(1, 1, SIZE, SIZE),
    )


class Pair(nn.Sequential):
    """Two 3×3 convolutions, each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for width in (inputs, outputs):
            layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers)


class SmallUNet(nn.Module):
    """Two levels down by max pooling and up by transposed convolutions, with concatenated skips."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second, self.bottom = Pair(1, width), Pair(width, 2 * width), Pair(2 * width, 4 * width)
        self.up_second, self.up_first = (nn.ConvTranspose2d(2 * out, out, 2, 2) for out in (2 * width, width))
        self.back_second, self.back_first = Pair(4 * width, 2 * width), Pair(2 * width, width)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images [batch, 1, rows, columns] to logits [batch, classes, rows, columns]."""
        first = self.first(images)
        second = self.second(self.pool(first))
        bottom = self.bottom(self.pool(second))
        second = self.back_second(torch.cat([self.up_second(bottom), second], dim=1))
        first = self.back_first(torch.cat([self.up_first(second), first], dim=1))
        return self.head(first)


def iou_pixel_by_pixel(logits: Tensor, targets: Tensor, *, classes: int, ignored: int) -> tuple[float, float]:
    """Mean intersection over union and accuracy in percent, by visiting every pixel."""
    right, union, hits, pixels = [0] * classes, [0] * classes, 0, 0
    for image, truth in zip(logits.argmax(1).tolist(), targets.tolist(), strict=True):
        for predicted_row, true_row in zip(image, truth, strict=True):
            for predicted, true in zip(predicted_row, true_row, strict=True):
                if true == ignored:
                    continue
                pixels += 1
                hits += predicted == true
                right[true] += predicted == true
                for one in {predicted, true}:
                    union[one] += 1
    shares = [right[one] / union[one] for one in range(classes) if union[one]]
    return 100 * sum(shares) / len(shares), 100 * hits / pixels
