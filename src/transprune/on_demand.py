"""Names of a package that import their modules when they are first used, so that importing the package is quick."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from typing import Any, cast


def on_demand(spec: ModuleSpec) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """What a package needs to offer the names that it imports `if TYPE_CHECKING`, each when it is first used.

    So each name is written once, for type checkers, for readers and for Python. A module must not be called as a name
    that the package offers: importing it would put the module in the name's place.

    Args:
        spec: The package's `__spec__`.

    Returns:
        Its `__all__`, `__getattr__` and `__dir__`.
    """
    source = cast(Any, spec.loader).get_source(spec.name)
    checked = next(part for part in ast.parse(source).body if isinstance(part, ast.If))
    home = {
        alias.name: cast(str, line.module)
        for line in checked.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {spec.name!r} has no attribute {name!r}")
        value = getattr(import_module(home[name]), name)
        setattr(sys.modules[spec.name], name, value)
        return value

    return sorted(home), load, lambda: sorted(home)
