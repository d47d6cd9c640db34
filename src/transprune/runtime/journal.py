"""The journal of a run (one JSON object per line) with its trackers, and the readable log."""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from transprune.errors import OptionError, RunFolderError
from transprune.runtime.files import StrPath, disk_errors, sync, write_atomically
from transprune.runtime.structures import to_plain

Tracker = Callable[[Mapping[str, Any]], None]
"""Called with each new record of a journal; `docs/journal.md` lists the records."""

log = logging.getLogger("transprune.run")


class Journal:
    """Collects records and appends each to a file immediately, so that a run can be watched and a crash loses none.

    Example:
        >>> import numpy as np
        >>> journal = Journal()
        >>> journal.record("epoch", phase="search", loss=np.float32(0.5))
        >>> journal.entries[0]["loss"]
        0.5
    """

    def __init__(self, path: StrPath | None = None) -> None:
        self.path = None if path is None else Path(path)
        """The file, which may contain earlier records; None keeps records in memory only."""
        self.entries: list[dict[str, Any]] = []
        """The records made through this object."""
        self._is_whole = False
        self._followers: list[Tracker] = []

    def follow(self, tracker: Tracker) -> None:
        """Calls a tracker with every record made through this object so far, then with each new one.

        Its first error is logged; the run goes on.
        """
        follower = Guarded(tracker)
        for entry in self.entries:
            follower(entry)
        self._followers.append(follower)

    def record(self, event: str, **fields: Any) -> None:
        """Adds a record with the current time.

        Args:
            event: What happened, such as "epoch".
            fields: Its figures and texts, converted by `to_plain`.

        Raises:
            RunFolderError: The line cannot be written.
            OptionError: A field is named `time`, or JSON cannot represent it.
        """
        if "time" in fields:
            raise OptionError(
                f"cannot record {event!r} with a field 'time': every record has its own; rename the field"
            )
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        entry = {"time": now, "event": event, **to_plain(fields)}
        try:
            line = json.dumps(entry, allow_nan=False)
        except TypeError as error:
            raise OptionError(f"cannot record {event!r}: {error}; convert it to numbers, text or lists") from error
        if self.path is not None:
            self._append(self.path, line)
        self.entries.append(entry)
        for follower in self._followers:
            follower(entry)

    def forget(self, is_stale: Callable[[Mapping[str, Any]], bool]) -> None:
        """Removes records, such as those of epochs that will be run again.

        Raises:
            RunFolderError: The file cannot be read or written, or is malformed.
        """
        self.entries = [entry for entry in self.entries if not is_stale(entry)]
        if self.path is None or not self.path.exists():
            return
        entries = read_journal(self.path)
        kept = [entry for entry in entries if not is_stale(entry)]
        if len(kept) < len(entries):
            write_atomically(self.path, "".join(f"{json.dumps(entry)}\n" for entry in kept).encode())

    def _append(self, path: Path, line: str) -> None:
        with disk_errors("write", path):
            if not self._is_whole:
                _mend_end(path)
            self._is_whole = False  # until the whole line is written
            with path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line + "\n")
                file.flush()
                sync(file.fileno())
            self._is_whole = True


def read_journal(path: StrPath) -> list[dict[str, Any]]:
    """Reads a journal, without a last line that an interruption cut short.

    Raises:
        RunFolderError: The file is missing, or a line before the last is malformed.
    """
    with disk_errors("read", path):
        lines = Path(path).read_bytes().splitlines()
    entries = []
    for number, line in enumerate(lines, start=1):
        entry = _parse(line)
        if entry is not None:
            entries.append(entry)
        elif number < len(lines):
            raise RunFolderError(
                f"cannot read '{os.fspath(path)}': line {number} is no JSON object ({line[:60]!r}); "
                "remove that line or repeat the run with --overwrite"
            )
    return entries


def is_epoch(entry: Mapping[str, Any], phase: str) -> bool:
    """Whether a record is of an epoch of a phase."""
    return entry.get("event") == "epoch" and entry.get("phase") == phase and isinstance(entry.get("epoch"), int)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _mend_end(path: Path) -> None:
    """Repairs the end of a journal after an interruption, so that the next record starts on its own line."""
    content = path.read_bytes() if path.is_file() else b""
    if not content or content.endswith(b"\n"):
        return
    start = content.rfind(b"\n") + 1
    if _parse(content[start:]) is None:
        os.truncate(path, start)
    else:
        with path.open("ab") as file:
            file.write(b"\n")


class Guarded:
    """A tracker whose errors do not stop the run; the first is logged as a warning.

    Args:
        tracker: The tracker; it gets its own copy of each record.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self._has_failed = tracker, False

    def __call__(self, entry: Mapping[str, Any]) -> None:
        try:
            self._tracker(copy.deepcopy(entry))
        except (Exception, SystemExit) as error:  # a tracker may raise anything
            if not self._has_failed:
                log.warning(
                    "the tracker %s failed on a record %r (%s: %s); the run goes on, and later failures are not said",
                    getattr(self._tracker, "__qualname__", type(self._tracker).__qualname__),
                    entry["event"],
                    type(error).__name__,
                    error,
                )
            self._has_failed = True


class _RunLogHandler(logging.FileHandler):
    """Writes lines to run.log, and stops the run on a disk error."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name is the standard library's)
        # logging itself would print a traceback for every line and go on.
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        with disk_errors("write", self.baseFilename):
            raise error


@contextmanager
def attach_run_log(path: StrPath) -> Iterator[None]:
    """Appends what the library logs inside the block to a file, at level INFO and above.

    Raises:
        RunFolderError: The file cannot be written.
    """
    logger = logging.getLogger("transprune")
    with disk_errors("write", path):
        handler = _RunLogHandler(path, encoding="utf-8", errors="backslashreplace")
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
    """Silences a library's logger below errors inside the block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
