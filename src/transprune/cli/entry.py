"""The entry point."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Any

from transprune.cli.arguments import read_command
from transprune.cli.exits import explaining
from transprune.cli.jobs import Job, ResumedRun
from transprune.cli.step_commands import DistillCommand
from transprune.runtime import keep_kernels, processes

SHARED = (Job, ResumedRun, DistillCommand)
"""Commands whose work several processes share."""


def _call(command: Any) -> None:
    """Runs a command: in all processes where they share its work, else in the first one alone; the first one prints."""
    is_shared = isinstance(command, SHARED) and not getattr(command, "plan", False)
    if processes.is_first() and not is_shared:
        with processes.alone():
            command()
    elif is_shared:
        with nullcontext() if processes.is_first() else redirect_stdout(io.StringIO()):
            command()


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point; `docs/faults.md` lists the exit codes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    keep_kernels()
    with explaining():
        command = read_command(arguments)
        with processes.joined():
            _call(command)
