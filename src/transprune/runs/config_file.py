"""Options of a run from a TOML file: some of them, or all, such as a run folder's config.toml holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from transprune.errors import OptionError, newer_format
from transprune.records import read_record
from transprune.runs.presets import get_preset
from transprune.runs.run_options import RunOptions, with_nones
from transprune.runtime.configuration import FORMAT, read_toml

DEFAULT_PRESET = "medium"


def read_config(path: str | Path) -> dict[str, Any]:
    """What a file says, under the names of `RunOptions`; not checked yet.

    A file with `format`, as a run wrote it, speaks of everything: what may be None and is missing there, is None.

    Raises:
        OptionError: The file cannot be read, is no TOML or of a newer format.
    """
    try:
        config = read_toml(Path(path).read_bytes())
    except OSError as error:
        raise OptionError(
            f"cannot read the options '{path}': {error.strerror or error}; expected a TOML file (--config FILE.toml)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"cannot read the options '{path}': it is no valid TOML ({error})") from error
    found = config.pop("format", None)
    if found not in (None, FORMAT):
        raise OptionError(f"cannot read the options '{path}': {newer_format(found, FORMAT)}")
    return config if found is None else dict(with_nones(RunOptions, config))


def preset_options(name: str, config: Mapping[str, Any] | None = None, *, path: str | Path = "") -> RunOptions:
    """The options of a preset, and over them what a file says.

    Args:
        name: The preset.
        config: What `read_config` found; the text `None` stands for None.
        path: Where, for messages.

    Returns:
        All options; model and budget are empty where nothing names them.

    Raises:
        OptionError: There is no such preset, a key is unknown, or a value is of another type or out of range.
    """
    preset = get_preset(name)
    options = RunOptions(
        model="",
        data="digits",
        budget=(),
        preset=name,
        augment=preset.augment,
        student=preset.student,
        teacher=preset.teacher,
        search=preset.search,
        distill=preset.distill,
    )
    if not config:
        return options
    try:
        return read_record(RunOptions, _over(RunOptions, asdict(options), config))
    except ValueError as error:
        named = f" '{path}'" if path else ""
        raise OptionError(
            f"cannot use the options{named}: {error}; their names are those that `transprune run --help-all` shows, "
            "with search.epochs as epochs in the table [search]"
        ) from error


def _over(kind: Any, base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values over those of a base, table by table."""
    hints = get_type_hints(kind)
    found = dict(base)
    for name, value in values.items():
        hint = hints.get(name)
        if is_dataclass(hint) and isinstance(value, Mapping):
            found[name] = _over(hint, base[name], value)
        else:
            found[name] = None if value == "None" and type(None) in get_args(hint) else value
    return found
