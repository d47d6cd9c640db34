"""Nested tuples, lists and dicts of tensors, such as a batch, or the inputs and outputs of a network."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a value, in order.

    Example:
        >>> [tensor.item() for tensor in tensors_in({"a": torch.tensor(1), "b": [torch.tensor(2), "text"]})]
        [1, 2]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


def on_device(value: Any, device: torch.device | str) -> Any:
    """The same value with its tensors on a device, as well as anything else with a method `to`."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=torch.device(device).type != "cpu")  # copies to the CPU must be complete
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: on_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [on_device(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def sliced(value: Any, places: slice, samples: int) -> Any:
    """A value cut to some of its samples: slices of its tensors and lists with `samples` entries, all else unchanged.

    Example:
        >>> sliced({"image": torch.zeros(8, 3), "sizes": [1] * 8, "scale": torch.tensor(2.0)}, slice(0, 2), 8)["sizes"]
        [1, 1]
    """
    if isinstance(value, Tensor):
        return value[places] if value.dim() and len(value) == samples else value
    if isinstance(value, Mapping):
        return {key: sliced(item, places, samples) for key, item in value.items()}
    if isinstance(value, list) and len(value) == samples and not any(isinstance(item, Tensor) for item in value):
        return value[places]
    if isinstance(value, tuple | list):
        items = [sliced(item, places, samples) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def outline(value: Any) -> str:
    """A short description of a value for messages: types, keys and shapes.

    Example:
        >>> outline((torch.zeros(8, 3), {"label": torch.zeros(8)}))
        'a tuple of [8, 3] and a dict of label: [8]'
    """
    if isinstance(value, Tensor):
        return str(list(value.shape))
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of " + ", ".join(f"{key}: {outline(item)}" for key, item in value.items())
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of " + (" and ".join(outline(item) for item in value[:8]) or "nothing")
    return f"a {type(value).__name__}"


def to_plain(value: Any) -> Any:
    """Converts a value to types that JSON has.

    Tensors and arrays become nested lists (scalars: numbers), tuples become lists, keys and paths become text, and
    numbers that are not finite become the texts `nan`, `inf` and `-inf`. Other values are returned unchanged.
    """
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return to_plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
