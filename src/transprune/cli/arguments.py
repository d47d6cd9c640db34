"""Which command the arguments mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Union

import tyro

from transprune.cli.jobs import Job, ResumedRun, ResumedSearch, RunCommand, SearchCommand
from transprune.cli.steps import DistillCommand, EvaluateCommand, ExportCommand, MeasureCommand, ReportCommand
from transprune.cli.views import CompareCommand, InspectCommand
from transprune.pipeline.config_file import DEFAULT_PRESET, preset_options, read_config

DESCRIPTION = """Makes trained PyTorch networks smaller: widths and depths learned, within a budget.

Exit codes: 0 done; 2 an error, which is printed; 75 --max-minutes are over, 130 Ctrl-C, 143 SIGTERM: the same command
goes on."""


COMMANDS: dict[str, Any] = {
    "run": RunCommand,
    "inspect": InspectCommand,
    "search": SearchCommand,
    "distill": DistillCommand,
    "evaluate": EvaluateCommand,
    "export": ExportCommand,
    "measure": MeasureCommand,
    "report": ReportCommand,
    "compare": CompareCommand,
}


RESUMED: dict[str, Any] = {"run": ResumedRun, "search": ResumedSearch}
"""What a subcommand takes where it goes on with a run that is named alone."""


def read_command(arguments: Sequence[str]) -> Any:
    """The command that the arguments mean, with their values; ends the process where they ask for help or mean none."""
    defaults, is_resumed = _defaults(arguments), _is_resumed(arguments)
    subcommands = tuple(_subcommand(name, defaults, is_resumed=is_resumed) for name in COMMANDS)
    commands: Any = Union[subcommands]  # noqa: UP007 (built at run time)
    return tyro.cli(commands, prog="transprune", description=DESCRIPTION, args=list(arguments))


def _subcommand(name: str, defaults: Mapping[str, Any], *, is_resumed: bool) -> Any:
    """The type of a subcommand, with the defaults where it starts a run."""
    command = RESUMED.get(name, COMMANDS[name]) if is_resumed else COMMANDS[name]
    if not issubclass(command, Job):
        return Annotated[command, tyro.conf.subcommand(name, prefix_name=False)]
    return Annotated[command, tyro.conf.subcommand(name, default=command(**defaults), prefix_name=False)]


def _defaults(arguments: Sequence[str]) -> dict[str, Any]:
    """Values of a command that starts a run where the arguments give none: the file's of --config, then the preset's.

    Both are named by the arguments themselves, so these two are read first.
    """
    path = _value(arguments, "--config")
    config = read_config(path) if path is not None else {}
    preset = _value(arguments, "--preset") or config.get("preset", DEFAULT_PRESET)
    is_named = isinstance(preset, str)  # else the file is refused with the reason
    options = preset_options(preset if is_named else DEFAULT_PRESET, config, path=path or "")
    given = {item.name: getattr(options, item.name) for item in fields(options)}
    missing = [name for name in ("model", "budget") if name not in config]
    if _value(arguments, "--budget") is not None:
        missing.append("budget")  # else those of the arguments were added to those of the file
    return {**given, **dict.fromkeys([*missing, "out"], tyro.MISSING)}


def _value(arguments: Sequence[str], option: str) -> str | None:
    """The value that the arguments give an option, the last if there are several."""
    found = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if argument == option:
            found = following
        elif argument.startswith(f"{option}="):
            found = argument.removeprefix(f"{option}=")
    return found


def _is_resumed(arguments: Sequence[str]) -> bool:
    """Whether the arguments go on with a run that is named alone, with all options as it holds them."""
    return "--resume" in arguments and not any(argument.partition("=")[0] == "--out" for argument in arguments)
