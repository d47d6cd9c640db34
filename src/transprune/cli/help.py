"""Help on one screen: the everyday options with an example; all options on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from functools import cache
from typing import Annotated, Any, get_type_hints

import docstring_parser
import tyro

EVERYTHING = "--help-all"
EVERYDAY = (
    *("model", "data", "budget", "out", "preset", "config", "plan", "as_json", "weights", "download", "device"),
    *("overwrite", "resume"),
)
"""Options that the help of a command that starts a run shows; `--help-all` shows the others too."""
MORE = f"All options, also those of training, search and distillation: {EVERYTHING}"
_OBVIOUS = (None, False, ())
"""Defaults that need no words."""


def is_asked(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for help."""
    return any(argument in ("-h", "--help", EVERYTHING) for argument in arguments)


def page_of(kind: Any, default: Any, *, is_short: bool) -> tuple[Any, Any]:
    """A command for a page of help: its dataclass and its defaults, as tyro shows them.

    Args:
        kind: The dataclass of the command.
        default: Its defaults; `tyro.MISSING_NONPROP`: it has them itself.
        is_short: Whether only everyday options are shown.
    """
    shown = EVERYDAY if is_short else None
    page = _dressed(kind, shown)
    if is_short:
        page.__doc__ = f"{kind.__doc__.rstrip()}\n\n    {MORE}\n    "
    return page, default if default is tyro.MISSING_NONPROP else _dressed_value(default, shown)


@cache  # a dataclass and the kind of its value must be the same
def _dressed(kind: Any, shown: tuple[str, ...] | None) -> Any:
    """The same dataclass; what the docstrings of its fields say is given in one piece, without their line breaks.

    Args:
        kind: The dataclass.
        shown: Fields that the page shows; None: all.
    """
    bare: dict[str, Any] = get_type_hints(kind)
    hints, said = get_type_hints(kind, include_extras=True), _docstrings(kind)
    made = []
    for item in fields(kind):
        marks = getattr(hints[item.name], "__metadata__", ())
        if shown is not None and item.name not in shown:
            marks += (tyro.conf.Suppress,)
        inner: Any = bare[item.name]
        factory: Any = item.default_factory
        if is_dataclass(inner):
            inner = _dressed(inner, None)  # type: ignore[arg-type]  # a class can be hashed
            factory = factory if factory is MISSING else inner
        elif item.name in said:
            hint = "" if item.default in _OBVIOUS else None
            marks += (tyro.conf.arg(help=said[item.name], help_behavior_hint=hint),)
        own = field(kw_only=True, default=item.default, default_factory=factory)
        made.append((item.name, Annotated[(inner, *marks)] if marks else inner, own))
    page = make_dataclass(kind.__name__, made, bases=(kind,), frozen=True, kw_only=True)
    page.__doc__ = kind.__doc__
    return page


def _dressed_value(value: Any, shown: tuple[str, ...] | None) -> Any:
    values = {item.name: getattr(value, item.name) for item in fields(value)}
    inner = {name: _dressed_value(one, None) if is_dataclass(one) else one for name, one in values.items()}
    kind: Any = type(value)
    return _dressed(kind, shown)(**inner)


def _docstrings(kind: Any) -> dict[str, str]:
    """What stands under each field."""
    return {
        part.arg_name: " ".join(part.description.split())
        for base in reversed(kind.__mro__)
        if is_dataclass(base)
        for part in docstring_parser.parse_from_object(base).params
        if part.description
    }
