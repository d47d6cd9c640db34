"""The one stop-watch: all timing of networks and operators happens here, even on a machine that is otherwise busy.

Whatever is compared takes turns, so that a busy moment slows all of it. Networks are compared by their medians. A
latency model adds up times that were taken minutes apart and needs more care: it uses a low quantile of each operator's
times, since interference only ever adds to a time, and rescales them by the time of reference work in every turn.

What is chosen for a budget of time is timed as well, before anything is built on it (`Timekeeper`).
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import nn

from transprune.architecture import Architecture
from transprune.budget import Limit
from transprune.costs import Cost
from transprune.errors import BudgetError, LatencyError, OptionError
from transprune.latency.backends import Backend, Call, make_backend
from transprune.options import LEAST_REPEATS, LatencyOptions, is_in_time
from transprune.reading.networks import switched, unwrapped
from transprune.reading.reading import read_for
from transprune.reading.trace import Example, rebatched, sample_axes
from transprune.runtime import announce, choose_device, processes, seeded
from transprune.runtime.structures import as_inputs, copied, mapped
from transprune.shrinking.shrink import shrink
from transprune.space import SearchSpace

log = logging.getLogger("transprune.latency")
Found = TypeVar("Found")
Clock = Callable[[], int]
Advance = Callable[[int], None]
QUANTILE = 0.2
"""The quantile of an operator's times that a latency model uses, from 0 (the shortest) to 1."""
TURNS = 3
"""Rounds in which calls take turns."""
SECONDS = 20.0
"""Time limit for all repeats together; slow networks run less often to keep it."""
LEAST_SECONDS = 0.5
"""Time that networks are compared for at least: moments in which a machine is busy last longer than a small network
runs, and would fall on one network alone."""
RUNS = 10
"""Runs of a network in a turn, so that turns are short."""
TOGETHER = 48
"""Number of calls that are prepared and take turns at a time; more would need too much memory."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The time that a network takes for one batch, and the conditions without which a time means nothing."""

    runtime: str
    """`torch` or `onnxruntime`, as in `LatencyOptions.backend`."""
    device: str
    threads: int
    """CPU threads."""
    batch_size: int
    latency_ms: float
    """Median time of a batch."""
    lower_ms: float
    """Lower quartile."""
    upper_ms: float
    """Upper quartile."""


def measure_latencies(
    networks: Mapping[str, nn.Module],
    example: Example,
    options: LatencyOptions | None = None,
    *,
    device: torch.device | str | None = None,
) -> dict[str, Latency]:
    """Times whole networks, which take turns.

    Args:
        networks: Networks by name, such as `{"teacher": …, "student": …}`; untouched.
        example: An input batch, or a tuple of the forward's positional arguments; its first sample is used.
        options: Backend, threads, batch size and repeats; each network runs at least twice as often as an operator.
        device: Where torch computes, with the backend `torch`; None: where the first network is.

    Returns:
        The latency of each network, by name.

    Raises:
        LatencyError: A network cannot be exported for the backend, or cannot take a batch of this size.
    """
    if not networks:
        raise OptionError("cannot time networks: there is none; expected them by name, as in {'student': student}")
    options, first = options or LatencyOptions(), next(iter(networks.values()))
    backend = make_backend(options, choose_device(device, first))
    inputs = as_batch(first, example, options.batch_size)
    with backend.running():
        calls = [
            backend.network(switched(copied(network), training=False).cpu(), inputs) for network in networks.values()
        ]
        return dict(zip(networks, time_networks(calls, backend, repeats=2 * options.repeats), strict=True))


def as_batch(network: nn.Module, example: Example, batch_size: int) -> Example:
    """A batch that repeats the first sample of the example, on the CPU.

    Raises:
        LatencyError: The inputs have no common batch axis, and the batch size is not 1.
    """
    inputs = mapped(as_inputs(example), lambda tensor: tensor.detach().cpu())
    axes = sample_axes(network, inputs)
    if axes is None and batch_size != 1:
        raise LatencyError(
            f"cannot measure latency with batch_size={batch_size}: no axis of the model's inputs counts samples; "
            f"expected batch_size=1"
        )
    return inputs if axes is None else rebatched(inputs, batch_size, axes)


def time_networks(
    calls: Sequence[Call], backend: Backend, *, repeats: int, seconds: float = SECONDS, least: float = LEAST_SECONDS
) -> list[Latency]:
    """Times networks that are ready to run; call it inside `Backend.running`.

    Args:
        calls: The networks.
        backend: The backend that runs them; its clock is used.
        repeats: Number of runs of each.
        seconds: Time limit for all runs together; to keep it, slow networks run less often, but at least
            `LEAST_REPEATS` times each.
        least: Seconds that all runs together take at least, within the limit; fast networks run more often to fill
            them.
    """
    once = sum(sum(times) for times in take_turns(calls, clock=backend.clock, repeats=1, turns=1)) / 1e9
    fewest, most = (int(limit / max(once, 1e-9)) for limit in (least, seconds))
    repeats = min(max(repeats, fewest), max(LEAST_REPEATS, most))
    times = take_turns(calls, clock=backend.clock, repeats=repeats, turns=max(TURNS, repeats // RUNS))
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
    """Times many calls, in nanoseconds, rescaled as if the machine had been equally fast throughout.

    Args:
        makers: Each prepares one call; `TOGETHER` of them are prepared at a time.
        reference: Work timed in every turn, which tells how fast the machine currently is.
        clock: The current time, in nanoseconds.
        repeats: Number of runs of each.
        advance: Called with the number of calls measured since the last time.
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
    """The time at `QUANTILE`."""
    return sorted(times)[int(QUANTILE * (len(times) - 1))]


def take_turns(calls: Sequence[Call], *, clock: Clock, repeats: int, turns: int = TURNS) -> list[list[float]]:
    """Times several calls in turns.

    Args:
        calls: The calls; in every turn, each runs once untimed first.
        clock: The current time, in nanoseconds.
        repeats: Number of timed runs of each, over all turns.
        turns: Number of rounds in which they take turns.

    Returns:
        The times of each call in nanoseconds, in the order of its runs.
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
    """Splits a number into parts that differ by at most one, without zeros."""
    for part in range(parts):
        share = total * (part + 1) // parts - total * part // parts
        if share:
            yield share


# --- budgets of time, by the clock


class Timekeeper:
    """Holds what is chosen for a budget of time against the clock, which has the last word.

    Whoever looks for the best within a predicted time finds what the prediction makes too short, so that what is chosen
    takes longer than most. Where it takes longer than the budget, the next one is derived within a tighter limit: what
    was predicted, times what is allowed over what was measured. Times are shares of that of the unpruned network, which
    takes turns with each other one, so that it does not matter how fast the machine is at the moment.

    Args:
        time_share: Times a network; its share of the unpruned network's time.
        checks: How many are timed for one choice, at most; 0: none.
        known: Shares that were measured before. They are not measured again, so that a choice that is made again, as by
            a run that goes on, is the same.
        on_check: Is told of each one that is timed, as `settled` records it.
    """

    def __init__(
        self,
        time_share: Callable[[Architecture], float],
        *,
        checks: int = LatencyOptions.checks,
        known: Mapping[Architecture, float] | None = None,
        on_check: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.time_share, self.checks, self.on_check = time_share, checks, on_check
        self.known = dict(known or {})

    def settled(
        self,
        what: str,
        space: SearchSpace,
        asked: Sequence[Limit],
        derive: Callable[[Sequence[Limit]], Found],
        *,
        within: Sequence[Limit] | None = None,
        architecture: Callable[[Found], Architecture] = attrgetter("architecture"),
    ) -> tuple[Found, tuple[Limit, ...]]:
        """What is derived within limits, and keeps the one of time by the clock as well; without such a one, at once.

        Args:
            what: Whose choice it is, in words.
            space: The search space.
            asked: The limits that are to be kept.
            derive: Gives the best within limits.
            within: Limits to begin with, if tighter ones are known; None: those that are asked for.
            architecture: The architecture of what is derived.

        Returns:
            The last that was derived, and the limits that it was derived within. It takes longer than it may where none
            of `checks` choices was short enough, or nothing is left within a tighter limit; then the log says so.

        Raises:
            BudgetError: Nothing is within the limits.
            LatencyError: A network cannot be timed.
        """
        limits = tuple(within or asked)
        found = derive(limits)
        place = next((place for place, limit in enumerate(asked) if limit.cost.kind == "latency"), None)
        if place is None:
            return found, limits
        cost, most = limits[place].cost, asked[place].most
        full = space.cost(cost, space.full_architecture())
        for check in range(1, self.checks + 1):
            predicted = space.cost(cost, architecture(found))
            share = self._share(what, check, architecture(found), predicted / full, most / full)
            if self.keeps(space, asked, architecture(found)):
                break
            if check == self.checks:
                _warn(
                    f"latency: {what} still takes longer than the budget allows, after {check} checks by the clock; "
                    "ask for less, or let more be checked (--latency.checks)"
                )
                break
            tighter = Limit(cost, int(predicted * most / full / share))
            within_it = (*limits[:place], tighter, *limits[place + 1 :])
            try:
                found, limits = derive(within_it), within_it
            except BudgetError as error:
                _warn(f"latency: {what} takes longer than the budget allows, and nothing less: {error}")
                break
        return found, limits

    def keeps(self, space: SearchSpace, asked: Sequence[Limit], architecture: Architecture) -> bool:
        """Whether an architecture keeps a limit of time by the clock, as what was not timed does; in all processes."""
        share = processes.from_first(lambda: self.known.get(architecture, 0.0))
        return all(
            is_in_time(share, limit.most / space.cost(limit.cost, space.full_architecture()))
            for limit in asked
            if limit.cost.kind == "latency"
        )

    def _share(self, what: str, check: int, architecture: Architecture, predicted: float, allowed: float) -> float:
        """The measured share of an architecture, the same in all processes."""

        def measured() -> float:
            if architecture in self.known:
                return self.known[architecture]
            share = self.time_share(architecture)
            said = f"{100 * share:.1f} % of the unpruned network's time, {100 * predicted:.1f} % predicted"
            is_kept = is_in_time(share, allowed)
            wanted = f"{100 * allowed:.1f} % allowed{'' if is_kept else ': too slow'}"
            announce(f"latency: {what} takes {said}, {wanted}")
            log.info("latency: check %d of %s by the clock: %s, %s", check, what, said, wanted)
            if self.on_check is not None:
                self.on_check(
                    {
                        "what": what,
                        "check": check,
                        "architecture": architecture.to_json(),
                        "predicted": predicted,
                        "measured": share,
                        "allowed": allowed,
                        "is_kept": is_kept,
                    }
                )
            return share

        share = self.known[architecture] = processes.from_first(measured)
        return share


def _warn(said: str) -> None:
    if processes.is_first():
        log.warning("%s", said)


UNTIMED = Timekeeper(lambda _: 0.0, checks=0)
"""Leaves the word to the prediction."""


def how_timed(costs: Mapping[str, Cost], latency: LatencyOptions | None) -> LatencyOptions | None:
    """How what is chosen is timed: as asked for, else by the defaults.

    None: not at all, because the costs have a model of latency already, and nobody says how that was measured.
    """
    return latency if latency is not None or "latency" in costs else LatencyOptions()


def timekeeper(
    model: nn.Module,
    space: SearchSpace,
    example: Example,
    options: LatencyOptions | None,
    *,
    device: torch.device | str | None = None,
    known: Mapping[Architecture, float] | None = None,
    on_check: Callable[[Mapping[str, Any]], None] | None = None,
) -> Timekeeper:
    """Times the architectures of a search space beside the unpruned network.

    Args:
        model: The unpruned network; untouched.
        space: Its search space.
        example: An input batch, or a tuple of the forward's positional arguments; its first sample is used.
        options: What times them, and how many; None: nothing is timed.
        device: Where torch computes, with the backend `torch`; None: where the model is.
        known: As of `Timekeeper`.
        on_check: As of `Timekeeper`.
    """
    if options is None:
        return UNTIMED

    def time_share(architecture: Architecture) -> float:
        unpruned = copied(unwrapped(model)).cpu()
        inputs = as_batch(unpruned, example, 1)
        with seeded(0, "timekeeper"):  # what is drawn for new weights must not depend on what was timed before
            chosen = shrink(unpruned, architecture, inputs, reading=read_for(unpruned, inputs, space))
            networks = {"unpruned": unpruned, "chosen": chosen}
            times = measure_latencies(networks, inputs, options, device=choose_device(device, model))
        return times["chosen"].latency_ms / times["unpruned"].latency_ms

    return Timekeeper(time_share, checks=options.checks, known=known, on_check=on_check)
