"""Nested tensors and plain values as one safetensors file, whose metadata hold the shape of the tree as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from transprune.runtime.tensors import decode_tensors, encode_tensors, read_metadata


def encode_tree(tree: Any) -> bytes:
    """Writes a tree of dicts, lists, tuples, tensors, texts, numbers, truth values and None.

    Raises:
        TypeError: Something else is in it.
    """
    tensors: dict[str, Tensor] = {}
    shape = json.dumps(_described(tree, tensors), separators=(",", ":"))
    return encode_tensors(tensors, {"tree": shape})


def decode_tree(content: bytes) -> Any:
    """Reads what `encode_tree` wrote; tensors come on the CPU.

    Raises:
        ValueError: A byte is missing or was changed, or the content is something else.
    """
    tensors = decode_tensors(content, needs_checksum=True)
    return _rebuilt(json.loads(read_metadata(content)["tree"]), tensors)


def _described(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree as JSON: dicts as pairs, since their keys may be numbers; tensors by name, and put into `tensors`."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"map": [[_described(part, tensors) for part in pair] for pair in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_described(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_described(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} is neither a tensor nor a plain value")


def _rebuilt(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_rebuilt(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    items = [_rebuilt(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else dict(items)
