"""What is made smaller: a trained network, its data, a budget, and how long a search and a student may learn."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import transprune
from transprune.models.by_name import build_model
from transprune.models.weights import load_weights

Data = transprune.ImageData | transprune.LoaderData
FULL_IMAGES, FULL_EPOCHS, FULL_SEARCH_EPOCHS = 50_000, 200, 60


@dataclass(frozen=True)
class Sources:
    """Where the data lie that are not made here."""

    cifar: Path | None
    """Folder with CIFAR-10 as train.parquet and test.parquet."""
    resnet: tuple[str, Path] | None
    """A ResNet-20 of others: a name for MODEL (`FILE.py:FUNCTION`), and its weights."""
    digits: Path | None
    """Folder with spoken digits as train.parquet and test.parquet."""
    images: int = 20_000
    """Of CIFAR-10's training part, the first so many are used."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One column of the table."""

    title: str
    budget: str
    data: Callable[[Sources], Data]
    network: Callable[[Sources], nn.Module]
    """The network with its trained weights, or with new ones where `teacher_epochs` says how long it learns."""
    task: transprune.Task
    figure: str
    """The metric that the table shows, in percent."""
    teacher_epochs: int = 0
    teacher_rate: float | None = None
    search_epochs: int
    epochs: int
    """Epochs of each student."""
    is_long: bool = False
    """Made at full length alone: on two cores it would take days."""

    def at_full_length(self) -> Cell:
        """The same cell with as many epochs as papers give it."""
        taught = FULL_EPOCHS if self.teacher_epochs else 0
        return replace(self, teacher_epochs=taught, search_epochs=FULL_SEARCH_EPOCHS, epochs=FULL_EPOCHS)

    def teaching(self) -> transprune.TrainingOptions:
        """How the unpruned network is trained."""
        recipe = transprune.get_preset("medium").teacher
        warm_up = self.teacher_epochs / 10
        return replace(recipe, **_length(self.teacher_epochs), warm_up_epochs=warm_up, learning_rate=self.teacher_rate)

    def searching(self) -> transprune.SearchOptions:
        """How TAS searches."""
        recipe = transprune.get_preset("medium").search
        return replace(recipe, epochs=self.search_epochs, warm_up_epochs=self.search_epochs / 10, trial_epochs=1)

    def distilling(self) -> transprune.DistillationOptions:
        """How each student learns."""
        recipe = transprune.get_preset("medium").distill
        return replace(recipe, **_length(self.epochs), warm_up_epochs=self.epochs / 10)


def _length(epochs: int) -> dict[str, int]:
    return {"epochs": epochs, "evaluate_every": epochs}


# --- CIFAR-10


def cifar(normalisation: str | None = None) -> Callable[[Sources], Data]:
    """The first images of the training part, and all of the test part."""

    def load(sources: Sources) -> Data:
        if sources.cifar is None:
            raise SystemExit("cells on CIFAR-10 need --cifar FOLDER")
        data = transprune.load_data(f"parquet:{sources.cifar}", mean=normalisation, std=normalisation)
        return replace(data, train=data.train.subset(range(sources.images)))

    return load


def resnet20(sources: Sources) -> nn.Module:
    """Somebody's trained ResNet-20."""
    if sources.resnet is None:
        raise SystemExit("the cells of ResNet-20 need --resnet FILE.py:FUNCTION WEIGHTS")
    name, weights = sources.resnet
    network = build_model(name, classes=10, image_channels=3)
    network.load_state_dict(load_weights(str(weights), network).tensors)
    return network


def mobilenet(sources: Sources) -> nn.Module:
    """MobileNetV2 of half the widths, its first two strides taken out for images of 32×32 pixels."""
    network = torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.5, dropout=0.0)
    network.features[0][0].stride = (1, 1)
    return network


class ViT(nn.Module):
    """A small pre-norm vision transformer of torch's own layers: 4×4 pixels a token, the mean of all tokens read."""

    def __init__(self, size: int = 64, depth: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, size, 4, 4)
        self.places = nn.Parameter(0.02 * torch.randn(1, 64, size))
        layer = nn.TransformerEncoderLayer(
            size, heads, 2 * size, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(size), nn.Linear(size, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, 10] of images [batch, 3, 32, 32]."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.encoder(tokens)).mean(1))


# --- spoken digits

MELS, FRAMES, RATE, WINDOW, HOP = 40, 64, 8000, 256, 128


def spoken_digits(sources: Sources) -> Data:
    """Log-mel spectrograms [batch, 1, 40, 64] of one second."""
    if sources.digits is None:
        raise SystemExit("the cell of spoken digits needs --digits FOLDER")
    train, test = (_spectrograms(sources.digits / f"{part}.parquet") for part in ("train", "test"))
    mean, scale = train.tensors[0].mean(), train.tensors[0].std()
    for part in (train, test):
        part.tensors = ((part.tensors[0] - mean) / scale, part.tensors[1])
    return _loaders(train, test, batch=64)


def _spectrograms(file: Path) -> TensorDataset:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(file, columns=["audio", "label"]).to_pylist()
    sounds = torch.zeros(len(rows), RATE)
    for sound, row in zip(sounds, rows, strict=True):
        with wave.open(io.BytesIO(row["audio"]["bytes"])) as content:
            found = torch.frombuffer(bytearray(content.readframes(content.getnframes())), dtype=torch.int16)
        sound[: len(found)] = found[:RATE].float() / 2**15
    power = torch.stft(sounds, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True).abs().square()
    mels = _mel_filters() @ power[..., :FRAMES]
    return TensorDataset(F.pad(mels, (0, FRAMES - mels.shape[-1])).clamp_min(1e-6).log()[:, None], _labels(rows))


def _labels(rows: list[dict]) -> Tensor:
    return torch.tensor([row["label"] for row in rows])


def _mel_filters() -> Tensor:
    """Triangles [40, 129] whose corners are evenly spaced in mel, from 20 Hz to half the sampling rate."""
    low, high = (2595 * torch.tensor(1 + hertz / 700).log10() for hertz in (20, RATE / 2))
    corners = 700 * (10 ** (torch.linspace(low, high, MELS + 2) / 2595) - 1)
    bins = torch.linspace(0, RATE / 2, WINDOW // 2 + 1)
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp_min(0)


def keyword_network(sources: Sources) -> nn.Module:
    """Four convolutions with batch norms, of which the first three halve the picture, and the mean over all places."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 24, 2), (24, 32, 2), (32, 48, 2), (48, 64, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


# --- a segmentation that is drawn

SIZE, KINDS = 32, 4


def drawn_shapes(sources: Sources) -> Data:
    """Discs, squares and crosses over each other on noise, each pixel to be named: grey images [batch, 1, 32, 32]."""
    return _loaders(_drawn(4000, seed=0), _drawn(1000, seed=1), batch=32)


def _drawn(samples: int, *, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    labels = torch.zeros(samples, SIZE, SIZE, dtype=torch.int64)
    shades = torch.zeros(samples, SIZE, SIZE)
    for label, shade in zip(labels, shades, strict=True):
        for _ in range(3):
            kind, radius, row, column = torch.randint(0, 2**20, (4,), generator=generator).tolist()
            kind, radius, row, column = kind % 3 + 1, 4 + radius % 5, row % SIZE, column % SIZE
            far, across = (rows - row).abs(), (columns - column).abs()
            inside = {
                1: far**2 + across**2 <= radius**2,
                2: torch.maximum(far, across) < radius,
                3: (torch.minimum(far, across) < 2) & (torch.maximum(far, across) <= radius),
            }[kind]
            label[inside] = kind
            shade[inside] = 1.5 * torch.rand((), generator=generator) - 0.5  # its shade does not tell its kind
    return TensorDataset((shades + 0.2 * torch.randn(shades.shape, generator=generator))[:, None], labels)


class UNet(nn.Module):
    """Three levels, pairs of 3×3 convolutions with batch norms, concatenated skips."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(_pair(a, b) for a, b in zip([1, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * out, out, 2, 2) for out in reversed(widths[:-1]))
        self.back = nn.ModuleList(_pair(2 * out, out) for out in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, KINDS, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes, rows, columns]."""
        found, skips = images, []
        for level, pair in enumerate(self.down):
            found = pair(F.max_pool2d(found, 2) if level else found)
            skips.append(found)
        for up, back, skip in zip(self.up, self.back, reversed(skips[:-1]), strict=True):
            found = back(torch.cat([up(found), skip], 1))
        return self.head(found)


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _loaders(train: TensorDataset, test: TensorDataset, *, batch: int) -> transprune.LoaderData:
    return transprune.LoaderData(
        train=DataLoader(train, batch, shuffle=True, drop_last=True),
        test=DataLoader(test, 250),
        example=train.tensors[0][:1],
    )


# --- the table's columns


def _of_project(name: str) -> Callable[[Sources], nn.Module]:
    return lambda sources: build_model(name, classes=10, image_channels=3)


_RESNET = {
    "data": cifar("imagenet"),
    "network": resnet20,
    "task": transprune.classification(),
    "figure": "top1",
    "search_epochs": 2,
    "epochs": 4,
}
_SMALL = {
    "budget": "macs=0.5",
    "data": cifar(),
    "task": transprune.classification(),
    "figure": "top1",
    "teacher_epochs": 15,
    "search_epochs": 2,
    "epochs": 4,
}
_LONG = _SMALL | {"budget": "macs=0.47", "is_long": True}
CELLS = {
    "resnet20-0.73": Cell(title="ResNet-20, CIFAR-10, 73 % of the MACs", budget="macs=0.73", **_RESNET),
    "resnet20-0.5": Cell(title="ResNet-20, CIFAR-10, half", budget="macs=0.5", **_RESNET),
    "resnet20-0.25": Cell(title="ResNet-20, CIFAR-10, a quarter", budget="macs=0.25", **_RESNET),
    "mobilenetv2": Cell(title="MobileNetV2, CIFAR-10, half", network=mobilenet, **_SMALL),
    "vit": Cell(title="ViT, CIFAR-10, half", network=lambda sources: ViT(), **_SMALL),
    "spoken-digits": Cell(
        title="spoken digits, a quarter",
        budget="macs=0.25",
        data=spoken_digits,
        network=keyword_network,
        task=transprune.classification(),
        figure="top1",
        teacher_epochs=20,
        search_epochs=10,
        epochs=15,
    ),
    "unet": Cell(
        title="U-Net, drawn shapes, a quarter",
        budget="macs=0.25",
        data=drawn_shapes,
        network=lambda sources: UNet(),
        task=transprune.segmentation(KINDS),
        figure="mean_iou",
        teacher_epochs=25,
        teacher_rate=0.05,
        search_epochs=4,
        epochs=6,
    ),
    "resnet56": Cell(title="ResNet-56, CIFAR-10, −53 %", network=_of_project("resnet56"), **_LONG),
    "resnet110": Cell(title="ResNet-110, CIFAR-10, −53 %", network=_of_project("resnet110"), **_LONG),
}
"""A language model is in `benchmarks/stories.py`."""
