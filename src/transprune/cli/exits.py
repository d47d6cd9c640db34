"""What the command line says and returns when a command ends before its end."""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transprune.errors import StoppedError, TranspruneError
from transprune.runtime import Terminated, processes, raising_on_sigterm

FAILED = 2
"""Exit code: a clear error was printed."""
CLOSED = 141
"""Exit code: nobody reads standard output any more, as after `| head`; what a shell says of SIGPIPE."""
STOPPED = {"SIGINT": 130, "SIGTERM": 143, "--max-minutes": 75}
"""Exit codes of a run that can go on, by what stopped it; 75 is what schedulers know as "try again"."""


@contextmanager
def explaining() -> Iterator[None]:
    """Turns errors and stops into a message and an exit code; warnings are printed."""
    logger = logging.getLogger("transprune")
    logger.setLevel(logging.INFO)
    assert logging.lastResort is not None  # prints warnings on standard error
    logger.addHandler(logging.lastResort)
    try:
        with raising_on_sigterm(), _closed_output():
            yield
    except StoppedError as error:
        if processes.is_first():
            print(f"transprune: {error}", file=sys.stderr)
        sys.exit(STOPPED[error.reason])
    except TranspruneError as error:
        print(f"transprune: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt as error:
        print("transprune: interrupted; what is finished is kept, and the same command goes on", file=sys.stderr)
        sys.exit(STOPPED["SIGTERM" if isinstance(error, Terminated) else "SIGINT"])
    finally:
        logger.removeHandler(logging.lastResort)


@contextmanager
def _closed_output() -> Iterator[None]:
    """Ends quietly where whoever read standard output has gone; other broken pipes stay errors."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads(sys.stdout.fileno()):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        sys.exit(CLOSED)


def _nobody_reads(descriptor: int) -> bool:
    """Whether a descriptor is a pipe without a reader; False where the system cannot tell."""
    if not hasattr(select, "poll"):
        return False
    waiting = select.poll()
    waiting.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in waiting.poll(0))
