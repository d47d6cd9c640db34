"""What happened in a run, one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from transprune.errors import OptionError, RunFolderError
from transprune.runtime.files import StrPath, disk_errors, sync, write_atomically
from transprune.runtime.plain import to_plain
from transprune.runtime.tracking import Guarded, Tracker


class Journal:
    """Collects records and appends each to a file at once, so that a run can be watched and survives a crash.

    Example:
        >>> import numpy as np
        >>> journal = Journal()
        >>> journal.record("epoch", phase="search", loss=np.float32(0.5))
        >>> journal.entries[0]["loss"]
        0.5
    """

    def __init__(self, path: StrPath | None = None) -> None:
        self.path = None if path is None else Path(path)
        """The file, which earlier records may be in already; None keeps records in memory only."""
        self.entries: list[dict[str, Any]] = []
        """What was recorded through this object."""
        self._is_whole = False
        self._followers: list[Tracker] = []

    def follow(self, tracker: Tracker) -> None:
        """Calls a function with every record: with those made through this object so far, then with each new one.

        What it raises is warned of once; the run goes on.
        """
        follower = Guarded(tracker)
        for entry in self.entries:
            follower(entry)
        self._followers.append(follower)

    def record(self, event: str, **fields: Any) -> None:
        """Adds a record with the current time.

        Args:
            event: What happened, such as "epoch".
            fields: Whatever belongs to it. Tensors and arrays become lists, scalars numbers, and numbers that are not
                finite the texts `nan`, `inf` and `-inf`.

        Raises:
            RunFolderError: The line cannot be written.
            OptionError: A field is named `time`, or is of a kind that JSON cannot hold.
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
            self._is_whole = False  # until the whole line is there
            with path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line + "\n")
                file.flush()
                sync(file.fileno())
            self._is_whole = True


def read_journal(path: StrPath) -> list[dict[str, Any]]:
    """Reads a journal; a last line that an interruption cut short is left out.

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
    """Whether a record of a journal tells of an epoch of a phase."""
    return entry.get("event") == "epoch" and entry.get("phase") == phase and isinstance(entry.get("epoch"), int)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _mend_end(path: Path) -> None:
    """Makes the next record start on its own line, after an interruption in the middle of one."""
    content = path.read_bytes() if path.is_file() else b""
    if not content or content.endswith(b"\n"):
        return
    start = content.rfind(b"\n") + 1
    if _parse(content[start:]) is None:
        os.truncate(path, start)
    else:
        with path.open("ab") as file:
            file.write(b"\n")
