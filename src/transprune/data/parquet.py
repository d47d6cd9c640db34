"""`parquet:DIR`: the image layout of Hugging Face data sets.

DIR or DIR/data holds `train*.parquet` and `validation*.parquet` or `test*.parquet`, possibly in shards
(`train-00000-of-00002.parquet`). Each file has a struct column {bytes, path} of encoded images and an integer column of
labels. Class names come from the metadata that Hugging Face writes into the schema; without it, classes are named by
their numbers. The encoded images are held in memory.
"""

from __future__ import annotations

import io
import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from transprune.data.splits import EncodedData, FileSplit, first_bad_label
from transprune.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

LABEL_NAMES = ("label", "labels")
TEST_PREFIXES = ("val", "test")
"""Prefixes of the test split's files, in order of preference: the `test` of public data sets often has no labels."""


@dataclass(frozen=True)
class TableFiles:
    """Encoded images in the rows of tables, held in memory."""

    images: pa.ChunkedArray
    """Encoded images, binary [rows], all tables concatenated."""

    paths: tuple[Path, ...]
    """The file of each table."""

    starts: tuple[int, ...]
    """The first row of each table."""

    def __len__(self) -> int:
        return len(self.images)

    def name(self, row: int) -> str:
        table = bisect_right(self.starts, row) - 1
        return f"in row {row - self.starts[table]} of {self.paths[table]}"

    def open(self, row: int) -> BinaryIO:
        return io.BytesIO(self.images[row].as_py())


@dataclass(frozen=True, eq=False)
class LabelledTable:
    """The contents of the parquet files of one split."""

    files: TableFiles
    """Encoded images."""

    labels: Tensor
    """Class numbers as found, int64 [rows]."""

    names: tuple[str, ...] | None
    """Names of the classes, if the files have them."""


def read_parquet(folder: Path) -> EncodedData:
    """Reads tables of images from a folder or its subfolder `data`.

    Raises:
        DataError: Files are missing or malformed, a label is missing or out of range, or a class has no images.
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
    return EncodedData(
        name=folder.resolve().name, train=_split(train, classes), test=_split(test, classes), classes=classes
    )


def _found(folder: Path, prefix: str) -> list[Path]:
    """The files of a split, sorted by name; checks that no shard is missing."""
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


def read_tables(paths: Sequence[Path]) -> LabelledTable:
    """Reads the parquet files of one split.

    Args:
        paths: At least one file; rows are concatenated in this order.

    Raises:
        DataError: A file cannot be read, lacks a column of images or labels, or has a row without one.
    """
    import pyarrow as pa

    tables = [_read_table(path) for path in paths]
    images = pa.chunked_array([chunk for table in tables for chunk in table.images.chunks], pa.large_binary())
    lengths = [len(table.images) for table in tables]
    files = TableFiles(images, tuple(paths), tuple(accumulate(lengths[:-1], initial=0)))
    if not len(files):
        raise DataError(f"cannot load {', '.join(path.name for path in paths)}: no rows in {paths[0].parent}")
    return LabelledTable(files, torch.cat([table.labels for table in tables]), tables[0].names)


@dataclass(frozen=True)
class _Table:
    images: pa.ChunkedArray
    labels: Tensor
    names: tuple[str, ...] | None


def _read_table(path: Path) -> _Table:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            image_column, label_column = _image_column(path, schema), _label_column(path, schema)
            table = file.read(columns=[image_column, label_column])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}: {error}; expected a complete parquet file") from error
    images = pc.struct_field(table[image_column], "bytes").cast(pa.large_binary())
    for what, column in (("image bytes", images), ("label", table[label_column])):
        if column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            raise DataError(f"cannot load row {row} of {path}: it has no {what}; complete or remove the row")
    labels = torch.from_numpy(table[label_column].cast(pa.int64()).to_numpy().copy())
    return _Table(images, labels, _class_names(schema, label_column))


def _image_column(path: Path, schema: pa.Schema) -> str:
    import pyarrow as pa

    found = [
        field.name for field in schema if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    return _only(path, schema, found, "one struct column {bytes, path} of images")


def _label_column(path: Path, schema: pa.Schema) -> str:
    import pyarrow as pa

    found = [field.name for field in schema if pa.types.is_integer(field.type)]
    usual = [name for name in found if name in LABEL_NAMES]
    return _only(path, schema, usual or found, "one integer column of labels, called 'label' if there are more")


def _only(path: Path, schema: pa.Schema, found: list[str], expected: str) -> str:
    if len(found) != 1:
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise DataError(f"cannot load {path}: expected {expected}; it has the columns {columns}")
    return found[0]


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    """Class names from the metadata that Hugging Face writes; None if missing or malformed."""
    value: Any
    try:
        value = json.loads((schema.metadata or {}).get(b"huggingface", b"null"))
    except ValueError:
        return None
    for key in ("info", "features", label_column, "names"):
        value = value.get(key) if isinstance(value, dict) else None
    return tuple(map(str, value)) if isinstance(value, list) and value else None
