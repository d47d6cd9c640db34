"""Paths that come from outside."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def expanded(text: str) -> Path:
    """The path with `~` replaced by the home folder; as it stands where no user has that name."""
    with suppress(ValueError):  # a null byte, which no path has either: nothing will be found there
        text = os.path.expanduser(text)
    return Path(text)
