"""The configuration of a run as TOML: writing, reading, comparing."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import tomli_w

from transprune.errors import OptionError

HEADER = "# The resolved configuration of a transprune run.\n"
"""First line of every config.toml; a folder without it is not started anew."""
FORMAT = 1
"""What a run folder is laid out like; `format` in config.toml, and 1 where that is missing."""

_ABSENT = object()


def to_toml(config: Mapping[str, Any]) -> str:
    """Writes a configuration as TOML, without the values that are None: TOML has no word for them.

    Raises:
        OptionError: A value is of a kind that TOML cannot hold.
    """
    plain = _plain(config)
    try:
        return HEADER + tomli_w.dumps(plain)
    except TypeError as error:
        raise OptionError(
            f"cannot write the configuration {plain}: {error}; use text, numbers, booleans, lists and tables"
        ) from error


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Every key in which two configurations differ, one line each; a missing key is a key that is None.

    Args:
        found: What a config.toml holds.
        wanted: What is asked for now.

    Returns:
        Lines such as `search.epochs: 30 there, 40 now`; empty if both say the same.
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
    """What TOML can hold: no None in tables, lists for tuples, text for paths and keys."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _leaves(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _same(left: Any, right: Any) -> bool:
    """Equality in which `true` is not 1, and not-a-number equals itself."""
    if repr(left) == repr(right):
        return True
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def _show(value: Any) -> str:
    return "nothing" if value is _ABSENT else repr(value)
