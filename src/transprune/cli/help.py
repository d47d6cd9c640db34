"""Help on one screen: the everyday options with an example; all options on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, get_type_hints

import docstring_parser
import tyro

EVERYTHING = "--help-all"
EVERYDAY = (
    *("model", "data", "budget", "out", "preset", "config", "plan", "as_json", "weights", "download", "device"),
    *("overwrite", "resume", "samples", "repair"),
)
"""Options that the help of a command that starts a run shows; `--help-all` shows the others too."""
MORE = f"All options, also those of training, search and distillation: {EVERYTHING}"
NONE = tyro.MISSING_NONPROP
"""Stands for the defaults of a command that has them itself."""
_OBVIOUS = (None, False, ())
"""Defaults that need no words."""


def is_asked(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for help."""
    return any(argument in ("-h", "--help", EVERYTHING) for argument in arguments)


def page_of(kind: Any, default: Any, *, is_short: bool) -> Any:
    """A dataclass with the help of a command, as tyro shows it.

    Args:
        kind: The dataclass of the command.
        default: What its fields are by default; `NONE`: it says so itself.
        is_short: Whether only everyday options are shown.
    """
    page = _page(kind, default, EVERYDAY if is_short else None)
    if is_short:
        page.__doc__ = f"{kind.__doc__.rstrip()}\n\n    {MORE}\n    "
    return page


def _page(kind: Any, default: Any, shown: Sequence[str] | None) -> Any:
    """The fields of a dataclass, each with its docstring in one piece: tyro would keep some of its line breaks."""
    bare: dict[str, Any] = get_type_hints(kind)
    hints, said = get_type_hints(kind, include_extras=True), _docstrings(kind)
    made = []
    for item in fields(kind):
        if shown is not None and item.name not in shown:
            continue
        inner, marks = bare[item.name], getattr(hints[item.name], "__metadata__", ())
        value = item.default if default is NONE else getattr(default, item.name)
        own: Any = field(default=value)
        if is_dataclass(inner):
            inner = _page(inner, NONE if value is MISSING else value, None)
            own = field(default_factory=inner)
        elif item.name in said:
            marks += (tyro.conf.arg(help=said[item.name], help_behavior_hint="" if item.default in _OBVIOUS else None),)
        made.append((item.name, Annotated[(inner, *marks)] if marks else inner, own))
    return make_dataclass(kind.__name__, made, namespace={"__doc__": kind.__doc__}, frozen=True, kw_only=True)


def _docstrings(kind: Any) -> dict[str, str]:
    """What stands under each field."""
    return {
        part.arg_name: " ".join(part.description.split())
        for base in reversed(kind.__mro__)
        if is_dataclass(base)
        for part in docstring_parser.parse_from_object(base).params
        if part.description
    }
