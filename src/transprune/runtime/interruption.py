"""Requests to stop: SIGINT (Ctrl-C) and SIGTERM (sent by schedulers), and which process handles them."""

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
    """SIGTERM arrived; like Ctrl-C, it passes handlers of ordinary errors."""


class StopRequest:
    """Whether a stop was requested, and by which signal."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """Name of the signal; None while there was none."""


@contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Makes the first signal inside the block only set the reason of the request; a second one acts as usual.

    A request that the block did not answer by raising acts at its end. Python delivers signals only to the main thread;
    in others, this has no effect.
    """
    request, owner = StopRequest(), os.getpid()

    def note(number: int, _: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked data worker inherits this handler, but its parent decides
            return
        request.reason = signal.Signals(number).name
        _install(before)
        # Not print, which is not reentrant: the handler may interrupt one.
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
    """Makes SIGTERM inside the block raise `Terminated`, so that files are closed and temporary ones removed.

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
    """Starts iterating over a loader such that its worker processes ignore Ctrl-C.

    A terminal sends Ctrl-C to all processes, but only this one may decide. The workers inherit the blocked signal; here
    it is unblocked once they are started.
    """
    if not getattr(loader, "num_workers", 0) or not hasattr(signal, "pthread_sigmask"):
        return iter(loader)
    import multiprocessing
    from multiprocessing import resource_tracker

    context = getattr(loader, "multiprocessing_context", None) or multiprocessing
    if context.get_start_method() != "fork":
        resource_tracker.ensure_running()  # otherwise the loader starts it, which unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _install(handlers: Mapping[signal.Signals, Callable[..., Any] | int | None]) -> dict[signal.Signals, Any]:
    """Sets handlers and returns the previous ones."""
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}
