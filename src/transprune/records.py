"""Builds frozen records from the plain values of JSON, checking every part."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from transprune.errors import expected_one_of

Record = TypeVar("Record")


def read_record(kind: type[Record], value: Any, place: str = "") -> Record:
    """Builds a dataclass from a map of its fields; lists become tuples, and maps the declared dataclasses.

    Args:
        kind: A dataclass of numbers, strings, booleans, literals, tuples, dataclasses or None; fields with
            `compare=False` are skipped.
        value: The parsed JSON.
        place: Where the value stands, for messages.

    Raises:
        ValueError: A part is missing, unknown or of another type; the message names its place.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{place or 'it'} is {_shown(value)}, expected an object")
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind) if item.compare}  # type: ignore[arg-type]
    for name in value:
        if name not in known:
            raise ValueError(f"{_join(place, name)} is unknown, {expected_one_of(str(name), known)}")
    read = {}
    for name, item in known.items():
        if name in value:
            read[name] = _read(hints[name], value[name], _join(place, name))
        elif item.default is MISSING:
            raise ValueError(f"{_join(place, name)} is missing")
    return kind(**read)


def _read(hint: Any, value: Any, place: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _read_one_of(arguments, value, place)
    if origin is tuple:
        return _read_tuple(arguments, value, place)
    if origin is Literal:
        return _checked(value, place, f"one of {', '.join(arguments)}", lambda: value in arguments)
    if is_dataclass(hint):
        return read_record(hint, value, place)  # type: ignore[arg-type]
    expected, kinds = _PLAIN[hint]
    is_right = isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))
    found = _checked(value, place, expected, lambda: is_right)
    return float(found) if hint is float else found


_PLAIN: dict[Any, tuple[str, Any]] = {
    int: ("a whole number", int),
    float: ("a number", int | float),
    str: ("a text", str),
    bool: ("true or false", bool),
}
"""What messages call a plain type, and which types it accepts; booleans are not numbers."""


def _read_one_of(hints: tuple[Any, ...], value: Any, place: str) -> Any:
    """A value of the first kind that it is one of; None apart."""
    problems = []
    for hint in hints:
        if hint is not types.NoneType:
            try:
                return _read(hint, value, place)
            except ValueError as error:
                problems.append(error)
    raise problems[0]


def _read_tuple(arguments: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    """Any number of values of one kind (`tuple[int, ...]`), or as many as are declared."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{place} is {_shown(value)}, expected a list")
    kinds = [arguments[0]] * len(value) if Ellipsis in arguments else list(arguments)
    if len(kinds) != len(value):
        raise ValueError(f"{place} is {_shown(value)}, expected a list of {len(kinds)}")
    return tuple(
        _read(kind, item, f"{place}[{index}]") for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _checked(value: Any, place: str, expected: str, is_right: Callable[[], bool]) -> Any:
    if not is_right():
        raise ValueError(f"{place} is {_shown(value)}, expected {expected}")
    return value


def _join(place: str, name: object) -> str:
    return f"{place}.{name}" if place else str(name)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
