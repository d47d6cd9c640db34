"""The readable log of a run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transprune.runtime.files import StrPath, disk_errors


class _RunLogHandler(logging.FileHandler):
    """Writes lines to run.log, and stops the run when the disk refuses them."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name is the standard library's)
        """Reports a disk error as ours; logging would print a traceback for every line and go on."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        with disk_errors("write", self.baseFilename):
            raise error


@contextmanager
def attach_run_log(path: StrPath) -> Iterator[None]:
    """Appends what the library logs inside the block to a file, from level INFO on.

    Raises:
        RunFolderError: The file cannot be written.
    """
    logger = logging.getLogger("transprune")
    with disk_errors("write", path):
        handler = _RunLogHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    level = logger.level
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        with disk_errors("write", path):
            handler.close()


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Keeps a library's logger silent below errors inside the block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
