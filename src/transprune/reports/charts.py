"""Chooses the figures of a report and writes the texts beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from transprune.costs import IN_BYTES, in_bytes
from transprune.reports.figures import (
    Line,
    depth_history,
    layer_columns,
    line_chart,
    lowest_share,
    width_bars,
    width_choices,
    width_history,
)
from transprune.reports.pages import GREY, ORANGE
from transprune.reports.run_record import LayerRow, RunRecord, number, part, series
from transprune.reports.words import COST_NAMES, compact, measured, metric_label, metric_name, percent, tick


class Drawing(NamedTuple):
    """A figure of a page."""

    title: str
    svg: Markup
    note: str = ""
    """The text under the title."""
    key: str = ""
    """Name of a key to the colours in the template, which may contain the note."""


_MOST_AREAS = 150
"""Largest number of epochs in stacked areas; more would enlarge the page without being visible."""


def layers_figure(layers: Sequence[LayerRow]) -> tuple[Drawing, float]:
    """The network layer by layer, before and after, and the width of the drawing in points."""
    drawing, width = layer_columns(layers)
    note = (
        "Every column is a layer, from the image on the left to the answer on the right: above how many channels it "
        "hands on, below what it computes."
    )
    return Drawing("Layer by layer", drawing, note, key="layers"), width


def width_figures(record: RunRecord) -> Iterator[Drawing]:
    """Widths before and after, widths over the search, and probabilities at its end or now, with the same rows."""
    if not record.groups:
        return
    epochs = [entry for entry in record.epochs("search") if entry.get("width_probabilities")]
    if record.architecture:
        yield Drawing("Full and kept width", width_bars(record.groups), key="widths")
    if epochs:
        lowest = percent(lowest_share(record.groups), 0)
        yield Drawing("Expected width over the search", width_history(record.groups, epochs), lowest, key="history")
        when = "at the end" if record.architecture else "now"
        yield Drawing(f"Probabilities {when}", width_choices(record.groups, epochs[-1]), key="choices")


def depth_figures(record: RunRecord) -> Iterator[Drawing]:
    """Probabilities of depths over the search, one figure for each searched stage."""
    for index, stage in enumerate(record.stages):
        epochs = [
            entry
            for entry in record.epochs("search")
            if len(part(entry, "depth_probabilities").get(stage.name, ())) == len(stage.candidates)
        ]
        epochs = epochs[:: -max(1, math.ceil(len(epochs) / _MOST_AREAS))][::-1]
        if epochs and len(stage.candidates) > 1:
            yield Drawing(f"Depth of {stage.name}", depth_history(stage, epochs, f"depth-{index}"), key="depths")


def cost_figures(record: RunRecord) -> Iterator[Drawing]:
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
            note = f"{name} expected under the probabilities, and of the most probable network of each epoch"
            label_of = {"latency": _short_time, **dict.fromkeys(IN_BYTES, in_bytes)}.get(kind)
            said = _describe(cost, label_of or compact)
            picture = line_chart(f"cost-{place}", cost, said, label_of=label_of or tick)
            yield Drawing(f"{name[0].upper()}{name[1:]} over the search", picture, note)
    entropy = _drawn(_line(epochs, "entropy", "entropy"))
    if entropy:
        note = "mean over all groups and stages; 1: all choices are as likely, 0: decided"
        picture = line_chart("entropy", entropy, _describe(entropy), limits=(0, 1.02))
        yield Drawing("Entropy of the choices", picture, note)
    temperature = _drawn(_line(epochs, "temperature", "temperature"))
    if temperature:
        note = "of the Gumbel-softmax samples: the lower, the closer a sample is to a single choice"
        limits = (0.0, 1.05 * max(temperature[0].values))
        picture = line_chart("temperature", temperature, _describe(temperature), limits=limits)
        yield Drawing("Sampling temperature", picture, note)


def _short_time(nanoseconds: float) -> str:
    """A latency without the zeros at its end, for which an axis has no room."""
    return f"{nanoseconds / 1e6:.4g} ms"


def metric_figures(record: RunRecord) -> Iterator[Drawing]:
    """The main metric over the epochs of each phase, on one scale: that of their second halves, where they differ."""
    name = _main_metric(record)
    if name == "loss":
        return  # it has figures of its own
    is_share = name.startswith("top")
    charts = [
        ("Teacher", "test", f"test_{name}", record.epochs("teacher")),
        ("Search", "validation", f"validation_{name}", record.epochs("search")),
        ("Distillation", "test", f"test_{name}", record.epochs("distill")),
    ]
    drawn = [
        (title, _drawn(_line(epochs, key, label), _line(epochs, name, "training", color=GREY, weight=1.1)))
        for title, label, key, epochs in charts
    ]
    late = [value for _, lines in drawn for line in lines for value in line.values[len(line.values) // 2 :]]
    label_of = _percent if is_share else None
    for title, lines in drawn:
        if lines:
            limits = (max(0.0, min(late) - 2), min(101.0, max(late) + 2)) if is_share else _around(late)
            key = f"metric-{title.lower()}"
            said = _describe(lines, label_of or "{:.4g}".format)
            picture = line_chart(key, lines, said, limits=limits, label_of=label_of)
            yield Drawing(title, picture, _metric_note(title, record, name))


def _main_metric(record: RunRecord) -> str:
    """The metric that comes first in the result, or before there is one in the epochs."""
    if record.result:
        return metric_name(record.result)
    entries = [entry for phase in ("teacher", "search", "distill") for entry in record.epochs(phase)]
    measured_on = [name for entry in entries for name in entry if {f"test_{name}", f"validation_{name}"} & set(entry)]
    return next((name for name in measured_on if name != "loss"), "top1")


def _around(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis that shows the values; what lies outside of them may leave the chart."""
    room = 0.1 * (max(values) - min(values)) or 1.0
    return min(values) - room, max(values) + room


def loss_figures(record: RunRecord) -> Iterator[Drawing]:
    """Losses over the epochs of each phase, each on a scale of its own: they are different losses."""
    for title, phase, keys, note in (
        ("Loss of the teacher", "teacher", {"loss": "training", "test_loss": "test"}, ""),
        ("Loss of the search", "search", {"loss": "training", "validation_loss": "validation"}, ""),
        ("Loss of the distillation", "distill", {"loss": "training"}, "in training, with the teacher’s share in it"),
        ("Loss of the student", "distill", {"test_loss": "test"}, "on the test split, without the teacher’s share"),
    ):
        epochs, is_training = record.epochs(phase), {"color": GREY, "weight": 1.1}
        lines = _drawn(
            *(_line(epochs, key, label, **is_training if key == "loss" else {}) for key, label in keys.items())
        )
        if lines:
            name = f"loss-{phase}-{'-'.join(keys.values())}"
            yield Drawing(title, line_chart(name, lines, _describe(lines)), note)


def _metric_note(title: str, record: RunRecord, name: str) -> str:
    said = metric_label(name)
    if title == "Search":
        return f"{said} of the supernet; training: on the half for its weights, validation: on the half for the choices"
    end = number(part(record.result, "teacher" if title == "Teacher" else "student").get(name))
    return said if end is None else f"{said}; in the end {measured(name, end)} on the test split"


def _line(epochs: Sequence[Mapping[str, Any]], key: str, label: str, **style: Any) -> Line:
    steps, values = series(epochs, key)
    return Line(label=label, epochs=steps, values=values, **style)


def _drawn(*lines: Line) -> list[Line]:
    """The lines with at least one point."""
    return [line for line in lines if line.epochs]


def _percent(value: float) -> str:
    return f"{value:.4g} %"


def _describe(lines: Sequence[Line], label_of: Callable[[float], str] = "{:.2f}".format) -> str:
    """Describes where every line begins and ends."""
    courses = [f"{line.label} from {label_of(line.values[0])} to {label_of(line.values[-1])}" for line in lines]
    return f"Line chart over {max(line.epochs[-1] for line in lines)} epochs: {'; '.join(courses)}."
