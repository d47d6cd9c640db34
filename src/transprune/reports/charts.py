"""Which figures a report shows, and the words beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

from transprune.reports.figures import (
    Line,
    depth_history,
    line_chart,
    lowest_share,
    width_bars,
    width_choices,
    width_history,
)
from transprune.reports.run_record import RunRecord, number, part, series
from transprune.reports.svg import GREY, ORANGE
from transprune.reports.words import COST_NAMES, amount, compact, percent

Captioned = tuple[str, str, str]
"""Title (text), explanation (HTML) and drawing (SVG)."""

_MOST_AREAS = 150
"""Epochs drawn of stacked areas: more make the page larger, not finer."""

_KEY_WIDTHS = (
    '<span class="key kept"></span> kept <span class="key full"></span> full '
    '<span class="key dropped"></span> in a dropped block'
)
_KEY_DEPTHS = 'probability of each number of blocks <span class="key dot"></span> chosen'
_KEY_HISTORY = '{} <span class="key ramp"></span> 100 % of the full width <span class="key grey"></span> dropped'
_KEY_CHOICES = 'probability 0 <span class="key ramp"></span> 1 <span class="key dot"></span> chosen'


def width_figures(record: RunRecord) -> Iterator[Captioned]:
    """Widths before and after, over the search, and the choice at its end; the rows of all three are the same."""
    if not record.groups:
        return
    epochs = [entry for entry in record.epochs("search") if entry.get("width_probabilities")]
    if record.architecture:
        yield "Full and kept width", _KEY_WIDTHS, width_bars(record.groups)
    if epochs:
        key = _KEY_HISTORY.format(percent(lowest_share(record.groups), 0))
        yield "Expected width over the search", key, width_history(record.groups, epochs)
        yield "Probabilities at the end", _KEY_CHOICES, width_choices(record.groups, epochs[-1])


def depth_figures(record: RunRecord) -> Iterator[Captioned]:
    """How the probability of every depth moved, a figure for each stage that was searched."""
    for index, stage in enumerate(record.stages):
        epochs = [
            entry
            for entry in record.epochs("search")
            if len(part(entry, "depth_probabilities").get(stage.name, ())) == len(stage.candidates)
        ]
        epochs = epochs[:: -max(1, math.ceil(len(epochs) / _MOST_AREAS))][::-1]
        if epochs and len(stage.candidates) > 1:
            yield f"Depth of {stage.name}", _KEY_DEPTHS, depth_history(stage, epochs, f"depth-{index}")


def cost_figures(record: RunRecord) -> Iterator[Captioned]:
    """Cost, entropy and temperature over the search."""
    epochs = record.epochs("search")
    for place, kind in enumerate(record.cost_kinds):
        name = COST_NAMES.get(kind, kind)
        cost = _drawn(
            _line(epochs, f"expected_{kind}", "expected"),
            _line(epochs, f"actual_{kind}", "most probable", color=GREY, weight=1.1),
            _line(epochs, f"target_{kind}", "target", color=ORANGE, style="--", weight=1.4),
        )
        if cost:
            note = f"{escape(name)} expected under the probabilities, and of the most probable network of each epoch"
            label_of = partial(amount, kind) if kind == "latency" else None
            said = _describe(cost, label_of or compact)
            picture = line_chart(f"cost-{place}", cost, said, label_of=label_of or tick)
            yield f"{name} over the search", note, picture
    entropy = _drawn(_line(epochs, "entropy", "entropy"))
    if entropy:
        note = "mean over all groups and stages; 1: all choices are as likely, 0: decided"
        yield "Entropy of the choices", note, line_chart("entropy", entropy, _describe(entropy), limits=(0, 1.02))
    temperature = _drawn(_line(epochs, "temperature", "temperature"))
    if temperature:
        note = "of the Gumbel-softmax samples: the lower, the closer a sample is to a single choice"
        limits = (0.0, 1.05 * max(temperature[0].values))
        picture = line_chart("temperature", temperature, _describe(temperature), limits=limits)
        yield "Sampling temperature", note, picture


def accuracy_figures(record: RunRecord) -> Iterator[Captioned]:
    """Accuracy over the epochs of each phase, on one scale."""
    charts = [
        ("Teacher", "test", "test_top1", record.epochs("teacher")),
        ("Search", "validation", "validation_top1", record.epochs("search")),
        ("Distillation", "test", "test_top1", record.epochs("distill")),
    ]
    drawn = [
        (title, _drawn(_line(epochs, key, label), _line(epochs, "top1", "training", color=GREY, weight=1.1)))
        for title, label, key, epochs in charts
    ]
    values = [value for _, lines in drawn for line in lines for value in line.values]
    for title, lines in drawn:
        if lines:
            limits = (max(0.0, min(values) - 2), 101.0)
            name = f"accuracy-{title.lower()}"
            picture = line_chart(name, lines, _describe(lines, _percent), limits=limits, label_of=_percent)
            yield title, _accuracy_note(title, record), picture


def _accuracy_note(title: str, record: RunRecord) -> str:
    if title == "Search":
        return "top-1 of the supernet; training: on the half for its weights, validation: on the half for the choices"
    measured = number(part(record.result, "teacher" if title == "Teacher" else "student").get("top1"))
    return "top-1" if measured is None else f"top-1; in the end {measured:.2f} % on the test split"


def _line(epochs: Sequence[Mapping[str, Any]], key: str, label: str, **style: Any) -> Line:
    steps, values = series(epochs, key)
    return Line(label=label, epochs=steps, values=values, **style)


def _drawn(*lines: Line) -> list[Line]:
    """The lines that have a point."""
    return [line for line in lines if line.epochs]


def tick(value: float) -> str:
    """A figure for an axis: no more digits than it needs."""
    text = compact(value)
    figure, _, prefix = text.partition(" ")
    return f"{float(figure):g} {prefix}".strip()


def _percent(value: float) -> str:
    return f"{value:.4g} %"


def _describe(lines: Sequence[Line], label_of: Callable[[float], str] = "{:.2f}".format) -> str:
    """Where every line begins and ends."""
    courses = [f"{line.label} from {label_of(line.values[0])} to {label_of(line.values[-1])}" for line in lines]
    return f"Line chart over {max(line.epochs[-1] for line in lines)} epochs: {'; '.join(courses)}."
