"""Everything transprune raises on purpose.

    TranspruneError                       (catch this one to catch them all)
    ├── ModelError      (ValueError)      a model cannot be found, built, traced or changed as asked
    ├── SpaceError      (ValueError)      a search space or architecture does not fit its model, or is malformed
    ├── BudgetError     (ValueError)      a budget is malformed or out of the attainable range
    ├── DataError       (ValueError)      a data set is missing, malformed or does not fit the model
    ├── OptionError     (ValueError)      an option or configuration value is unknown or out of range
    ├── RunFolderError  (RuntimeError)    a run folder is missing, incomplete or holds something else
    ├── ExportError     (RuntimeError)    an exported file does not reproduce the network it came from
    ├── LatencyError    (RuntimeError)    a latency cannot be measured, or its model is not to be trusted
    ├── DivergenceError (ArithmeticError) a loss or a gradient is no longer a finite number
    ├── ResourceError   (RuntimeError)    memory ran out, or a process that loads data died
    └── StoppedError    (RuntimeError)    a signal or a time limit ended a run that can go on

Each message says what was attempted, where, what was found, what was expected and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TranspruneError(Exception):
    """Base of every error that transprune raises on purpose."""


class ModelError(TranspruneError, ValueError):
    """A model cannot be found, built, traced or changed as asked."""


class SpaceError(TranspruneError, ValueError):
    """A search space or an architecture does not fit its model, or its text is malformed."""


class BudgetError(TranspruneError, ValueError):
    """A budget is malformed or out of the attainable range."""


class DataError(TranspruneError, ValueError):
    """A data set is missing, malformed or does not fit the model."""


class OptionError(TranspruneError, ValueError):
    """An option or a configuration value is unknown or out of range."""


class RunFolderError(TranspruneError, RuntimeError):
    """A run folder is missing, incomplete or holds something else."""


class ExportError(TranspruneError, RuntimeError):
    """An exported file does not reproduce the network it came from."""


class LatencyError(TranspruneError, RuntimeError):
    """A latency cannot be measured, or its model is not to be trusted."""


class DivergenceError(TranspruneError, ArithmeticError):
    """A loss or a gradient is no longer a finite number."""


class ResourceError(TranspruneError, RuntimeError):
    """Memory ran out, or a process that loads data died."""


class StoppedError(TranspruneError, RuntimeError):
    """A signal or a time limit ended a run; a checkpoint is written, and the run can go on."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
        """`SIGINT`, `SIGTERM`, `SIGHUP` or `--max-minutes`."""


def expected_one_of(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known names (of very many, three) and the nearest.

    Example:
        >>> expected_one_of("quik", ["quick", "demo"])
        "expected one of quick, demo; did you mean 'quick'?"
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    listed = names if len(names) <= _MANY else [*names[:3], f"… ({len(names)} in all)"]
    return f"expected one of {', '.join(listed)}" + (f"; did you mean {near[0]!r}?" if near else "")


def newer_format(found: object, known: int) -> str:
    """The end of a message about a file of a newer version of transprune."""
    return (
        f"it is of format {found}, and this version reads up to {known}; "
        "update transprune (pip install --upgrade transprune)"
    )


_MANY = 20
"""Of more names than this, a message lists only the first three."""


def first_line(error: BaseException) -> str:
    """Class of an error and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
