"""The command line: reads the arguments, calls a step, says what went wrong. No logic of its own."""

from transprune.cli.entry import main

__all__ = ["main"]
