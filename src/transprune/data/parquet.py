"""`parquet:DIR`: the image layout of Hugging Face data sets.

Files `train*.parquet` and `validation*.parquet` or `test*.parquet`, in DIR or in DIR/data, perhaps in shards
(`train-00000-of-00002.parquet`). Each has a struct column {bytes, path} with an encoded image in each row, and an
integer column with the label. Class names come from the metadata that Hugging Face writes into the schema; without it
the classes are called by their numbers. The encoded images are held in memory.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from transprune.data.augmentation import Augmentation
from transprune.data.encoded import encoded_data
from transprune.data.image_tables import LabelledTable, read_tables
from transprune.data.splits import FileSplit, ImageData, first_bad_label
from transprune.errors import DataError

TEST_PREFIXES = ("val", "test")
"""How the files of the test split begin, in this order: the `test` of public data sets often has no labels."""


def load_parquet(
    folder: Path,
    *,
    image_size: tuple[int, int, int] | None = None,
    augmentation: Augmentation | None = None,
) -> ImageData:
    """Loads tables of images.

    Args:
        folder: holds the parquet files, or a folder `data` that does.
        image_size: channels, rows and columns; by default the images' own if they are all small and alike, else
            3 x 224 x 224.
        augmentation: random changes of the training images, if not the standard ones.

    Raises:
        DataError: if files are missing or malformed, a label is missing or out of range, a class has no images, or an
            image cannot be read.
    """
    train_paths = _found(folder, "train")
    test_paths = next((paths for prefix in TEST_PREFIXES if (paths := _found(folder, prefix))), [])
    for part, paths in (("train", train_paths), ("test", test_paths)):
        if not paths:
            raise DataError(
                f"cannot load parquet:{folder}: no files of the {part} split there or in its folder 'data'; "
                "expected train*.parquet, and validation*.parquet or test*.parquet"
            )
    train, test = read_tables(train_paths), read_tables(test_paths)
    classes = _classes(folder, train, test)
    return encoded_data(
        folder.resolve().name,
        train=_split(train, classes),
        test=_split(test, classes),
        classes=classes,
        image_size=image_size,
        augmentation=augmentation,
    )


def _found(folder: Path, prefix: str) -> list[Path]:
    """The files of a split, in order of their names, with no shard missing."""
    for place in (folder, folder / "data"):
        paths = sorted(place.glob(f"{prefix}*.parquet"))
        if paths:
            _check_shards(paths)
            return paths
    return []


def _check_shards(paths: list[Path]) -> None:
    numbers = [match.groups() for path in paths if (match := re.search(r"-(\d+)-of-(\d+)\.parquet$", path.name))]
    if not numbers:
        return
    count = max(int(of) for _, of in numbers)
    missing = sorted(set(range(count)) - {int(number) for number, _ in numbers})
    if missing:
        raise DataError(
            f"cannot load {paths[0].name} and its like from {paths[0].parent}: {len(missing)} of {count} shards are "
            f"missing, the first is number {missing[0]}"
        )


def _classes(folder: Path, train: LabelledTable, test: LabelledTable) -> tuple[str, ...]:
    if train.names and test.names and train.names != test.names:
        raise DataError(f"cannot load parquet:{folder}: the class names of the training and test files differ")
    names = train.names or test.names
    seen = set(train.labels.tolist())
    labels = range(len(names) if names else max(seen) + 1)
    absent = next((label for label in labels if label not in seen), None)
    if absent is not None:
        called = f" ({names[absent]!r})" if names else ""
        raise DataError(
            f"cannot load parquet:{folder}: no training image has label {absent}{called}; "
            f"expected images of each of the {len(labels)} classes"
        )
    return names or tuple(map(str, labels))


def _split(table: LabelledTable, classes: tuple[str, ...]) -> FileSplit:
    place = first_bad_label(table.labels, len(classes))
    if place is not None:
        raise DataError(
            f"cannot use the label {int(table.labels[place])} {table.files.name(place)}: "
            f"expected 0 to {len(classes) - 1} for {len(classes)} classes"
        )
    return FileSplit(table.files, torch.arange(len(table.files)), table.labels)
