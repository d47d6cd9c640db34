"""A cache of latency models on disk, so that a machine measures a network only once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from transprune.costs import Layer
from transprune.errors import LatencyError
from transprune.latency.backends import Backend
from transprune.latency.latency_model import Correction, LatencyModel, TimeTable, Validation
from transprune.latency.timed_operators import TimedOperator
from transprune.options import LatencyOptions
from transprune.records import read_record
from transprune.runtime.files import disk_errors, write_atomically
from transprune.space import SearchSpace

FORMAT = 1
_NOT_IN_KEY = ("bound", "remeasure")
"""Options that do not change what is measured."""


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """The contents of a file besides its format and key."""

    batch_size: int
    tables: tuple[TimeTable, ...]
    layers: tuple[int | None, ...]
    """The index of the table of each layer of the space; None: it has none."""
    correction: Correction
    validation: Validation


def cache_folder() -> Path:
    """`transprune/latency` in the user's cache: `$XDG_CACHE_HOME`, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transprune" / "latency"


def cache_key(
    backend: Backend,
    options: LatencyOptions,
    space: SearchSpace,
    operators: Mapping[Layer, TimedOperator],
    input_sizes: list[list[int]],
) -> dict[str, Any]:
    """Everything that a latency model depends on: hardware, versions, options, and the structure of the network."""
    parts = [asdict(operators[layer]) if layer in operators else None for layer in space.layers]
    structure = json.dumps([space.to_json(), parts], sort_keys=True)
    return {
        **{name: value for name, value in asdict(options).items() if name not in _NOT_IN_KEY},
        **backend.surroundings(),
        "input_sizes": input_sizes,
        "network": hashlib.sha256(structure.encode()).hexdigest(),
    }


def cache_path(key: Mapping[str, Any]) -> Path:
    """The file for a key."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"{digest[:24]}.json"


def save_model(path: Path, key: Mapping[str, Any], space: SearchSpace, model: LatencyModel) -> None:
    """Writes a model atomically.

    Raises:
        RunFolderError: The file cannot be written.
    """
    with disk_errors("make the folder", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(model_json(key, space, model)) + "\n").encode())


def model_json(key: Mapping[str, Any], space: SearchSpace, model: LatencyModel) -> dict[str, Any]:
    """A model as plain values for `json.dumps`."""
    tables = list(dict.fromkeys(model.tables.values()))
    kept = _Kept(
        batch_size=model.batch_size,
        tables=tuple(tables),
        layers=tuple(tables.index(model.tables[layer]) if layer in model.tables else None for layer in space.layers),
        correction=model.correction,
        validation=model.validation,
    )
    return {"format": FORMAT, "key": dict(key), "median_error": model.validation.median, **asdict(kept)}


def load_model(path: Path, key: Mapping[str, Any] | None, space: SearchSpace) -> LatencyModel | None:
    """Reads a model; None if there is no file.

    Args:
        path: The file.
        key: The key that the model must have; None: any.
        space: The space whose layers the model is for.

    Raises:
        LatencyError: The file is damaged or of a newer format, or the model is for another key or space.
        RunFolderError: The file cannot be read.
    """
    with disk_errors("read", path):
        if not path.is_file():
            return None
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        value = json.loads(text)
        if value["format"] != FORMAT:
            raise ValueError(f"its format is {value['format']!r}, expected {FORMAT}")
        if key is not None and value["key"] != json.loads(json.dumps(key)):
            raise ValueError("it is of another network, machine or option")
        kept = read_record(_Kept, {item.name: value[item.name] for item in fields(_Kept) if item.name in value})
        tables = {
            layer: kept.tables[index]
            for layer, index in zip(space.layers, kept.layers, strict=True)
            if index is not None
        }
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise LatencyError(
            f"cannot read the latency model '{path}': {error}; remove that file, and it is measured again"
        ) from error
    return LatencyModel(tables, kept.batch_size, kept.correction, kept.validation)
