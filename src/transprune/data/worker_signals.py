"""Processes that load data, and the keyboard."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker
from typing import TypeVar

Item = TypeVar("Item")


def start_loading(loader: Iterable[Item]) -> Iterator[Item]:
    """The iterator of a loader; the processes that load for it never hear Ctrl-C.

    A terminal sends Ctrl-C to all processes: the first decides. In this process it waits until they are started.
    """
    if not getattr(loader, "num_workers", 0) or not hasattr(signal, "pthread_sigmask"):
        return iter(loader)
    context = getattr(loader, "multiprocessing_context", None) or multiprocessing
    if context.get_start_method() != "fork":
        resource_tracker.ensure_running()  # else the loader starts it, which unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
