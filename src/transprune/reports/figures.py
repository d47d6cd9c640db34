"""Draws the figures of a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from transprune.reports.pages import BLUE, GREY, INK, ORANGE, PAPER, WIDTH, hovered, inline_svg, page_style
from transprune.reports.run_record import LayerRow, StageRow, WidthRow, number
from transprune.reports.words import compact, percent, tick

PALE = 0.22
"""Opacity of the unpruned network."""
OUTLINE = 0.8
"""Opacity of its outline, which contrasts with the page by more than three to one."""
_LONG = 40
"""Number of rows above which a figure sets them closer."""
_TOP, _BOTTOM = 30.0, 6.0
_LEAST_WIDTH, _LAYER_WIDTH = 620.0, 7.0
"""Least width of the drawing of all layers, and width of one layer, in points."""
_LABEL_CHARACTERS = 22

Epochs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart over the epochs."""

    label: str
    epochs: Sequence[int]
    values: Sequence[float]
    color: str = BLUE
    style: str = "-"
    weight: float = 1.8


def short_names(names: Sequence[str]) -> list[str]:
    """Names for narrow labels: without the last part if all share it, and cut at the front if still too long."""
    parts = [name.split(".") for name in names]
    if len({tuple(part[-1:]) for part in parts}) == 1 and all(len(part) > 1 for part in parts):
        names = [name.rpartition(".")[0] for name in names]
    return [name if len(name) <= _LABEL_CHARACTERS else f"…{name[1 - _LABEL_CHARACTERS :]}" for name in names]


def lowest_share(rows: Sequence[WidthRow]) -> float:
    """The smallest candidate of any group as a share of its full width, rounded down to a tenth."""
    return math.floor(10 * min(min(row.candidates) / row.full for row in rows)) / 10


def width_bars(rows: Sequence[WidthRow]) -> Markup:
    """Width of every group before and after."""
    with page_style("width-bars"):
        figure, axes = _row_axes(rows)
        widest = max(row.full for row in rows)
        for place, row in enumerate(rows):
            kept = 0 if row.is_dropped else row.kept or 0
            if row.is_dropped:
                axes.barh(place, row.full, 0.72, fc="none", ec=(GREY, 0.9), hatch="//////", lw=0)
            else:
                axes.barh(place, row.full, 0.72, fc=(BLUE, PALE), ec=(BLUE, OUTLINE), lw=0.6)
            after = "dropped" if row.is_dropped else str(kept)
            hovered(axes.barh(place, kept, 0.72, color=BLUE, lw=0), f"{row.name}: {after} of {row.full}")
            axes.text(row.full + widest / 50, place, f"{after} / {row.full}", va="center_baseline", size=7)
        axes.set(xlim=(0, widest * 1.3), xlabel="channels")
        axes.set_xticks([tick for tick in MaxNLocator(4, integer=True).tick_values(0, widest) if tick <= widest])
        dropped = sum(row.is_dropped for row in rows)
        description = (
            f"Bar chart of {len(rows)} width groups in network order, full and kept width; "
            f"{dropped} groups are in dropped blocks. The figures are in the table of widths."
        )
        return inline_svg(figure, "width-bars", description)


def width_history(rows: Sequence[WidthRow], epochs: Epochs) -> Markup:
    """Expected width of every group over the search, as a share of the full width."""
    with page_style("width-history"):
        figure, axes = _row_axes(rows)
        shares = np.array([[_expected_share(row, entry) for entry in epochs] for row in rows])
        cells = np.array([[to_rgba(GREY if row.is_dropped else BLUE)] * len(epochs) for row in rows])
        low = lowest_share(rows)
        cells[..., 3] = np.clip((shares - low) / max(1 - low, 1e-9), 0.03, 1)
        first, last = epochs[0]["epoch"], epochs[-1]["epoch"]
        extent = (first - 0.5, last + 0.5, len(rows) - 0.5, -0.5)
        axes.imshow(cells, aspect="auto", interpolation="none", extent=extent)
        axes.hlines(np.arange(len(rows) + 1) - 0.5, *extent[:2], color=PAPER, lw=1.2)
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="epoch of the search")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        description = (
            f"Heat map of the expected width of {len(rows)} groups over epochs {first} to {last} of the search; "
            f"on average it goes from {percent(np.mean(shares[:, 0]))} to {percent(np.mean(shares[:, -1]))} of full."
        )
        return inline_svg(figure, "width-history", description)


def width_choices(rows: Sequence[WidthRow], last: Mapping[str, Any]) -> Markup:
    """Probability of every candidate width at the end of the search, with the chosen ones marked."""
    with page_style("width-choices"):
        figure, axes = _row_axes(rows)
        for place, row in enumerate(rows):
            shares = np.array(row.candidates) / row.full
            edges = _edges(shares)
            colors = [(GREY if row.is_dropped else BLUE, p) for p in _probabilities(row, last)]
            spans = list(zip(edges[:-1], np.diff(edges), strict=True))
            axes.broken_barh(spans, (place - 0.44, 0.88), facecolors=colors, lw=0)
            if row.kept in row.candidates and not row.is_dropped:
                axes.plot(row.kept / row.full, place, "o", color=ORANGE, ms=4, mec=PAPER, mew=0.6)
        axes.set(xlabel="share of the full width")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(share, 0)))
        description = (
            f"Heat map of the probability of every candidate width of {len(rows)} groups at the end of the search, "
            f"with a dot on the chosen one. The figures are in the table of widths."
        )
        return inline_svg(figure, "width-choices", description)


def depth_history(stage: StageRow, epochs: Epochs, name: str) -> Markup:
    """Probability of every depth of a stage over the search, stacked."""
    with page_style(name):
        figure, axes = _chart_axes(right=34)
        steps = [entry["epoch"] for entry in epochs]
        shares = np.array([entry["depth_probabilities"][stage.name] for entry in epochs], float).T
        opacities = np.linspace(0.18, 0.95, len(stage.candidates))
        axes.stackplot(steps, shares, colors=[(BLUE, opacity) for opacity in opacities], edgecolor=(INK, 0.3), lw=0.4)
        tops = np.cumsum(shares[:, -1])
        for depth, top, share in zip(stage.candidates, tops, shares[:, -1], strict=True):
            is_chosen = depth == stage.kept
            place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "clip_on": False}
            if is_chosen:
                axes.plot(1.025, top - share / 2, "o", color=ORANGE, ms=4, mew=0, mec=ORANGE, **place)
            if share > 0.07 or is_chosen:
                weight = "bold" if is_chosen else "normal"
                axes.text(1.05, top - share / 2, str(depth), va="center_baseline", weight=weight, **place)
        axes.set(ylim=(0, 1), ylabel="probability", xlabel="epoch of the search", xlim=_limits(steps))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(share, 0)))
        ends = ", ".join(f"{n}: {percent(p)}" for n, p in zip(stage.candidates, shares[:, -1], strict=True))
        description = f"Stacked areas: probability of each depth of {stage.name} over the search; at its end {ends}."
        return inline_svg(figure, name, description)


def line_chart(
    name: str,
    lines: Sequence[Line],
    description: str,
    *,
    limits: tuple[float, float] | None = None,
    label_of: Callable[[float], str] | None = None,
    legend_columns: int = 3,
) -> Markup:
    """Lines over the epochs of a phase; a value shows under the pointer.

    Args:
        name: A name unique in the page.
        lines: The lines; the first is drawn on top.
        description: A description for screen readers.
        limits: Limits of the vertical axis; None: chosen from the values.
        label_of: Formats a value on the vertical axis.
        legend_columns: Columns of the legend.
    """
    with page_style(name):
        figure, axes = _chart_axes(right=8)
        for order, line in enumerate(lines):
            style: dict[str, Any] = {"color": line.color, "ls": line.style, "lw": line.weight}
            axes.plot(line.epochs, line.values, label=line.label, zorder=3 - order / 10, **style)
            for epoch, value in _thinned(list(zip(line.epochs, line.values, strict=True))):
                said = f"{line.label}, epoch {epoch}: {(label_of or '{:.4g}'.format)(value)}"
                hovered(axes.plot(epoch, value, "o", color=line.color, ms=5, alpha=0, zorder=9), said)
        axes.set(xlabel="epoch", xlim=_limits([epoch for line in lines for epoch in line.epochs]))
        if limits:
            axes.set_ylim(*limits)
        if label_of:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: label_of(value)))
        axes.grid(axis="y", color=(INK, 0.12), lw=0.6)
        axes.set_axisbelow(True)
        if len(lines) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=legend_columns, frameon=False, **_LEGEND)
        return inline_svg(figure, name, description)


_MOST_HOVERED = 40
"""Most points of a line that say their value; more would make the page heavy."""


def _thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """Evenly spread ones of many points, the last among them."""
    return points[:: -max(1, math.ceil(len(points) / _MOST_HOVERED))]


_LEGEND: dict[str, Any] = {"handlelength": 1.4, "columnspacing": 1.2, "handletextpad": 0.5, "borderpad": 0.2}


def _row_axes(rows: Sequence[WidthRow]) -> tuple[Figure, Axes]:
    """Axes with one labelled row for each group; of equal height in every figure, so that rows align side by side."""
    labels = short_names([row.name for row in rows])
    step, size = (12.0, 7.4) if len(rows) <= _LONG else (10.0, 6.8)
    left = 8 + size * 0.56 * max(map(len, labels))
    height = _TOP + step * len(rows) + _BOTTOM
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    box = (left / WIDTH, _BOTTOM / height, 1 - (left + 8) / WIDTH, step * len(rows) / height)
    axes = figure.add_axes(box)
    axes.set_yticks(range(len(rows)), labels, size=size)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_alpha(0.65 if row.is_dropped else 1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False, labelsize=7, pad=1.5)
    axes.xaxis.set_label_position("top")
    axes.spines[["left", "bottom", "top"]].set_visible(False)
    for place in range(1, len(rows)):
        if rows[place].stage != rows[place - 1].stage:
            axes.axhline(place - 0.5, color=(INK, 0.35), lw=0.6, xmin=-left / (WIDTH - left - 8), clip_on=False)
    return figure, axes


def _chart_axes(*, right: float) -> tuple[Figure, Axes]:
    """Axes for a chart over epochs, with `right` points left free beside it."""
    height = 176.0
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    left, bottom, top = 44.0, 30.0, 20.0
    box = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - bottom - top) / height)
    axes = figure.add_axes(box)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    return figure, axes


def _limits(epochs: Sequence[int]) -> tuple[float, float]:
    """Limits of an axis over epochs, with some room around a single epoch."""
    first, last = min(epochs), max(epochs)
    return (first, last) if first < last else (first - 0.5, last + 0.5)


def _probabilities(row: WidthRow, entry: Mapping[str, Any]) -> list[float]:
    """The probability of each candidate of a group; zeros if the journal lacks them or is of another space."""
    if len(row.candidates) == 1:
        return [1.0]
    found = [number(value) or 0.0 for value in entry["width_probabilities"].get(row.name, [])]
    found = found if len(found) == len(row.candidates) else [0.0] * len(row.candidates)
    return [min(1.0, max(0.0, value)) for value in found]


def _expected_share(row: WidthRow, entry: Mapping[str, Any]) -> float:
    pairs = zip(row.candidates, _probabilities(row, entry), strict=True)
    return sum(width * probability for width, probability in pairs) / row.full


def _edges(shares: np.ndarray) -> np.ndarray:
    """Cell borders [candidates + 1], halfway between the candidates [candidates]."""
    if len(shares) == 1:
        return np.array([shares[0] - 0.05, shares[0] + 0.05])
    middles = (shares[1:] + shares[:-1]) / 2
    return np.array([2 * shares[0] - middles[0], *middles, 2 * shares[-1] - middles[-1]])


def layer_columns(layers: Sequence[LayerRow]) -> tuple[Markup, float]:
    """The network as columns, channels above and MACs below; also returns the width of the drawing in points."""
    width, height = max(_LEAST_WIDTH, 60 + _LAYER_WIDTH * len(layers)), 220.0
    with page_style("layers"):
        figure = Figure(figsize=(width / 72, height / 72))
        left, share = 46 / width, (width - 54) / width
        channels = figure.add_axes((left, 112 / height, share, 84 / height))
        macs = figure.add_axes((left, 12 / height, share, 84 / height))
        for place, layer in enumerate(layers):
            after = layer.after or layer.before
            _column(channels, place, layer, layer.before.outputs, after.outputs)
            _column(macs, place, layer, layer.before.macs, after.macs)
        for axes, label in ((channels, "channels"), (macs, "MACs")):
            axes.set(xlim=(-0.7, len(layers) - 0.3), ylabel=label, xticks=[])
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
            axes.grid(axis="y", color=(INK, 0.12), lw=0.6)
            axes.set_axisbelow(True)
        for first, last, stage in _stages(layers):
            middle: dict[str, Any] = {
                "ha": "center",
                "va": "bottom",
                "clip_on": False,
                "transform": channels.get_xaxis_transform(),
            }
            channels.text((first + last) / 2, 1.06, stage, **middle)
            for axes in (channels, macs):
                axes.axvline(first - 0.5, color=(INK, 0.35), lw=0.6)
                axes.axvline(last + 0.5, color=(INK, 0.35), lw=0.6)
        return inline_svg(figure, "layers", _layers_described(layers)), width


def _column(axes: Axes, place: int, layer: LayerRow, before: float, after: float) -> None:
    """Draws one layer: pale before, solid after, hatched if it is dropped."""
    if layer.is_dropped:
        axes.bar(place, before, 0.8, fc="none", ec=(GREY, 0.9), hatch="//////", lw=0)
        return
    axes.bar(place, max(before, after), 0.8, fc=(BLUE, PALE), ec=(BLUE, OUTLINE), lw=0.6)
    axes.bar(place, after, 0.8, color=BLUE, lw=0)


def _stages(layers: Sequence[LayerRow]) -> Iterator[tuple[int, int, str]]:
    """First and last position of each stage, and its name."""
    places: Iterator[tuple[str | None, Any]] = groupby(range(len(layers)), key=lambda place: layers[place].stage)
    for stage, run in places:
        members = list(run)
        if stage is not None:
            yield members[0], members[-1], stage


def _layers_described(layers: Sequence[LayerRow]) -> str:
    dropped = sum(layer.is_dropped for layer in layers)
    before, after = (sum(size.macs for size in sizes) for sizes in _sizes(layers))
    return (
        f"Two rows of columns for {len(layers)} layers, before and after: channels and MACs. Together they go from "
        f"{compact(before)} to {compact(after)} MACs; {dropped} layers are dropped. The figures are in the table."
    )


def _sizes(layers: Sequence[LayerRow]) -> tuple[list[Any], list[Any]]:
    return [layer.before for layer in layers], [layer.after or layer.before for layer in layers]
