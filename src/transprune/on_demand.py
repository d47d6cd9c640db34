"""Names of a package whose modules are imported on first use, so that importing the package is quick."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from typing import Any, cast

_LISTED = re.compile(r"^    from (\S+) import (\w+) as \2$", re.MULTILINE)
"""A name and its module; parsing the file would take a tenth of the time of --help."""


def on_demand(spec: ModuleSpec) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """What a package needs to import on first use the names that it lists under `if TYPE_CHECKING`.

    So each name is written once, for type checkers, readers and Python. No module of the package may share a name with
    these, because importing the module would replace what the name stands for.

    Args:
        spec: The package's `__spec__`.

    Returns:
        Its `__all__`, `__getattr__` and `__dir__`.
    """
    source = cast(Any, spec.loader).get_source(spec.name)
    home = {name: module for module, name in _LISTED.findall(source)}

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {spec.name!r} has no attribute {name!r}")
        value = getattr(import_module(home[name]), name)
        setattr(sys.modules[spec.name], name, value)
        return value

    return sorted(home), load, lambda: sorted(home)
