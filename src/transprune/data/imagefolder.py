"""Folders of image files.

`imagefolder:DIR` has a folder for each class, under `train/` and `val/` or `test/`. Alternatively, tables list the
classes: `train.csv` and `val.csv` or `test.csv` in DIR. The first column names the files, relative to DIR or to the
folder of the split; the column `label` (or `class`, or the second of two) names their classes. A column `labels` (or
`classes`) names several for each image, or none, with `;`, `|` or commas between them, or else spaces; so does a column
of 0 and 1 for each class. Without test images, a share of the training images is used. Names with a leading dot are
ignored. `images:DIR` has images without labels.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from transprune.data.splits import EncodedData, FileSplit, split_halves
from transprune.errors import DataError

TEST_FOLDERS = ("val", "validation", "test")
"""Folders of the test split, in order of preference: the `test` of public data sets often has no labels."""

LAYOUT = (
    "expected DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg (or DIR/test), one folder for each class; or the tables "
    "DIR/train.csv and DIR/val.csv of files and their classes"
)
LABEL_COLUMNS = ("label", "class", "target", "category")
"""How the column of classes in a table may be called; else it is the second one."""
SEVERAL_COLUMNS = ("labels", "classes", "tags", "targets")
"""How a column with several classes for each image may be called."""
WHETHER = {"0": False, "0.0": False, "1": True, "1.0": True}
"""What the cells of a table hold that has a column for each class."""
TEST_SHARE = 0.2
"""Share of the training images that is taken for the test images where there are none."""


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
        return open(self.paths[row], "rb", opener=_at_once)


def _at_once(path: str, flags: int) -> int:
    """Opens a file without waiting for a writer, as a named pipe would."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_imagefolder(folder: Path) -> EncodedData:
    """Lists the images of `train/` and of `val/` or `test/`, or of tables in their place.

    Raises:
        DataError: The training images are missing, a table is malformed, or the classes differ or have no images.
    """
    train_folder = folder / "train"
    if not train_folder.is_dir() or ((folder / "train.csv").is_file() and not _class_names(train_folder)):
        return _read_tables(folder)
    test_folder = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    classes = _classes(train_folder)
    left_out = _left_out(train_folder, *([test_folder] if test_folder else []))
    if test_folder is None:
        return _divided(folder, _listed(train_folder, classes), classes, left_out)
    _check_same(train_folder, classes, test_folder, _classes(test_folder))
    return EncodedData(
        name=folder.resolve().name,
        train=_listed(train_folder, classes),
        test=_listed(test_folder, classes),
        classes=classes,
        left_out=left_out,
    )


def _divided(folder: Path, images: FileSplit, classes: tuple[str, ...], left_out: dict[str, int]) -> EncodedData:
    """Training and test images out of the training images, always the same ones."""
    train, test = split_halves(images, fraction=1 - TEST_SHARE, seed=0)
    return EncodedData(
        name=folder.resolve().name,
        train=train,
        test=test,
        classes=classes,
        left_out=left_out,
        divided=(
            f"there are no test images (no 'val' or 'test'), so {len(test):,} of the {len(images):,} training images, "
            "drawn class by class and always the same, are kept for testing and not learned from"
        ),
    )


def _read_tables(folder: Path) -> EncodedData:
    """The images that tables name, with their classes in alphabetical order.

    Raises:
        DataError: There is no table of the training images, or one is malformed.
    """
    train_table = folder / "train.csv"
    if not train_table.is_file():
        raise DataError(f"cannot load imagefolder:{folder}: it has no folder 'train'; {LAYOUT}")
    test_table = next((folder / f"{name}.csv" for name in TEST_FOLDERS if (folder / f"{name}.csv").is_file()), None)
    train, *others = _told(*(list(_rows(table)) for table in (train_table, test_table) if table is not None))
    classes = _classes_in(train)
    if not classes:
        raise _malformed(train_table, "no image of it has a class")
    images = _named(train, classes)
    if test_table is None:
        return _divided(folder, images, classes, {})
    (test,) = others
    found = _classes_in(test)
    if any(isinstance(label, tuple) for _, label in train):  # a rare class may have no test image
        found = tuple({*classes, *found})
    _check_same(train_table, classes, test_table, found)
    return EncodedData(name=folder.resolve().name, train=images, test=_named(test, classes), classes=classes)


Label = str | list[str] | tuple[str, ...]
"""The class of an image; or, where there may be several, a list of one text that names them, or the tuple of them."""

Row = tuple[Path, Label]
"""A file, and what a table says of it."""


def _told(*tables: list[Row]) -> list[list[Row]]:
    """The rows of tables with several classes told apart: by `;`, `|` or commas if any text has one, else by spaces.

    If an image of any table may have several, those of the others do too.
    """
    labels = [label for rows in tables for _, label in rows]
    if all(isinstance(label, str) for label in labels):
        return list(tables)
    is_marked = any(re.search(r"[;|,]", label[0]) for label in labels if isinstance(label, list))
    between = r"[;|,]" if is_marked else r"\s"
    return [[(file, _parted(between, label)) for file, label in rows] for rows in tables]


def _parted(between: str, label: Label) -> tuple[str, ...]:
    match label:
        case str():
            return (label,)
        case tuple():
            return label
    return tuple(name for each in re.split(between, label[0]) if (name := each.strip()))


def _classes_in(rows: list[Row]) -> tuple[str, ...]:
    return tuple(sorted({one for _, label in rows for one in ((label,) if isinstance(label, str) else label)}))


def _rows(table: Path) -> Iterator[Row]:
    """Every file that a table names, and its class or classes, not told apart yet.

    Raises:
        DataError: The table has no such columns, or a row names no file or no class.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            heading, *rows = csv.reader(file, delimiter=_delimiter(table))
    except (ValueError, csv.Error) as error:
        raise _malformed(table, f"it is no table of text ({error})") from error
    if len(heading) < 2 or not rows:
        raise _malformed(table, f"it has the columns {', '.join(heading)} and {len(rows)} rows below them")
    if any(place.is_file() for place in _places(table, heading[0].strip())):
        raise _malformed(table, f"its first line, where the heading belongs, names the image {heading[0].strip()!r}")
    names = [name.strip().lower() for name in heading]
    column = next((place for place, name in enumerate(names) if name in (*LABEL_COLUMNS, *SEVERAL_COLUMNS)), None)
    has_each = column is None and len(names) > 2 and all(_says_each(row, len(names)) for row in rows if any(row))
    if column is None and len(names) > 2 and not has_each:
        raise _malformed(
            table, f"none of its columns {', '.join(names)} is called {', '.join((*LABEL_COLUMNS, *SEVERAL_COLUMNS))}"
        )
    column = 1 if column is None else column
    is_several = names[column] in SEVERAL_COLUMNS
    seen: dict[Path, Label] = {}
    for number, row in enumerate(rows, start=2):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) <= column or not cells[0] or not (cells[column] or is_several):
            raise _malformed(table, f"line {number} names no file or no class: {', '.join(cells)}")
        places = _places(table, cells[0])
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise _malformed(table, f"line {number}: neither {places[0]} nor {places[1]} is there")
        label: Label = [cells[column]] if is_several else cells[column]
        if has_each:
            label = tuple(name.strip() for name, cell in zip(heading[1:], cells[1:], strict=True) if WHETHER[cell])
        if seen.setdefault(found, label) != label:
            raise _malformed(table, f"line {number} gives {cells[0]!r} a second class, and an image has one")
        yield found, label


def _places(table: Path, file: str) -> tuple[Path, Path]:
    """Where a file may be that a table names."""
    return table.parent / file, table.with_suffix("") / file


def _says_each(row: list[str], columns: int) -> bool:
    return len(row) == columns and all(cell.strip() in WHETHER for cell in row[1:])


def _delimiter(table: Path) -> str:
    """What separates the columns: the most frequent of those that are usual in the heading."""
    with table.open(encoding="utf-8-sig") as file:
        heading = file.readline()
    return max(",;\t", key=heading.count)


def _malformed(table: Path, found: str) -> DataError:
    return DataError(
        f"cannot read the classes of images from {table}: {found}; expected a heading such as file,label, and in each "
        "row below a file, from the folder of the table or that of its split, and its class"
    )


def _named(rows: list[Row], classes: tuple[str, ...]) -> FileSplit:
    numbers = {name: number for number, name in enumerate(classes)}
    if any(isinstance(label, tuple) for _, label in rows):
        labels = torch.tensor([[float(name in label) for name in classes] for _, label in rows])
    else:
        labels = torch.tensor([numbers[str(label)] for _, label in rows], dtype=torch.int64)
    return FileSplit(FolderFiles(tuple(file for file, _ in rows)), torch.arange(len(rows)), labels)


def read_images(folder: Path) -> EncodedData:
    """Lists the images in a folder and its subfolders, without labels; they are both training and test images.

    Raises:
        DataError: There are none.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    files = images_below(folder)
    if not files:
        raise DataError(
            f"cannot load images:{folder}: there is no image in it or below ({', '.join(IMG_EXTENSIONS)}); expected a "
            "folder of image files, whose labels are not needed"
        )
    split = FileSplit(FolderFiles(tuple(files)), torch.arange(len(files)), torch.zeros(len(files), dtype=torch.int64))
    return EncodedData(name=folder.resolve().name, train=split, test=split, classes=("unknown",), is_labelled=False)


def images_below(folder: Path) -> list[Path]:
    """The image files in a folder and in those below, but for what is hidden."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return sorted(file for file in _files(folder) if file.name.lower().endswith(IMG_EXTENSIONS))


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder and in those below, but for what is hidden: its name, or that of a folder, has a dot first.

    Folder by folder in the order of their names, and in each by name. Links to folders are followed, but never back to
    where they came from.
    """
    found, real = [], folder.resolve()
    seen = {real, *real.parents}
    for place, folders, names in os.walk(folder, followlinks=True):
        inner = {name: Path(place, name).resolve() for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for name, target in inner.items() if target not in seen]
        seen.update(inner.values())
        found.append((place, sorted(name for name in names if not name.startswith("."))))
    for place, names in sorted(found):
        yield from (Path(place, name) for name in names)


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


def _classes(folder: Path) -> tuple[str, ...]:
    classes = _class_names(folder)
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
        file.suffix.lower()
        for folder in folders
        for kind in folder.iterdir()
        if kind.is_dir() and not kind.name.startswith(".")
        for file in _files(kind)
        if not file.name.lower().endswith(IMG_EXTENSIONS)
    )
    return dict(endings.most_common())


def _listed(folder: Path, classes: tuple[str, ...]) -> FileSplit:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    samples = [
        (file, number)
        for number, name in enumerate(classes)
        for file in _files(folder / name)
        if file.name.lower().endswith(IMG_EXTENSIONS)
    ]
    labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
    for number, count in enumerate(labels.bincount(minlength=len(classes)).tolist()):
        if not count:
            raise DataError(
                f"cannot load images from {folder / classes[number]}: it holds no image file "
                f"({', '.join(IMG_EXTENSIONS)}); add images of this class or remove its folder from every split"
            )
    return FileSplit(FolderFiles(tuple(file for file, _ in samples)), torch.arange(len(samples)), labels)
