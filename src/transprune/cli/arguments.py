"""Which command the arguments mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Union

import tyro

from transprune import presets
from transprune.cli.jobs import Job, ResumedRun, ResumedSearch, RunCommand, SearchCommand
from transprune.cli.steps import DistillCommand, EvaluateCommand, ExportCommand, MeasureCommand, ReportCommand
from transprune.cli.views import CompareCommand, InspectCommand

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


def _subcommand(name: str, preset_name: str, *, is_resumed: bool) -> Any:
    """The type of a subcommand; where it starts a run, the preset's figures are its defaults."""
    command = RESUMED.get(name, COMMANDS[name]) if is_resumed else COMMANDS[name]
    if not issubclass(command, Job):
        return Annotated[command, tyro.conf.subcommand(name, prefix_name=False)]
    preset = presets.get_preset(preset_name)
    default = command(
        model=tyro.MISSING,
        budget=tyro.MISSING,
        out=tyro.MISSING,
        preset=preset_name,
        teacher=preset.teacher,
        search=preset.search,
        augment=preset.augment,
        distill=preset.distill,
        student=preset.student,
    )
    return Annotated[command, tyro.conf.subcommand(name, default=default, prefix_name=False)]


def _is_resumed(arguments: Sequence[str]) -> bool:
    """Whether the arguments go on with a run that is named alone, with all options as it holds them."""
    return "--resume" in arguments and not any(argument.partition("=")[0] == "--out" for argument in arguments)


def _named_preset(arguments: Sequence[str]) -> str:
    """The preset that the arguments ask for: it decides the defaults of other arguments, so it is read first."""
    name = Job.preset
    for position, argument in enumerate(arguments):
        if argument == "--preset" and position + 1 < len(arguments):
            name = arguments[position + 1]
        elif argument.startswith("--preset="):
            name = argument.removeprefix("--preset=")
    return name


def read_command(arguments: Sequence[str]) -> Any:
    """The command that the arguments mean, with their values; ends the process where they ask for help or mean none."""
    preset, is_resumed = _named_preset(arguments), _is_resumed(arguments)
    subcommands = tuple(_subcommand(name, preset, is_resumed=is_resumed) for name in COMMANDS)
    commands: Any = Union[subcommands]  # noqa: UP007 (built at run time)
    return tyro.cli(commands, prog="transprune", description=DESCRIPTION, args=list(arguments))
