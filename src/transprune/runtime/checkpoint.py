"""Checkpoints: the state from which a phase can resume after any step, on disk; independent of what is in it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from transprune.errors import RunFolderError, StoppedError, newer_format
from transprune.options import CheckpointOptions
from transprune.runtime import processes
from transprune.runtime.files import StrPath, disk_errors, write_atomically
from transprune.runtime.interruption import StopRequest, deferred_signals
from transprune.runtime.tensors import decode_tree, encode_tree

FORMAT = 1
CHECKPOINT, PREVIOUS = CHECKPOINT_FILES = ("checkpoint.safetensors", "checkpoint.previous.safetensors")
TIME_IS_UP = "--max-minutes"
"""The reason for a stop at the time limit."""
REASONS = ("SIGINT", "SIGTERM", "SIGHUP", TIME_IS_UP)
"""The reasons for which a run may stop."""

log = logging.getLogger("transprune.run")


class Checkpoints:
    """The last checkpoint in a folder, and the one before it in case the last is damaged.

    Args:
        folder: The folder; created if missing.
        options: When to save checkpoints, and when to stop; None: the defaults.
        go_on: How to resume after a stop, for the message.

    Example:
        >>> setup = transprune.Setup(checkpoints=Checkpoints("kept"))  # doctest: +SKIP
        >>> teacher = transprune.train(model, data, setup=setup)  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: StrPath,
        options: CheckpointOptions | None = None,
        *,
        go_on: str = "make the same call again with checkpoints in the same folder",
    ) -> None:
        self.folder, self.options, self._go_on = Path(folder), options or CheckpointOptions(), go_on
        with disk_errors("make the folder of checkpoints", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._request = StopRequest()
        self._began = self._saved = time.monotonic()
        self._steps = 0
        self._below: dict[str, Checkpoints] = {}

    def find(self, phase: str) -> Any | None:
        """The state last saved in a phase; None if there is none.

        A damaged checkpoint is removed with a warning, and the one before it is used. Only the first of several
        processes reads.

        Raises:
            RunFolderError: A checkpoint cannot be read, or has a newer format.
        """
        return processes.from_first(lambda: self._find(phase))

    def _find(self, phase: str) -> Any | None:
        for name in CHECKPOINT_FILES:
            path = self.folder / name
            try:
                found = _read(path)
            except ValueError as error:
                log.warning("'%s' is damaged (%s) and removed; looking for an earlier checkpoint", path, error)
                with disk_errors("remove", path):
                    path.unlink()
                continue
            if found is not None and found["phase"] == phase:
                return found["state"]
        return None

    def save(self, phase: str, state: Any) -> None:
        """Saves a checkpoint and keeps the one before it. Only the first of several processes writes.

        Raises:
            RunFolderError: It cannot be written; the last one is kept.
        """
        if processes.is_first():
            content = encode_tree({"format": FORMAT, "phase": phase, "state": state})
            write_atomically(self.folder / CHECKPOINT, content, keep=self.folder / PREVIOUS)
        self._saved, self._steps = time.monotonic(), 0

    def clear(self) -> None:
        """Removes the checkpoints, also those below that were asked for, once their phase is finished.

        Raises:
            RunFolderError: They cannot be removed.
        """
        for name in CHECKPOINT_FILES if processes.is_first() else ():
            with disk_errors("remove", self.folder / name):
                (self.folder / name).unlink(missing_ok=True)
        for part in self._below.values():
            part.clear()
            with disk_errors("remove", part.folder):
                if processes.is_first():
                    part.folder.rmdir()
        self._below.clear()

    def below(self, name: str) -> Checkpoints:
        """Those of a part of a phase, in a folder below this one and within the same time limit."""
        options = replace(self.options, max_minutes=self.minutes_left())
        self._below[name] = Checkpoints(self.folder / name, options, go_on=self._go_on)
        return self._below[name]

    def minutes_left(self) -> float | None:
        """Minutes left before the time limit, for work outside the loop; None: no limit."""
        limit = self.options.max_minutes
        return None if limit is None else max(limit - (time.monotonic() - self._began) / 60, 1e-9)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Defers SIGTERM, SIGHUP and Ctrl-C inside the block until the end of a step."""
        with deferred_signals() as self._request:
            self._saved = time.monotonic()
            yield

    def after_step(self, phase: str, state: Callable[[], Any]) -> None:
        """Saves a checkpoint if one is due, and stops if asked to, in all processes at once.

        Args:
            phase: The current phase.
            state: Returns the state to save.

        Raises:
            StoppedError: A signal or the time limit ends the run; a checkpoint is saved.
            RunFolderError: The checkpoint cannot be saved.
        """
        self._steps += 1
        own = self._request.reason or (TIME_IS_UP if self._is_over() else None)
        is_due, *asked = processes.any_of(self._is_due(), *(own == reason for reason in REASONS))
        reason = next((reason for reason, is_given in zip(REASONS, asked, strict=True) if is_given), None)
        if reason is not None or is_due:
            self.save(phase, state())
        if reason is not None:
            raise StoppedError(
                f"stopped in phase {phase!r} ({reason}): everything up to this step is kept in "
                f"'{self.folder / CHECKPOINT}'; to go on, {self._go_on}",
                reason=reason,
            )

    def _is_over(self) -> bool:
        limit = self.options.max_minutes
        return limit is not None and time.monotonic() - self._began >= 60 * limit

    def _is_due(self) -> bool:
        minutes, steps = self.options.checkpoint_minutes, self.options.checkpoint_steps
        is_late = minutes is not None and time.monotonic() - self._saved >= 60 * minutes
        return is_late or (steps is not None and self._steps >= steps)


def _read(path: Path) -> Mapping[str, Any] | None:
    """The contents of a checkpoint; None if there is none.

    Raises:
        ValueError: It is damaged.
        RunFolderError: It cannot be read, or has a newer format.
    """
    try:
        with disk_errors("read", path):
            content = path.read_bytes()
    except RunFolderError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    found: Mapping[str, Any] = decode_tree(content)
    if found["format"] > FORMAT:
        raise RunFolderError(f"cannot read '{path}': {newer_format(found['format'], FORMAT)}")
    return found
