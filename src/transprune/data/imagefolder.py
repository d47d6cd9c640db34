"""Folders of image files.

`imagefolder:DIR` has a folder for each class, under `train/` and `val/` or `test/`. `images:DIR` has images without
labels.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from transprune.data.splits import EncodedData, FileSplit
from transprune.errors import DataError

TEST_FOLDERS = ("val", "validation", "test")
"""Folders of the test split, in order of preference: the `test` of public data sets often has no labels."""

LAYOUT = "expected DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg (or DIR/test), one folder for each class"


@dataclass(frozen=True)
class FolderFiles:
    """Image files in folders."""

    paths: tuple[Path, ...]
    """One file for each row."""

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, row: int) -> str:
        return str(self.paths[row])

    def open(self, row: int) -> BinaryIO:
        return self.paths[row].open("rb")


def read_imagefolder(folder: Path) -> EncodedData:
    """Lists the images of `train/` and of `val/` or `test/`.

    Raises:
        DataError: A folder is missing, the two have different classes, or a class has no images.
    """
    train_folder = folder / "train"
    test_folder = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if not train_folder.is_dir():
        raise DataError(f"cannot load imagefolder:{folder}: it has no folder 'train'; {LAYOUT}")
    if test_folder is None:
        raise DataError(f"cannot load imagefolder:{folder}: it has no folder 'val' or 'test'; {LAYOUT}")
    classes = _classes(train_folder)
    _check_same(train_folder, classes, test_folder, _classes(test_folder))
    return EncodedData(
        name=folder.resolve().name,
        train=_listed(train_folder, classes),
        test=_listed(test_folder, classes),
        classes=classes,
        left_out=_left_out(train_folder, test_folder),
    )


def read_images(folder: Path) -> EncodedData:
    """Lists the images in a folder and its subfolders, without labels; they are both training and test images.

    Raises:
        DataError: There are none.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    files = sorted(
        Path(place, name)
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")
    )
    if not files:
        raise DataError(
            f"cannot load images:{folder}: there is no image in it or below ({', '.join(IMG_EXTENSIONS)}); expected a "
            "folder of image files, whose labels are not needed"
        )
    split = FileSplit(FolderFiles(tuple(files)), torch.arange(len(files)), torch.zeros(len(files), dtype=torch.int64))
    return EncodedData(name=folder.resolve().name, train=split, test=split, classes=("unknown",), is_labelled=False)


def _classes(folder: Path) -> tuple[str, ...]:
    classes = tuple(
        sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    )
    if not classes:
        raise DataError(f"cannot load images from {folder}: it has no class folders; {LAYOUT}")
    return classes


def _check_same(train_folder: Path, train: tuple[str, ...], test_folder: Path, test: tuple[str, ...]) -> None:
    different = sorted(set(train) ^ set(test))
    if different:
        names = ", ".join(
            f"{name!r} is only in {(train_folder if name in train else test_folder)}" for name in different[:5]
        )
        raise DataError(
            f"cannot match the classes of {train_folder} and {test_folder}: {names}"
            f"{', ...' if len(different) > 5 else ''}; expected the same class folders in both"
        )


def _left_out(*folders: Path) -> dict[str, int]:
    """Counts the files in class folders that are not images by their endings; most frequent ending first."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    endings = Counter(
        Path(name).suffix.lower()
        for folder in folders
        for kind in folder.iterdir()
        if kind.is_dir() and not kind.name.startswith(".")
        for _, _, names in os.walk(kind, followlinks=True)
        for name in names
        if not name.startswith(".") and not name.lower().endswith(IMG_EXTENSIONS)
    )
    return dict(endings.most_common())


def _listed(folder: Path, classes: tuple[str, ...]) -> FileSplit:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    numbers = {name: number for number, name in enumerate(classes)}
    samples = make_dataset(folder, numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
    labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
    for number, count in enumerate(labels.bincount(minlength=len(classes)).tolist()):
        if not count:
            raise DataError(
                f"cannot load images from {folder / classes[number]}: it holds no image file "
                f"({', '.join(IMG_EXTENSIONS)}); add images of this class or remove its folder from every split"
            )
    return FileSplit(FolderFiles(tuple(Path(path) for path, _ in samples)), torch.arange(len(samples)), labels)
