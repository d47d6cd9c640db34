"""Several runs side by side, as a record, as rows of a table and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from transprune.reports.charts import tick
from transprune.reports.frontier_page import is_frontier, whole_frontier
from transprune.reports.markup import bar, figures, page, row, section, table
from transprune.reports.run_record import number, part
from transprune.reports.svg import BLUE, GREY, INK, WIDTH, inline_svg, page_style
from transprune.reports.words import compact, percent, points, timed_in
from transprune.runtime import RunFolder
from transprune.runtime.duration import duration

HEAD = ("run", "model", "data", "budget", "top-1", "change", "MACs", "parameters", "latency", "file", "time")
_COSTS = (("macs", ""), ("params", ""), ("latency_ms", "ms"), ("file_bytes", "B"))


def comparison(run_dirs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Of each run what it was for and what came out, from its `result.json`.

    Args:
        run_dirs: The run folders; all of them evaluated.

    Raises:
        RunFolderError: A folder is missing, is no run, holds a frontier, or is not evaluated yet.
    """
    found = []
    for run_dir in run_dirs:
        folder = RunFolder.open(run_dir)
        if is_frontier(folder):
            raise whole_frontier(folder, "compare the whole of")
        folder.require("result.json", made_by="evaluate")
        result = folder.read_json("result.json")
        kept = ("model", "data", "preset", "seed", "device", "budgets", "teacher", "student", "seconds")
        found.append({"run": str(folder.path), **{key: result.get(key) for key in kept}})
    return found


def cells(run: Mapping[str, Any]) -> list[str]:
    """What a table says of one run; see `HEAD`."""
    before, after = number(run["teacher"].get("top1")), number(run["student"].get("top1"))
    return [
        run["run"],
        str(run["model"]),
        str(run["data"]),
        _budgets(run),
        "–" if after is None else f"{after:.2f} %",
        "–" if after is None or before is None else points(after - before),
        *(_cost(run, key, unit) for key, unit in _COSTS),
        duration(sum(number(seconds) or 0.0 for seconds in part(run, "seconds").values())),
    ]


def _budgets(run: Mapping[str, Any]) -> str:
    """What was asked for; a budget that was not kept is named as such."""
    asked = run["budgets"]
    return ", ".join(f"{each['text']}{'' if each['actual'] <= each['target'] else ' NOT kept'}" for each in asked)


def _cost(run: Mapping[str, Any], key: str, unit: str) -> str:
    before, after = number(run["teacher"].get(key)), number(run["student"].get(key))
    if after is None:
        return "–"
    said = f"{after:.2f} {unit}" if unit == "ms" else compact(after, unit)
    said = f"{said} ({percent(after / before, 0)})" if before else said
    return f"{said} {timed_in(run['student'])}".rstrip() if key == "latency_ms" else said


def comparison_page(runs: Sequence[Mapping[str, Any]]) -> str:
    """The runs on one page that needs nothing but itself: a drawing and a table."""
    models = ", ".join(dict.fromkeys(f"{run['model']} on {run['data']}" for run in runs))
    key = "top-1 of each student against its MACs, numbered as in the table; diamonds: their teachers"
    chart = figures([("Accuracy against cost", escape(key), _chart(runs))])
    caption = "The student of each run; in brackets: against its teacher"
    rows = [_row(place, run) for place, run in enumerate(runs, start=1)]
    shown = table(caption, [name.capitalize() if name.islower() else name for name in HEAD], rows, "runs")
    content = section("Students", shown) + section("Accuracy and cost", chart)
    return page(f"{len(runs)} runs side by side: {models}", "transprune compare", content)


def _row(place: int, run: Mapping[str, Any]) -> str:
    name, *rest = cells(run)
    shares = [_share(run, key) for key, _ in _COSTS]
    first = HEAD.index("MACs") - 1  # the first heading is that of the row
    said = [escape(cell) for cell in rest]
    for offset, share in enumerate(shares):
        said[first + offset] += f"<br>{bar(share)}" if share is not None else ""
    return row(f"{place}. {name}", *said)


def _share(run: Mapping[str, Any], key: str) -> float | None:
    before, after = number(run["teacher"].get(key)), number(run["student"].get(key))
    return after / before if before and after is not None else None


def _chart(runs: Sequence[Mapping[str, Any]]) -> str:
    """Students as numbered points, their teachers as diamonds."""
    with page_style("comparison"):
        height = 190.0
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        axes = figure.add_axes((44 / WIDTH, 30 / height, (WIDTH - 62) / WIDTH, (height - 44) / height))
        students = [_point(run, "student") for run in runs]
        teachers = sorted({_point(run, "teacher") for run in runs})
        axes.plot(*zip(*teachers, strict=True), "D", color=GREY, ms=5)
        axes.plot(*zip(*students, strict=True), "o", color=BLUE, ms=5)
        for place, point in enumerate(students, start=1):
            axes.annotate(str(place), point, xytext=(4, 3), textcoords="offset points", size=7)
        axes.set(xlabel="MACs a sample", ylabel="top-1 (%)")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(0.08, 0.15)
        axes.grid(axis="y", color=(INK, 0.12), lw=0.6)
        axes.set_axisbelow(True)
        said = "; ".join(f"run {place}: {top1:.2f} % at {tick(macs)}" for place, (macs, top1) in enumerate(students, 1))
        return inline_svg(figure, "comparison", f"Points of top-1 accuracy against MACs. {said}.")


def _point(run: Mapping[str, Any], network: str) -> tuple[float, float]:
    """MACs and accuracy; a figure that is missing leaves a gap."""
    macs, top1 = (number(run[network].get(key)) for key in ("macs", "top1"))
    return (float("nan") if macs is None else macs, float("nan") if top1 is None else top1)
