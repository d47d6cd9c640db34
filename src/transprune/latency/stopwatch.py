"""The one stop-watch: every time of a network or an operator is taken here, on a machine that others use too.

Things take turns, so that a busy moment meets all of them. Between networks the medians count. A latency model adds up
times that were taken minutes apart, so it takes more care: of each thing the time at a low quantile counts, since a
machine only ever adds to a time, and a piece of reference work that runs in every turn tells how fast the machine was.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transprune.errors import LatencyError
from transprune.latency.backends import Backend, Call, make_backend
from transprune.options import LEAST_REPEATS, LatencyOptions
from transprune.reading.trace import Example, as_inputs, rebatched

Clock = Callable[[], int]
Advance = Callable[[int], None]
QUANTILE = 0.2
"""Which of the sorted times of one thing counts in a latency model, from 0 (the shortest) to 1."""
TURNS = 3
"""Times that the turn comes to each thing."""
SECONDS = 20.0
"""Time after which slow networks have run often enough."""
TOGETHER = 48
"""Things that take turns with one another: more would fill the memory."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long a network takes for one batch, and where: no time means anything without that."""

    runtime: str
    """What runs the network: `torch` or `onnxruntime`, as `LatencyOptions.backend`."""
    device: str
    threads: int
    """Threads that compute on the CPU."""
    batch_size: int
    latency_ms: float
    """Median time of a batch."""
    lower_ms: float
    """A quarter of the batches took at most this."""
    upper_ms: float
    """A quarter of the batches took at least this."""


def measure_latencies(
    networks: Mapping[str, nn.Module],
    example: Example,
    options: LatencyOptions | None = None,
    *,
    device: torch.device | str = "cpu",
) -> dict[str, Latency]:
    """How long whole networks take, by name; they take turns.

    Args:
        networks: By name, such as `{"teacher": …, "student": …}`; untouched.
        example: An input batch, or a tuple of the forward's positional arguments; its first sample is used.
        options: Backend, threads, batch size and repeats; each network runs twice as often as an operator.
        device: Where torch computes, with the backend `torch`.

    Raises:
        LatencyError: A network cannot be written for the backend, or takes no batch of this size.
    """
    options = options or LatencyOptions()
    backend, inputs = make_backend(options, device), as_batch(example, options.batch_size)
    with backend.running():
        calls = [backend.network(copy.deepcopy(network).cpu().eval(), inputs) for network in networks.values()]
        return dict(zip(networks, time_networks(calls, backend, repeats=2 * options.repeats), strict=True))


def as_batch(example: Example, batch_size: int) -> tuple[Tensor, ...]:
    """The first sample of the example, so many times, on the CPU.

    Raises:
        LatencyError: The inputs have no axis of samples, and the batch size is not 1.
    """
    inputs = tuple(tensor.detach().cpu() for tensor in as_inputs(example))
    batch = rebatched(inputs, batch_size)
    if batch is None and batch_size != 1:
        raise LatencyError(
            f"cannot measure latency with batch_size={batch_size}: the model's inputs have no common first axis of "
            f"samples; expected batch_size=1"
        )
    return inputs if batch is None else batch


def time_networks(
    calls: Sequence[Call], backend: Backend, *, repeats: int, seconds: float = SECONDS, turns: int = TURNS
) -> list[Latency]:
    """The latencies of networks that are ready to run; inside `Backend.running`.

    Args:
        calls: The networks.
        backend: What runs them, and whose clock counts.
        repeats: Times that each runs.
        seconds: Time after which slow ones have run often enough, if at least `LEAST_REPEATS` times.
        turns: Times that the turn comes to each.
    """
    once = sum(sum(times) for times in take_turns(calls, clock=backend.clock, repeats=1, turns=1)) / 1e9
    repeats = min(repeats, max(LEAST_REPEATS, int(seconds / max(once, 1e-9))))
    times = take_turns(calls, clock=backend.clock, repeats=repeats, turns=turns)
    return [_latency(each, backend) for each in times]


def _latency(nanoseconds: Sequence[float], backend: Backend) -> Latency:
    lower, median, upper = (time / 1e6 for time in statistics.quantiles(nanoseconds, n=4, method="inclusive"))
    options = backend.options
    return Latency(
        runtime=options.backend,
        device=str(backend.device),
        threads=options.threads,
        batch_size=options.batch_size,
        latency_ms=median,
        lower_ms=lower,
        upper_ms=upper,
    )


def time_all(
    makers: Sequence[Callable[[], Call]],
    *,
    reference: Call,
    clock: Clock,
    repeats: int,
    advance: Advance = lambda steps: None,
) -> list[float]:
    """Times of many things, in nanoseconds, as if the machine had been equally fast all along.

    Args:
        makers: Each makes one thing ready to run; they are made a few at a time.
        reference: Work that runs in every turn.
        clock: The time now, in nanoseconds.
        repeats: Times that each runs.
        advance: Told how many were measured.
    """
    measured: list[tuple[list[float], float]] = []
    for first in range(0, len(makers), TOGETHER):
        calls = [reference, *(make() for make in makers[first : first + TOGETHER])]
        pace, *times = map(low_quantile, take_turns(calls, clock=clock, repeats=repeats))
        measured.append((times, pace))
        advance(len(times))
    usual = statistics.median(pace for _, pace in measured) if measured else 1.0
    return [time * usual / pace for times, pace in measured for time in times]


def low_quantile(times: Sequence[float]) -> float:
    """The time that counts in a latency model."""
    return sorted(times)[int(QUANTILE * (len(times) - 1))]


def take_turns(calls: Sequence[Call], *, clock: Clock, repeats: int, turns: int = TURNS) -> list[list[float]]:
    """Times of several calls in nanoseconds, in the order in which they were measured.

    Args:
        calls: What is timed; each runs once untimed before its part of a turn.
        clock: The time now, in nanoseconds.
        repeats: Times that each is timed, over all turns.
        turns: Times that the turn comes to each.
    """
    times: list[list[float]] = [[] for _ in calls]
    for each in _shares(repeats, turns):
        for call, found in zip(calls, times, strict=True):
            call()
            for _ in range(each):
                started = clock()
                call()
                found.append(clock() - started)
    return times


def _shares(total: int, parts: int) -> Iterator[int]:
    """A number in parts that differ by at most one; empty ones are left out."""
    for part in range(parts):
        share = total * (part + 1) // parts - total * part // parts
        if share:
            yield share
