"""The part of the report that draws the network layer by layer, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from transprune.reports.charts import tick
from transprune.reports.markup import details, row, section, table, wide_figure
from transprune.reports.run_record import LayerRow, RunRecord
from transprune.reports.svg import BLUE, GREY, INK, inline_svg, page_style
from transprune.reports.words import compact, percent

_KEY = (
    "Every column is a layer, from the image on the left to the answer on the right: above how many channels it hands "
    'on, below what it computes. <span class="whole"><span class="key full"></span> before</span> '
    '<span class="whole"><span class="key kept"></span> after</span> '
    '<span class="whole"><span class="key dropped"></span> dropped</span>'
)
_LEAST_WIDTH, _LAYER_WIDTH = 620.0, 7.0
"""Points: of the whole drawing, and of a layer."""


def layers_section(record: RunRecord) -> str:
    """The drawing and its table; nothing while the layers are not known."""
    if not record.layers:
        return ""
    caption = "Layers that compute, in network order; channels in → out"
    head = ["Layer", "Kind", "Channels before", "Channels after", "MACs before", "MACs after"]
    rows = table(caption, head, map(_layer_row, record.layers), "layers")
    drawing, width = draw_layers(record.layers)
    drawn = wide_figure("Layer by layer", _KEY, drawing, width)
    return section("The network, before and after", drawn + details("The layers as a table", rows))


def _layer_row(layer: LayerRow) -> str:
    before, after = layer.before, layer.after
    channels = "dropped" if layer.is_dropped else f"{after.inputs} → {after.outputs}" if after else "–"
    left = f"{compact(after.macs)} ({percent(after.macs / before.macs)})" if after and before.macs else "–"
    if after and not before.macs:
        left = compact(after.macs)
    return row(layer.name, layer.operator, f"{before.inputs} → {before.outputs}", channels, compact(before.macs), left)


def draw_layers(layers: Sequence[LayerRow]) -> tuple[str, float]:
    """The network as columns: channels above, MACs below.

    Returns:
        The drawing and its width in points: the more layers, the wider.
    """
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
        return inline_svg(figure, "layers", _description(layers)), width


def _column(axes: Axes, place: int, layer: LayerRow, before: float, after: float) -> None:
    """One layer: pale before, solid after, hatched where it is dropped."""
    if layer.is_dropped:
        axes.bar(place, before, 0.8, fc="none", ec=(GREY, 0.9), hatch="//////", lw=0)
        return
    axes.bar(place, max(before, after), 0.8, color=(BLUE, 0.22), lw=0)
    axes.bar(place, after, 0.8, color=BLUE, lw=0)


def _stages(layers: Sequence[LayerRow]) -> Iterator[tuple[int, int, str]]:
    """First and last position of each stage, and its name."""
    places: Iterator[tuple[str | None, Any]] = groupby(range(len(layers)), key=lambda place: layers[place].stage)
    for stage, run in places:
        members = list(run)
        if stage is not None:
            yield members[0], members[-1], stage


def _description(layers: Sequence[LayerRow]) -> str:
    dropped = sum(layer.is_dropped for layer in layers)
    before, after = (sum(size.macs for size in sizes) for sizes in _sizes(layers))
    return (
        f"Two rows of columns for {len(layers)} layers, before and after: channels and MACs. Together they go from "
        f"{compact(before)} to {compact(after)} MACs; {dropped} layers are dropped. The figures are in the table."
    )


def _sizes(layers: Sequence[LayerRow]) -> tuple[list[Any], list[Any]]:
    return [layer.before for layer in layers], [layer.after or layer.before for layer in layers]
