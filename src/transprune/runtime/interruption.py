"""Requests to stop: SIGINT (Ctrl-C), SIGTERM (what schedulers send), and who hears them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

Item = TypeVar("Item")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: like Ctrl-C, an end that no handler of ordinary errors catches."""


class StopRequest:
    """Whether somebody asked to stop, and how."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """Name of the signal; None while nobody asked."""


@contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Inside the block the first signal only sets the reason of the request; a second one acts as usual.

    A request that the block did not answer with an exception acts at its end. Python delivers signals to the main
    thread alone; in any other nothing changes.
    """
    request, owner = StopRequest(), os.getpid()

    def note(number: int, _: FrameType | None) -> None:
        if os.getpid() != owner:  # a process that loads data has inherited this handler: its parent decides
            return
        request.reason = signal.Signals(number).name
        _install(before)
        # Not print: a handler may run in the middle of one.
        os.write(2, f"\ntransprune: {request.reason}: stops after this step; once more ends at once\n".encode())

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = _install(dict.fromkeys(SIGNALS, note))
    try:
        yield request
    finally:
        _install(before)
    if request.reason is not None:
        signal.raise_signal(signal.Signals[request.reason])


@contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Inside the block SIGTERM raises `Terminated`, so that files are closed and temporary ones removed.

    Raises:
        Terminated: The signal arrived.
    """

    def end(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _install({signal.SIGTERM: end})
    try:
        yield
    finally:
        _install(before)


def start_loading(loader: Iterable[Item]) -> Iterator[Item]:
    """The iterator of a loader whose worker processes ignore Ctrl-C.

    A terminal sends Ctrl-C to all processes, and this one decides; here it waits until the workers are started.
    """
    if not getattr(loader, "num_workers", 0) or not hasattr(signal, "pthread_sigmask"):
        return iter(loader)
    import multiprocessing
    from multiprocessing import resource_tracker

    context = getattr(loader, "multiprocessing_context", None) or multiprocessing
    if context.get_start_method() != "fork":
        resource_tracker.ensure_running()  # else the loader starts it, which unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _install(handlers: Mapping[signal.Signals, Callable[..., Any] | int | None]) -> dict[signal.Signals, Any]:
    """Sets handlers, and gives those that were there."""
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}
