"""Builds frozen records from the plain values of JSON, checking every part; writes and reads configurations as TOML."""

from __future__ import annotations

import os
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tomli_w

from transprune.errors import OptionError, expected_one_of

Record = TypeVar("Record")
HEADER = "# The resolved configuration of a transprune run.\n"
"""First line of every config.toml; a folder whose file lacks it is never overwritten."""
FORMAT = 1
"""Version of the layout of a run folder: `format` in config.toml, or 1 if it is missing."""


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


# --- configurations, as TOML

_ABSENT = object()


def to_toml(config: Mapping[str, Any]) -> str:
    """Writes a configuration as TOML, leaving out None, for which TOML has no value.

    Raises:
        OptionError: TOML cannot represent a value.
    """
    plain = _plain(config)
    try:
        text = HEADER + tomli_w.dumps(plain)
        text.encode()
        return text
    except UnicodeEncodeError as error:
        found = text[max(0, error.start - 60) : error.end + 20]
        raise OptionError(
            f"cannot keep the configuration: {found!r} is no text, since the name "
            "of a file or folder is not in UTF-8; rename it, or make a link to it with another name"
        ) from error
    except TypeError as error:
        raise OptionError(
            f"cannot write the configuration {plain}: {error}; use text, numbers, booleans, lists and tables"
        ) from error


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Describes every key in which two configurations differ; a missing key counts as None, and so does an empty list.

    Args:
        found: The configuration in a config.toml.
        wanted: The configuration asked for now.

    Returns:
        Lines such as `search.epochs: 30 there, 40 now`; empty if they agree.
    """
    old, new = dict(_leaves(_plain(found))), dict(_leaves(_plain(wanted)))
    return [
        f"{'.'.join(key)}: {_show(old.get(key, _ABSENT))} there, {_show(new.get(key, _ABSENT))} now"
        for key in {**old, **new}
        if not _same(old.get(key, _ABSENT), new.get(key, _ABSENT))
    ]


def read_toml(content: bytes) -> dict[str, Any]:
    """Reads TOML.

    Raises:
        ValueError: The content is not TOML in UTF-8.
    """
    return tomllib.loads(content.decode())


def _plain(value: Any) -> Any:
    """The value in types that TOML has: no None in tables, lists for tuples, text for paths and keys."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _leaves(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        elif value != []:  # an option that an earlier version did not have
            yield (*path, key), value


def _same(left: Any, right: Any) -> bool:
    """Equality, except that True differs from 1 and NaN equals itself."""
    if repr(left) == repr(right):
        return True
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def _show(value: Any) -> str:
    return "nothing" if value is _ABSENT else repr(value)
