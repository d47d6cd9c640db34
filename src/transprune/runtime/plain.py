"""Values of torch and numpy as plain Python ones, for text files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def to_plain(value: Any) -> Any:
    """Converts a value to what JSON can hold.

    Tensors and arrays become nested lists (scalars: numbers), tuples become lists, keys and paths become text. JSON
    has no word for a number that is not finite: these become the texts `nan`, `inf` and `-inf`. Other kinds of
    values are returned as they are.
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
