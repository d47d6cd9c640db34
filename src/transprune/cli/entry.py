"""The entry point: runs the command, and turns errors into messages and exit codes."""

from __future__ import annotations

import io
import logging
import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from transprune import __version__
from transprune.cli import INTERRUPTED
from transprune.errors import StoppedError, TranspruneError
from transprune.runtime import Terminated, keep_kernels, raising_on_termination
from transprune.runtime.environment import fitted

FAILED = 2
"""Exit code after an error with a message."""
CLOSED = 141
"""Exit code if nothing reads standard output any more, as after `| head`; the one that shells report for SIGPIPE."""
STOPPED = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143, "--max-minutes": 75}
"""Exit codes of a run that can be resumed, by what stopped it; 75 (EX_TEMPFAIL) tells schedulers to try again."""


@contextmanager
def explaining() -> Iterator[None]:
    """Turns errors and stops into messages and exit codes, and prints warnings."""
    logger = logging.getLogger("transprune")
    logger.setLevel(logging.INFO)
    warnings = _Warnings(logging.WARNING)
    logger.addHandler(warnings)
    try:
        with raising_on_termination(), _closed_output():
            yield
    except StoppedError as error:
        from transprune.runtime import processes

        if processes.is_first():
            _say(error)
        sys.exit(STOPPED[error.reason])
    except TranspruneError as error:
        _say(error)
        sys.exit(FAILED)
    except KeyboardInterrupt as error:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(STOPPED[error.args[0] if isinstance(error, Terminated) else "SIGINT"])
    finally:
        logger.removeHandler(warnings)


class _Warnings(logging.Handler):
    """Prints warnings on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        print(fitted(self.format(record), sys.stderr), file=sys.stderr)


def _say(error: Exception) -> None:
    """Prints an error."""
    print(fitted(f"transprune: {error}", sys.stderr), file=sys.stderr)


@contextmanager
def _closed_output() -> Iterator[None]:
    """Exits quietly if the reader of standard output is gone, and with a sentence if it is full.

    Other broken pipes remain errors.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads(sys.stdout.fileno()):
            raise
        _write_to_nothing()
        sys.exit(CLOSED)
    except OSError as error:
        if error.filename is not None or _takes_a_line(sys.stdout):  # it was of a file, or of something else
            raise
        _write_to_nothing()
        print(f"transprune: cannot write to standard output: {error.strerror}", file=sys.stderr)
        sys.exit(FAILED)


def _takes_a_line(stream: TextIO) -> bool:
    """Whether a line can be written to a stream; nothing less tells."""
    try:
        stream.write("\n")
        stream.flush()
    except OSError:
        return False
    return True


def _write_to_nothing() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at exit


def _nobody_reads(descriptor: int) -> bool:
    """Whether a descriptor is a pipe without a reader; False if the system cannot tell."""
    if not hasattr(select, "poll"):
        return False
    waiting = select.poll()
    waiting.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in waiting.poll(0))


def run_command(arguments: Sequence[str]) -> None:
    """Runs one command, and ends the process if it fails or is stopped."""
    if list(arguments[:1]) == ["--version"]:
        print(f"transprune {__version__}")
        sys.exit(0)
    keep_kernels()
    say_what_can_be_said()
    with explaining():
        from transprune.cli.arguments import read_command

        _call(read_command(arguments))


def say_what_can_be_said() -> None:
    """Writes what a terminal or pipe cannot show as escapes, and paths as their bytes, rather than fail at the end.

    Streams that were closed (`>&-`) are written to nothing.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")


def _call(command: Any) -> None:
    """Runs a command, in all processes if they share its work, otherwise only in the first one, which alone prints.

    A command is one of `arguments.COMMANDS`; calling it does the work, as `jobs.RunCommand.__call__` does for `run`.
    """
    from transprune.cli.commands import DistillCommand
    from transprune.cli.completion import CompletionCommand
    from transprune.cli.jobs import CompressCommand, Job, ResumedCompress, ResumedRun

    if not isinstance(command, CompletionCommand) and os.environ.get("RANK", "0") == "0":
        print("transprune: starting", file=sys.stderr, flush=True)  # torch takes seconds to load
    from transprune.runtime import processes  # heavy, and not needed to show help

    is_shared = isinstance(command, (Job, ResumedRun, DistillCommand)) and not getattr(command, "plan", False)
    is_shared = is_shared and not isinstance(command, (CompressCommand, ResumedCompress))
    with processes.joined():
        if processes.is_first() and not is_shared:
            with processes.alone():
                command()
        elif is_shared:
            with nullcontext() if processes.is_first() else redirect_stdout(io.StringIO()):
                command()
