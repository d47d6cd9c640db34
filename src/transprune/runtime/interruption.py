"""Requests to stop, and who hears them; processes that load data.

They are SIGINT (Ctrl-C), SIGTERM (what schedulers send) and SIGHUP (a terminal that is closed).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

from transprune.errors import DataError

Item = TypeVar("Item")

SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PATIENCE = 600.0
"""Seconds that a batch of a process that loads data is waited for, unless the loader says how long."""
SHARED = ("/torch_", "shared memory", "(shm)")
"""What errors speak of where shared memory is too small."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived, whose name it carries; like Ctrl-C, it passes handlers of ordinary errors."""


def _write(text: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        os.write(2, f"\n{text}\n".encode())  # not print: a handler may run in the middle of one


tell: list[Callable[[str], None]] = [_write]
"""What says aloud that a request was heard, the last one: a display draws over what others write."""


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
    request, owner, leave_terminal = StopRequest(), os.getpid(), _terminal_left()

    def note(number: int, _: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked data worker inherits this handler, but its parent decides
            return
        request.reason = signal.Signals(number).name
        leave_terminal(number)
        _install(before)
        tell[-1](f"transprune: {request.reason}: stops after this step; once more ends at once")

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = _install(dict.fromkeys(_heard(SIGNALS), note))
    try:
        yield request
    finally:
        _install(before)
    if request.reason is not None:
        signal.raise_signal(signal.Signals[request.reason])


@contextmanager
def raising_on_termination() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP inside the block raise `Terminated`, so that files are closed, temporary ones removed.

    Raises:
        Terminated: The signal arrived.
    """

    def end(number: int, _: FrameType | None) -> None:
        leave_terminal(number)
        raise Terminated(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    leave_terminal = _terminal_left()
    before = _install(dict.fromkeys(_heard(SIGNALS[1:]), end))
    try:
        yield
    finally:
        _install(before)


def start_loading(loader: Iterable[Item]) -> Iterator[Item]:
    """The iterator of a loader whose worker processes ignore Ctrl-C, and none of which is waited for without end.

    A terminal sends Ctrl-C to all processes, and this one decides; here it waits until the workers are started. What a
    worker cannot hand over is only printed by Python, and the loader waits for it: here it becomes an error.

    Raises:
        DataError: By the iterator: a worker cannot hand a batch over, or gives none in `PATIENCE`.
    """
    if not getattr(loader, "num_workers", 0):
        return iter(loader)
    before: Any = None
    if hasattr(signal, "pthread_sigmask"):
        import multiprocessing
        from multiprocessing import resource_tracker

        context = getattr(loader, "multiprocessing_context", None) or multiprocessing
        if context.get_start_method() != "fork":
            resource_tracker.ensure_running()  # else the loader starts it, which unblocks the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _watched(loader):
            batches = iter(loader)
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return _handed_over(batches)


@contextmanager
def _watched(loader: Any) -> Iterator[None]:
    """Inside the block a `DataLoader` starts workers that say what they cannot hand over, and has an end of waiting."""
    if not hasattr(loader, "worker_init_fn") or not hasattr(loader, "timeout"):
        yield
        return
    own = loader.worker_init_fn, loader.timeout
    loader.worker_init_fn, loader.timeout = _Begin(own[0]), own[1] or PATIENCE
    try:
        yield
    finally:
        loader.worker_init_fn, loader.timeout = own


def _handed_over(batches: Iterator[Item]) -> Iterator[Item]:
    try:
        yield from _each_handed_over(batches)
    finally:
        # Where one worker has died, torch raises it again whenever another one ends, in the iterator's __del__ as well.
        if not getattr(batches, "_persistent_workers", False):
            with suppress(RuntimeError):
                getattr(batches, "_shutdown_workers", lambda: None)()


def _each_handed_over(batches: Iterator[Item]) -> Iterator[Item]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:  # what a worker raised comes as it was, its traceback as its text
            is_workers = "in DataLoader worker process" in str(error)
            if is_workers and any(word in str(error) for word in SHARED):
                raise _not_handed_over(error) from error
            if isinstance(error, ConnectionError | EOFError) and not is_workers:  # of the pipe in which it came
                raise RuntimeError(f"DataLoader worker is gone: {type(error).__name__}") from error
            if "DataLoader timed out" not in str(error):
                raise
            raise DataError(
                f"cannot load the data: {error} (no process that loads them gave a batch so long); look for what its "
                "data set and transforms wait for: a disk, a lock, threads from before the processes were started; a "
                "slow one needs DataLoader(timeout=...) of more seconds, and num_workers=0 shows where it stands"
            ) from error
        if isinstance(batch, DataError):
            raise batch
        yield batch


@dataclass(frozen=True)
class _Begin:
    """What a worker does first: it says from now on what it cannot hand over, and then what its loader wants."""

    own: Callable[[int], Any] | None

    def __call__(self, worker: int) -> None:
        from multiprocessing.queues import Queue

        start: Callable[[Any], None] = Queue._start_thread  # type: ignore[attr-defined]

        def started(queue: Any) -> None:
            queue._on_queue_feeder_error = lambda error, item: queue.put((item[0], _not_handed_over(error)))
            start(queue)

        Queue._start_thread = started  # type: ignore[attr-defined]
        if self.own is not None:
            self.own(worker)


def _not_handed_over(error: Exception) -> DataError:
    last = (str(error).strip() or "without a word").splitlines()[-1]
    text = last if last.startswith(type(error).__name__) else f"{type(error).__name__}: {last}"
    is_full = any(word in text for word in (*SHARED, "No space left", "Too many open files"))
    remedy = (
        "shared memory (/dev/shm) is too small for the batches on their way: give it more (docker run --shm-size=2g), "
        "or take fewer processes (num_workers) or smaller batches"
        if is_full
        else "expected tensors and plain values, which can be pickled"
    )
    return DataError(f"cannot load the data: a process that loads them could not hand a batch over ({text}); {remedy}")


def _heard(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Those of the signals that are not to be ignored: `nohup` starts programs that go on without a terminal."""
    hang_up = getattr(signal, "SIGHUP", None)
    return [number for number in numbers if number != hang_up or signal.getsignal(number) != signal.SIG_IGN]


def _terminal_left() -> Callable[[int], None]:
    """What, told of SIGHUP, has all that is written to the terminal written nowhere: it is gone, and writing fails."""
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def leave(number: int) -> None:
        if signal.Signals(number).name == "SIGHUP":
            for descriptor in terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)

    return leave


def _install(handlers: Mapping[signal.Signals, Callable[..., Any] | int | None]) -> dict[signal.Signals, Any]:
    """Sets handlers and returns the previous ones."""
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}
