"""What programs read: JSON on standard output, and nothing else there."""

from __future__ import annotations

import json
from typing import Annotated, Any

import tyro

from transprune.runtime import to_plain

AsJson = Annotated[bool, tyro.conf.arg(name="json")]
"""The option `--json` of every command that has figures to tell."""


def print_json(value: Any) -> None:
    """Prints a value as JSON."""
    print(json.dumps(to_plain(value), indent=2))
