"""A network for a microcontroller: spoken words told apart in at most 64 KB of 8 bits, from one command.

    transprune run examples/keywords.py:network --data examples/keywords.py:sounds --budget file=64KB --int8 \
        --preset medium --out runs/keywords

The words are in two tables, `train.parquet` and `test.parquet`, in the layout of Hugging Face's `datasets`: `audio`
(the bytes of a WAV file, 8 kHz, 16 bits, one channel) and `label` (a number). `KEYWORDS=FOLDER` says where they are.
Without it the words are whistles that rise and fall, so that the command can be tried. What goes into the network are
log-mel spectrograms of one second.
"""

from __future__ import annotations

import io
import os
import wave
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import transprune

RATE, WINDOW, HOP = 8000, 256, 128
MELS, FRAMES = 40, 64
WORDS = 10


def network() -> nn.Module:
    """Four convolutions with batch norms, of which three halve the picture, and the mean over all places."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 32, 2), (32, 64, 2), (64, 96, 2), (96, 128, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, WORDS))


def sounds() -> transprune.LoaderData:
    """Spectrograms [batch, 1, 40, 64], shifted and scaled by the mean and deviation of those to learn from."""
    folder = os.environ.get("KEYWORDS")
    parts = [_read(Path(folder) / f"{part}.parquet") if folder else _whistled(part) for part in ("train", "test")]
    pictures = [spectrograms(waves) for waves, _ in parts]
    mean, deviation = pictures[0].mean(), pictures[0].std()
    train, test = (
        TensorDataset((picture - mean) / deviation, labels)
        for picture, (_, labels) in zip(pictures, parts, strict=True)
    )
    batches = DataLoader(train, batch_size=64, shuffle=True)
    return transprune.LoaderData(train=batches, test=DataLoader(test, batch_size=256), example=train.tensors[0][:1])


def spectrograms(waves: Tensor) -> Tensor:
    """Log-mel spectrograms [sounds, 1, 40, 64] of sounds of one second [sounds, 8000]."""
    power = torch.stft(waves, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True).abs().square()
    mels = _mel_filters() @ power[..., :FRAMES]
    return F.pad(mels, (0, FRAMES - mels.shape[-1])).clamp_min(1e-6).log()[:, None]


def _mel_filters() -> Tensor:
    """Triangles [40, 129] whose corners are evenly spaced in mel, from 20 Hz to half the sampling rate."""
    low, high = (2595 * torch.tensor(1 + hertz / 700).log10() for hertz in (20, RATE / 2))
    corners = 700 * (10 ** (torch.linspace(float(low), float(high), MELS + 2) / 2595) - 1)
    bins = torch.linspace(0, RATE / 2, WINDOW // 2 + 1)
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp_min(0)


def _read(file: Path) -> tuple[Tensor, Tensor]:
    """Sounds of one second [sounds, 8000], cut or filled with silence, and the numbers of their words."""
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(file, columns=["audio", "label"]).to_pylist()
    waves = torch.zeros(len(rows), RATE)
    for place, row in zip(waves, rows, strict=True):
        with wave.open(io.BytesIO(row["audio"]["bytes"])) as content:
            found = torch.frombuffer(bytearray(content.readframes(content.getnframes())), dtype=torch.int16)
        place[: len(found)] = found[:RATE].float() / 2**15
    return waves, torch.tensor([row["label"] for row in rows])


def _whistled(part: str) -> tuple[Tensor, Tensor]:
    """Words that differ in where their pitch begins and whether it rises or falls, in noise."""
    count, seed = (400, 0) if part == "train" else (200, 1)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(WORDS, (count,), generator=generator)
    seconds = torch.arange(RATE) / RATE
    begin = 300.0 + 250 * (labels // 2) + 60 * torch.rand(count, generator=generator)
    slope = torch.where(labels % 2 == 0, 400.0, -200.0)
    waves = torch.sin(2 * torch.pi * (begin[:, None] * seconds + slope[:, None] / 2 * seconds**2))
    return 0.3 * waves + 0.1 * torch.randn(count, RATE, generator=generator), labels
