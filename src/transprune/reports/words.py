"""Numbers and states of a run in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transprune.latency.latency_model import milliseconds
from transprune.reports.run_record import PHASES, RunRecord, number, part

COST_NAMES = {"macs": "MACs", "params": "parameters", "latency": "latency"}
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
    """Formats a figure for an axis, with no more digits than needed."""
    text = compact(value)
    figure, _, prefix = text.partition(" ")
    return f"{float(figure):g} {prefix}".strip()


def amount(kind: str, value: float) -> str:
    """Formats a cost: latencies, in nanoseconds, as milliseconds, and all others as plain numbers.

    Example:
        >>> amount("latency", 4_200_000)
        '4.200 ms'
        >>> amount("macs", 40813194)
        '40,813,194 MACs'
    """
    return milliseconds(value) if kind == "latency" else f"{value:,.0f} {COST_NAMES.get(kind, kind)}"


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


def subject(record: RunRecord) -> str:
    """The model and the data of a run."""
    model = record.result.get("model") or part(record.architecture, "model").get("name") or record.config.get("model")
    data = record.result.get("data") or record.config.get("data")
    named = " on ".join(value for value in (model, data) if isinstance(value, str))
    return named or "This run"


def headline(record: RunRecord) -> str:
    """One sentence on the result of a run, or on its progress."""
    return f"{subject(record)}: {_measured(record) or _chosen(record) or _progress(record)}"


def _measured(record: RunRecord) -> str:
    """Cost and accuracy of the student; empty while it is not measured."""
    cost = [
        f"{percent(after / before)} of the {COST_NAMES.get(kind, kind)}"
        for kind in record.cost_kinds
        for before, after in _pair(record, kind)
        if before
    ]
    top1 = [
        f"{before:.2f} % → {after:.2f} % top-1 ({points(after - before)})" for before, after in _pair(record, "top1")
    ]
    return ", ".join(cost + top1)


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
    blocks = sum(stage.full for stage in record.stages)
    kept = sum(stage.kept or 0 for stage in record.stages)
    depth = f"{kept} of {blocks} blocks kept, " if blocks else ""
    return f"{depth}widths at {percent(sum(shares) / len(shares))} of full on average"


def _progress(record: RunRecord) -> str:
    """The last epoch of the latest phase."""
    for phase in reversed(PHASES):
        epochs = record.epochs(phase)
        if epochs:
            of = f" of {epochs[-1]['epochs']}" if "epochs" in epochs[-1] else ""
            return f"{PHASE_NAMES[phase]} at epoch {epochs[-1]['epoch']}{of}; no architecture is chosen yet"
    return "no student is measured yet"
