"""Numbers, states and the verdict of a run in words."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from transprune.costs import IN_BYTES, in_bytes
from transprune.options import is_in_time
from transprune.reports.run_record import PHASES, RunRecord, number, part
from transprune.runtime.terminal import milliseconds
from transprune.tas.probabilities import UNDECIDED

COST_NAMES = {"macs": "MACs", "params": "parameters", "latency": "latency", "file": "file size", "cache": "cache"}
PHASE_NAMES = {
    "teacher": "teacher training",
    "search": "search",
    "compress": "compression without training",
    "distill": "distillation",
}
_PREFIXES = ((10**9, "G"), (10**6, "M"), (10**3, "k"))


def compact(value: float, unit: str = "") -> str:
    """Formats a figure with a metric prefix.

    Example:
        >>> compact(40813194)
        '40.81 M'
        >>> compact(812, "B")
        '812 B'
    """
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.2f} {prefix}{unit}"
    return f"{value:.0f} {unit}".strip()


def tick(value: float) -> str:
    """Formats a figure for an axis, with no more digits than needed.

    Example:
        >>> tick(1_325_000), tick(1_300_000), tick(0)
        ('1.325 M', '1.3 M', '0')
    """
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix}"
    return f"{value:.0f}"


def amount(kind: str, value: float) -> str:
    """Formats a cost: latencies, in nanoseconds, as milliseconds, files in units of bytes, others as plain numbers.

    Example:
        >>> amount("latency", 4_200_000)
        '4.200 ms'
        >>> amount("macs", 40813194)
        '40,813,194 MACs'
    """
    if kind in IN_BYTES:
        return in_bytes(value)
    return milliseconds(value) if kind == "latency" else f"{value:,.0f} {COST_NAMES.get(kind, kind)}"


def spent(budget: Mapping[str, Any]) -> float:
    """What the student has of a budget of `result.json`, as written or measured, or else predicted or counted."""
    return float(budget.get("written", budget.get("measured", budget.get("actual", 0))))


def is_kept(budget: Mapping[str, Any]) -> bool:
    """Whether a budget of `result.json` is kept; by a clock as well as that can tell."""
    most = number(budget.get("target")) or 0.0
    return is_in_time(spent(budget), most) if "measured" in budget else spent(budget) <= most


def foretold(budget: Mapping[str, Any]) -> str:
    """Behind an amount of time that was measured: what was predicted of it; else nothing."""
    predicted = number(budget.get("actual"))
    if "measured" not in budget or predicted is None:
        return ""
    return f"; {amount(str(budget.get('kind')), predicted)} were predicted"


def how_spent(budget: Mapping[str, Any]) -> str:
    """Before an amount that is spent: whether it is measured or predicted, where it does not follow by counting."""
    if budget.get("kind") not in ("latency", "file"):
        return ""
    return next((f"{how} " for how in ("written", "measured") if how in budget), "predicted ")


def timed_in(figures: Mapping[str, Any]) -> str:
    """Says where a latency was measured; empty for figures of earlier versions, which do not tell.

    Example:
        >>> timed_in({"runtime": "torch", "device": "cpu", "threads": 1, "batch_size": 64})
        'in torch on cpu, 1 thread, batch 64'
    """
    if "runtime" not in figures:
        return ""
    threads = f"{figures['threads']} thread{'s' if figures['threads'] != 1 else ''}"
    return f"in {figures['runtime']} on {figures['device']}, {threads}, batch {figures['batch_size']}"


PACE = 1.2
"""How much slower or faster a machine may be than when the latencies of a budget were measured, unsaid."""


def other_times(result: Mapping[str, Any], folder: Path | str) -> list[str]:
    """What is to be said where times are not those of a budget, or are more than it allows; often nothing."""
    teacher, student = part(result, "teacher"), part(result, "student")
    before, most = number(teacher.get("latency")), _most_time(result)
    taken, takes = number(teacher.get("latency_ms")), number(student.get("latency_ms"))
    if not before or not taken:
        return []
    found = []
    if not 1 / PACE < 1e6 * taken / before < PACE:
        was = "slower" if 1e6 * taken > before else "faster"
        found.append(
            f"The machine was {was} in the end than when it was measured for the budget (the teacher takes "
            f"{milliseconds(1e6 * taken)} now, and took {milliseconds(before)}): compare shares, not milliseconds."
        )
    if most is not None and takes is not None and not is_in_time(takes / taken, most / before):
        found.append(
            f"Measured, the student takes {percent(takes / taken)} of the time of the teacher, and "
            f"{percent(most / before)} is allowed: measure again while the machine does nothing else "
            f"(`transprune evaluate {shlex.quote(str(folder))}`), and where it stays so, ask for less."
        )
    return found


def _most_time(result: Mapping[str, Any]) -> float | None:
    """What a budget of time allows, in nanoseconds."""
    return next(
        (number(each.get("target")) for each in result.get("budgets", []) if each.get("kind") == "latency"), None
    )


def percent(share: float, decimals: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * share:.{decimals}f} %"


def points(difference: float) -> str:
    """Formats a difference of two percentages, with its direction in words.

    Example:
        >>> points(-0.278)
        '0.28 points lower'
    """
    if difference == 0:
        return "unchanged"
    size = f"{abs(difference):.2f}" if abs(difference) >= 0.005 else "less than 0.01"
    return f"{size} points {'higher' if difference > 0 else 'lower'}"


def metric_name(result: Mapping[str, Any]) -> str:
    """The main metric in a `result.json`: that of the task, or top-1; the loss where there is neither."""
    names = result.get("metrics")
    first = str(names[0]) if isinstance(names, list) and names else "top1"
    known = part(result, "student")
    return first if first in known or not known or "loss" not in known else "loss"


def metric_label(name: str) -> str:
    """A metric as a heading."""
    return "top-1" if name == "top1" else name


def metric_axis(name: str) -> str:
    """A metric as the title of an axis."""
    return "top-1 (%)" if name == "top1" else name


def measured(metric: str, value: float) -> str:
    """A value of a metric: top-1 in per cent, others as they are."""
    return f"{value:.2f} %" if metric.startswith("top") else f"{value:.4g}"


def moved(metric: str, difference: float) -> str:
    """How a metric moved: in points for top-1, as a signed figure for others, of which nobody knows the better side."""
    return points(difference) if metric.startswith("top") else f"{difference:+.4g}"


def subject(record: RunRecord) -> str:
    """The model and the data of a run."""
    model = record.result.get("model") or part(record.architecture, "model").get("name") or record.config.get("model")
    data = record.result.get("data") or record.config.get("data")
    said = " on ".join(named(value) for value in (model, data) if isinstance(value, str))
    return said or "This run"


def named(name: str) -> str:
    """The name of a network or of data, for readers: of a path from the root the last part, and no `python:`.

    Example:
        >>> named("python:UNet"), named("timm:resnet18"), named("yolo:/data/2026/photos")
        ('UNet', 'timm:resnet18', 'yolo:photos')
    """
    kind, colon, place = name.removeprefix("python:").rpartition(":")
    return PurePath(kind).name + colon + PurePath(place).name if "/" in (kind[:1], place[:1]) else kind + colon + place


def headline(record: RunRecord) -> str:
    """One sentence on the result of a run, or on its progress."""
    return f"{subject(record)}: {_measured(record) or _chosen(record) or _progress(record)}"


def _measured(record: RunRecord) -> str:
    """Cost and accuracy of the student; empty while it is not measured."""
    cost = _shares(record, "the")
    top1 = [
        f"{before:.2f} % → {after:.2f} % top-1 ({points(after - before)})" for before, after in _pair(record, "top1")
    ]
    main = [str(name) for name in record.result.get("metrics", [])[:1]]
    other = [f"{name} {before:.4g} → {after:.4g}" for name in main for before, after in _pair(record, name)]
    return ", ".join(cost + (top1 or other))


def _pair(record: RunRecord, measure: str) -> list[tuple[float, float]]:
    """A measure of teacher and student, if both have it, as a list of one pair."""
    before, after = (number(part(record.result, network).get(measure)) for network in ("teacher", "student"))
    return [(before, after)] if before is not None and after is not None else []


def _chosen(record: RunRecord) -> str:
    size = network_size(record)
    return f"{size}; no student is measured yet" if size else ""


def network_size(record: RunRecord) -> str:
    """The size of the derived network; empty while there is none."""
    shares = [row.kept / row.full for row in record.groups if row.kept and not row.is_dropped]
    if not record.architecture or not shares:
        return ""
    depth = ""
    for what, in_branches in (("blocks", False), ("branches", True)):
        stages = [stage for stage in record.stages if stage.in_branches is in_branches]
        kept, full = sum(stage.kept or 0 for stage in stages), sum(stage.full for stage in stages)
        depth += f"{kept} of {full} {what} kept, " if full else ""
    return f"{depth}widths at {percent(sum(shares) / len(shares))} of full on average"


def _progress(record: RunRecord) -> str:
    """The last epoch of the latest phase."""
    for phase in reversed(PHASES):
        epochs = record.epochs(phase)
        if epochs:
            of = f" of {epochs[-1]['epochs']}" if "epochs" in epochs[-1] else ""
            return f"{PHASE_NAMES[phase]} at epoch {epochs[-1]['epoch']}{of}; no architecture is chosen yet"
    return "no student is measured yet"


CHANCE = 20
"""A difference is more than chance explains where chance makes it as large in fewer than one of so many cases."""
SLOWER = 0.15
"""How much larger the share of the time may be than that of the MACs before it is worth a word."""


def verdict(record: RunRecord) -> list[str]:
    """What the run came to: what was lost, against what is free, whether the search decided, and what to try next.

    Returns:
        Sentences; none while teacher and student are not both measured.
    """
    if not (part(record.result, "teacher") and part(record.result, "student")):
        return []
    found = [_lost(record), _against_free(record), _certainty(record), *_next(record)]
    return [sentence for sentence in found if sentence]


def by_chance(tosses: int) -> int:
    """The largest difference between heads and tails that tosses of a fair coin make in one case of `CHANCE` or more.

    Counted exactly, for the normal approximation would call four of four more than chance.

    Example:
        >>> by_chance(4), by_chance(6), by_chance(10_000)
        (4, 4, 196)
    """
    enough, ways, sequences = 2**tosses, 1, 1  # with at most so many heads, with exactly so many
    for heads in range(tosses // 2 + 1):
        if 2 * ways * CHANCE >= enough:
            return tosses - 2 * heads
        sequences = sequences * (tosses - heads) // (heads + 1)
        ways += sequences
    return 0


def lost_images(record: RunRecord) -> tuple[int, int, int] | None:
    """How many test images the student gets wrong beyond the teacher, what of that may be chance, and of how many.

    Only images on which one of the two is right tell them apart. If chance alone decided which of the two that is,
    their difference would be that of as many tosses of a coin (McNemar's test, exact).

    Returns:
        Images lost (negative: gained), the largest difference that may be chance, and test images; None: not known.
    """
    counts, samples = part(record.examples, "counts"), record.examples.get("samples")
    teacher, student = (number(counts.get(name)) for name in ("teacher_only", "student_only"))
    if teacher is None or student is None or not samples:
        return None
    return int(teacher - student), by_chance(int(teacher + student)), int(samples)


def _lost(record: RunRecord) -> str:
    known, budget = lost_images(record), " and ".join(_shares(record, "the teacher’s"))
    start = f"The student has {budget}" if budget else "The student"
    if known is None:
        pairs = [f"{points(after - before)}" for before, after in _pair(record, "top1")]
        if not pairs:
            name = next(iter(record.result.get("metrics", [])), "")
            pairs = [f"{after:.4g}, the teacher’s {before:.4g}" for before, after in _pair(record, str(name))]
        else:
            name = "top-1"
        return f"{start}; its {name} is {pairs[0]}." if pairs else f"{start}." if budget else ""
    lost, chance, samples = known
    what, each = ("objects", "object") if "images" in record.examples else ("test images", "image")
    if not lost:
        return f"{start} and gets as many of the {samples:,} {what} right as the teacher."
    said = f"{abs(lost):,} {'fewer' if lost > 0 else 'more'} of the {samples:,} {what}"
    share = percent(abs(lost) / samples, 2)
    if abs(lost) > chance:
        return f"{start} and gets {said} right ({share}), more than chance explains."
    few = f"one {each}" if chance == 1 else f"{chance:,} {each}s"
    may_be = f"a difference of up to {few} may be chance here, so this one may be."
    return f"{start} and gets {said} right ({share}); {may_be}"


def _shares(record: RunRecord, whose: str) -> list[str]:
    """What the student has of each cost that a budget limits; of the latency what was measured in the end."""
    return [
        f"{percent(after / before)} of {whose} {COST_NAMES.get(kind, kind)}"
        for kind in record.cost_kinds
        for before, after in [*_pair(record, "latency_ms" if kind == "latency" else kind), *_pair(record, kind)][:1]
        if before
    ]


def _contenders(record: RunRecord) -> tuple[Mapping[str, Any], float]:
    """The students that a search compared, by name, and how long each was trained before; none if it did not."""
    decided = [entry for entry in record.events("decision") if part(entry, "contenders")]
    return (part(decided[-1], "contenders"), number(decided[-1].get("trial_epochs")) or 0) if decided else ({}, 0)


def _losses(compared: Mapping[str, Any]) -> dict[str, float]:
    losses = {name: number(part(compared, name).get("loss")) for name in compared}
    return {name: math.inf if loss is None else loss for name, loss in losses.items()}


def _kept(compared: Mapping[str, Any]) -> str:
    """The name of the student that was kept, that of the least loss."""
    losses = _losses(compared)
    return min(losses, key=losses.__getitem__)


def _against_free(record: RunRecord) -> str:
    """What was compared before the student's training, if the search compared anything."""
    from transprune.searching.contenders import UNIFORM  # takes a second, which a table of finished runs need not wait

    compared, epochs = _contenders(record)
    if not compared:
        return ""
    when = f"After a trial each (search.trial_epochs = {epochs:.0f})" if epochs else "Before training"
    kept, metric = _kept(compared), metric_name(record.result)
    scores = {name: _score(part(compared, name), metric) for name in compared}
    said = [f"{name} {score}" for name, score in scores.items() if name != kept]
    why = "" if metric == "loss" else "; the least loss decided"  # of some metrics more is better, of others less
    free = f"; at the same budget, treated alike, {' and '.join(said)}{why}" if said else ""
    none = "" if UNIFORM in compared else f" No {UNIFORM} alone are within the budget: blocks have to go as well."
    return f"{when}, on samples that the weights did not learn from, {kept} had {scores[kept]}{free}.{none}"


SPOILT = 10.0
"""Percentage points below its beginning at which a student has lost by being trained."""


def _spoilt(record: RunRecord) -> Iterator[str]:
    """A word on a student that ends far below what it began with."""
    compared, epochs = _contenders(record)
    before = number(part(compared, _kept(compared)).get("top1")) if compared and not epochs else None
    after, teacher = (number(part(record.result, side).get("top1")) for side in ("student", "teacher"))
    if before is None or after is None or after >= before - SPOILT:
        return
    if teacher is not None and teacher < before - SPOILT:
        yield (
            f"It had {before:.1f} % before it was trained, so its teacher, which has {teacher:.1f} %, took away more "
            "than it gave: train the teacher better, or let the labels count for more (`distill.weight`)."
        )
    else:
        yield (
            f"It had {before:.1f} % before it was trained, so training took away more than it gave: the first epochs "
            "move the weights far, and there were too few to come back, or the learning rate "
            "(`distill.learning_rate`) is too high."
        )


def _score(figures: Mapping[str, Any], metric: str) -> str:
    """What a network reached before its training: by the main metric, or else its loss."""
    value = number(figures.get(metric))
    if value is None or metric == "loss":
        return f"a loss of {number(figures.get('loss')) or 0.0:.4g}"
    return f"{value:.1f} %" if metric.startswith("top") else f"{metric} {measured(metric, value)}"


def _certainty(record: RunRecord) -> str:
    epochs = record.epochs("search")
    entropy = number(epochs[-1].get("entropy")) if epochs else None
    if entropy is None:
        return ""
    undecided = [entry for entry in record.events("decision") if entry.get("what") == UNDECIDED]
    if undecided:
        return f"{UNDECIDED}: {undecided[-1]['why']}."
    return f"The search had decided: the entropy of its probabilities was {entropy:.2f} of 1 at its end."


SAVED = "Saved what was made in Python"
"""The decision in the journal of a run that `save` wrote."""


def how_left(config: Mapping[str, Any]) -> str:
    """What became of the weights of a student that was not trained."""
    is_repaired = (config.get("compress") or {}).get("repair", True)
    return "cut and fitted to the samples" if is_repaired else "cut and else as they were"


def _next(record: RunRecord) -> Iterator[str]:
    """What to try next, if the figures suggest anything."""
    known = lost_images(record)
    if record.result.get("is_trained") is False and (known is None or known[0] > 0):
        yield "Next: `transprune distill` trains the student, which often wins back most of what is lost."
    elif known is not None and known[0] > known[1]:
        yield (
            "Next: more epochs of distillation (`distill.epochs`) win back most; if they do not suffice, a larger "
            "budget does."
        )
    elif known is not None:
        little = "so little was lost that" if known[0] > 0 else "nothing was lost, so"
        yield f"Next: {little} a smaller budget may do."
    yield from _spoilt(record)
    shares = {
        kind: after / before for kind in ("macs", "latency_ms") for before, after in _pair(record, kind) if before
    }
    if "latency" not in record.cost_kinds and shares.get("latency_ms", 0.0) > shares.get("macs", 1.0) + SLOWER:
        yield (
            f"It takes {percent(shares['latency_ms'], 0)} of the teacher’s time with {percent(shares['macs'], 0)} of "
            "its MACs. If time is what counts, ask for it: `--budget latency=0.5`."
        )
