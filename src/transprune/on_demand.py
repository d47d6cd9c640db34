"""Names of a package whose modules are imported on first use, so that importing the package is quick."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from importlib import import_module
from importlib.machinery import ModuleSpec
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from transprune.errors import OptionError

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
        if "." not in spec.name and inspect.isfunction(value):  # what users call; the parts of the library know
            value = checked(value)
        setattr(sys.modules[spec.name], name, value)
        return value

    return sorted(home), load, lambda: sorted(home)


_AS_GOOD: Mapping[Any, type] = {Path: os.PathLike, float: Real, int: Integral}
"""What is taken for a kind as well, such as a whole number or one of numpy's where a number is expected."""
_LEFT = (Any, Callable, Iterable, Sequence, Mapping, list, tuple, dict)
"""What comes in several forms is checked by what reads them."""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that first says which argument is of a kind that it cannot be, as when two are interchanged.

    Kinds are those of its annotations. What may be anything is left to the function.
    """

    @cache
    def expected() -> tuple[inspect.Signature, dict[str, tuple[type, ...]]]:
        signature, hints = inspect.signature(function), get_type_hints(function)
        several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        single = [name for name, each in signature.parameters.items() if each.kind not in several]
        return signature, {name: _kinds(hints[name]) for name in single if name in hints}

    @wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        signature, kinds = expected()
        try:
            given = signature.bind(*args, **named).arguments
        except TypeError:
            given = {}  # too few or too many, which Python says better below
        for name, value in given.items():
            if kinds.get(name) and not isinstance(value, kinds[name]):
                told = [kind for kind in kinds[name] if kind not in _AS_GOOD.values()]
                wanted = " or ".join("None" if kind is NoneType else kind.__name__ for kind in told)
                raise OptionError(
                    f"cannot call {function.__name__}: its argument {name} is {_said(value)}, expected {wanted}; the "
                    f"arguments are {', '.join(signature.parameters)}"
                )
        return function(*args, **named)

    call.__module__ = "transprune"  # where pickle finds this very function
    return call


def _kinds(hint: Any) -> tuple[type, ...]:
    """The classes that an annotation allows; none if it cannot be told by classes, or is left to the function."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(part) or part for part in parts]
    is_told = all(isinstance(kind, type) and kind not in _LEFT and not _is_protocol(kind) for kind in kinds)
    if not is_told:
        return ()
    return (*kinds, *(other for kind, other in _AS_GOOD.items() if kind in kinds))


def _is_protocol(kind: type) -> bool:
    return getattr(kind, "_is_protocol", False)  # typing says so itself from Python 3.13 on


def _said(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"of the kind {type(value).__name__}"
