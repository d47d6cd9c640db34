"""Names of a package whose modules are imported on first use, so that importing the package is quick."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache, wraps
from importlib import import_module
from importlib.machinery import ModuleSpec
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from transprune.errors import OptionError, expected_one_of

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
_FORMS: Mapping[Any, Any] = dict.fromkeys((Iterable, Sequence, list, tuple), Iterable) | {
    Mapping: Mapping,
    dict: Mapping,
    Callable: Callable,
}
"""What is asked of a value that comes in several forms, where it can be nothing else; else what reads it checks it."""
_CALLED: Mapping[Any, str] = {NoneType: "None", Iterable: "a list", Mapping: "a dict", Callable: "a function"}


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
            bound = signature.bind(*args, **named)
        except TypeError:
            bound = None
        if bound is None:  # too few or too many, which Python says better
            return function(*args, **named)
        for name, value in bound.arguments.items():
            if kinds.get(name):
                if not isinstance(value, kinds[name]):
                    raise OptionError(
                        f"cannot call {function.__name__}: its argument {name} is {_said(value)}, expected "
                        f"{_wanted(kinds[name])}; the arguments are {', '.join(signature.parameters)}"
                    )
                bound.arguments[name] = _plain(value)
        return function(*bound.args, **bound.kwargs)

    call.__module__ = "transprune"  # where pickle finds this very function
    return call


def check_fields(record: Any, *, but: str = "") -> None:
    """Checks that a frozen record has in each field what its annotation allows; numbers of numpy become Python's.

    Args:
        record: The record.
        but: A field that is left to what reads it.

    Raises:
        OptionError: One is of another kind, or none of the words that are known.
    """
    for name, (words, kinds) in _fields(record.__class__).items():
        value = getattr(record, name)
        if name == but:
            continue
        if not isinstance(value, kinds) if kinds else words and value not in words:
            expected = f"expected {_wanted(kinds)}" if kinds else expected_one_of(str(value), words)
            raise OptionError(f"cannot use {name}={value!r}: {expected}")
        object.__setattr__(record, name, _plain(value))


@cache
def _fields(kind: Any) -> dict[str, tuple[tuple[str, ...], tuple[type, ...]]]:
    """Of each field of a record the words, or the classes, that its annotation allows."""
    hints = get_type_hints(kind)
    given = {item.name: hints[item.name] for item in fields(kind)}
    return {name: (get_args(hint) if get_origin(hint) is Literal else (), _kinds(hint)) for name, hint in given.items()}


def _plain(value: Any) -> Any:
    """A number of Python in the place of one of numpy, which generators of random numbers and JSON refuse."""
    if isinstance(value, bool | int | float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _kinds(hint: Any) -> tuple[type, ...]:
    """The classes that an annotation allows; none if it cannot be told by classes, or is left to the function."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(part) or part for part in parts]
    if len({*kinds} - {NoneType}) == 1:
        kinds = [_FORMS.get(kind, kind) for kind in kinds]
    elif any(kind in _FORMS for kind in kinds):
        return ()
    if not all(isinstance(kind, type) and not _is_protocol(kind) for kind in kinds) or Any in kinds:
        return ()
    return (*kinds, *(other for kind, other in _AS_GOOD.items() if kind in kinds))


def _wanted(kinds: Iterable[type]) -> str:
    told = [kind for kind in kinds if kind not in _AS_GOOD.values()]
    return " or ".join(_CALLED.get(kind, kind.__name__) for kind in told)


def _is_protocol(kind: type) -> bool:
    return getattr(kind, "_is_protocol", False)  # typing says so itself from Python 3.13 on


def _said(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"of the kind {type(value).__name__}"
