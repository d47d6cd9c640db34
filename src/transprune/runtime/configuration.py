"""Reads, writes and compares the configuration of a run, as TOML."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import tomli_w

from transprune.errors import OptionError

HEADER = "# The resolved configuration of a transprune run.\n"
"""First line of every config.toml; a folder whose file lacks it is never overwritten."""
FORMAT = 1
"""Version of the layout of a run folder: `format` in config.toml, or 1 if it is missing."""

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
    """Describes every key in which two configurations differ; a missing key counts as None.

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
        else:
            yield (*path, key), value


def _same(left: Any, right: Any) -> bool:
    """Equality, except that True differs from 1 and NaN equals itself."""
    if repr(left) == repr(right):
        return True
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def _show(value: Any) -> str:
    return "nothing" if value is _ABSENT else repr(value)
