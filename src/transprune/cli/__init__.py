"""The command line: reads arguments, calls steps, and explains errors; no logic of its own."""

import sys
from collections.abc import Sequence

INTERRUPTED = "transprune: interrupted; what is finished is kept, and the same command goes on"


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of the command; `docs/faults.md` lists the exit codes."""
    try:
        from transprune.cli.entry import run_command  # takes long enough for a Ctrl-C

        run_command(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)


__all__ = ["main"]
