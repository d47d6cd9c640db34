"""The command line: reads arguments, calls steps, and explains errors; no logic of its own."""

from transprune.cli.entry import main

__all__ = ["main"]
