"""The accuracy of several searches against their cost, uniform scaling beside them, as a record and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from transprune.errors import RunFolderError
from transprune.reports.charts import tick
from transprune.reports.markup import figures, page, row, section, table
from transprune.reports.svg import BLUE, GREY, INK, ORANGE, WIDTH, inline_svg, page_style
from transprune.reports.words import COST_NAMES, amount, percent, points
from transprune.runtime import RunFolder

SEARCHED, UNIFORM = "searched", "uniform"


def is_frontier(folder: RunFolder) -> bool:
    """Whether a run folder holds several runs, one for each amount of a budget."""
    budgets = folder.config.get("budget")
    return isinstance(budgets, list) and any("," in str(text) for text in budgets)


def whole_frontier(folder: RunFolder, action: str) -> RunFolderError:
    """The error of what is done with single runs, asked for of a frontier; it names its runs.

    Args:
        folder: That of the frontier.
        action: What cannot be done, before the folder's name.
    """
    runs = sorted(path.parent.name for path in folder.path.glob("*/config.toml"))
    return RunFolderError(
        f"cannot {action} '{folder.path}': it holds a frontier of several runs; name one of them, such as "
        f"'{folder.path / (runs[0] if runs else '...')}' ({', '.join(runs) or 'none has begun'})"
    )


def frontier_record(runs: Sequence[tuple[RunFolder, RunFolder | None]]) -> dict[str, Any]:
    """What `frontier.json` says: the teacher, and of each point the searched and the uniformly scaled student.

    Args:
        runs: For each point, the run of the search and that of uniform scaling (None: none is within its budget);
            both evaluated.
    """
    results = [searched.read_json("result.json") for searched, _ in runs]
    return {
        "format": 1,
        "model": results[0]["model"],
        "data": results[0]["data"],
        "seed": results[0]["seed"],
        "kind": _kind([result["budgets"] for result in results]),
        "teacher": results[0]["teacher"],
        "points": [
            {"budgets": result["budgets"], SEARCHED: _student(searched), UNIFORM: uniform and _student(uniform)}
            for result, (searched, uniform) in zip(results, runs, strict=True)
        ],
    }


def _student(run: RunFolder) -> dict[str, Any]:
    return {"folder": run.path.name, **run.read_json("result.json")["student"]}


def _kind(budgets: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """The kind of cost along which the budgets of the points differ."""
    differing = (each[0]["kind"] for each in zip(*budgets, strict=True) if len({one["target"] for one in each}) > 1)
    return str(next(differing, budgets[0][0]["kind"]))


def write_frontier(folder: RunFolder) -> Path:
    """Writes `frontier.html` from `frontier.json`.

    Raises:
        RunFolderError: Not all points are done.
    """
    folder.require("frontier.json", made_by="run")
    return folder.write_text("frontier.html", frontier_page(folder.read_json("frontier.json")))


def frontier_page(record: Mapping[str, Any]) -> str:
    """The curve and its points on one page."""
    kind = record["kind"]
    name = COST_NAMES.get(kind, kind)
    title = f"{record['model']} on {record['data']}: accuracy against {name}"
    key = f"top-1 on the test split; {escape(name)} of the student. Both were distilled alike from the same weights."
    chart = figures([("Searched and uniformly scaled", key, frontier_chart(record))])
    head = ["Budget", name, "Searched, top-1", "Uniform scaling, top-1", "Searched against uniform"]
    caption = f"The points of the curve; the teacher has {record['teacher']['top1']:.2f} % top-1"
    rows = [_point_row(point, record) for point in record["points"]]
    return page(
        title, "transprune frontier", section("The curve", chart) + section("Points", table(caption, head, rows))
    )


def _point_row(point: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    kind, full = record["kind"], record["teacher"][record["kind"]]
    searched, uniform = point[SEARCHED], point[UNIFORM]
    beside = "none within the budget", "–"
    if uniform is not None:
        beside = _link(uniform), escape(points(searched["top1"] - uniform["top1"]))
    return row(
        ", ".join(budget["text"] for budget in point["budgets"]),
        f"{amount(kind, searched[kind])} ({percent(searched[kind] / full)})",
        _link(searched),
        *beside,
    )


def _link(student: Mapping[str, Any]) -> str:
    return f'<a href="{escape(student["folder"], quote=True)}/report.html">{student["top1"]:.2f} %</a>'


def frontier_chart(record: Mapping[str, Any]) -> str:
    """Accuracy against cost: searched, uniformly scaled, and the teacher."""
    kind = record["kind"]
    teacher = (record["teacher"][kind], record["teacher"]["top1"])
    curves = {name: _curve(record, name) for name in (SEARCHED, UNIFORM)}
    with page_style("frontier"):
        height = 190.0
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        axes = figure.add_axes((44 / WIDTH, 30 / height, (WIDTH - 56) / WIDTH, (height - 54) / height))
        axes.plot(*zip(*curves[SEARCHED], strict=True), color=BLUE, marker="o", ms=4, lw=1.8, label=SEARCHED, zorder=3)
        uniform: dict[str, Any] = {"color": ORANGE, "marker": "s", "ms": 3.5, "ls": "--", "lw": 1.4, "label": UNIFORM}
        if curves[UNIFORM]:
            axes.plot(*zip(*curves[UNIFORM], strict=True), **uniform)
        axes.plot(*teacher, "D", color=GREY, ms=5, label="teacher")
        axes.set(xlabel=COST_NAMES.get(kind, kind), ylabel="top-1 (%)")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(kind, value)))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(0.06, 0.1)
        axes.grid(axis="y", color=(INK, 0.12), lw=0.6)
        axes.set_axisbelow(True)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, frameon=False, handlelength=1.8)
        said = "; ".join(
            f"{name}: {', '.join(f'{top1:.2f} % at {_short(kind, cost)}' for cost, top1 in curve)}"
            for name, curve in curves.items()
            if curve
        )
        return inline_svg(figure, "frontier", f"Line chart of top-1 accuracy against cost. {said}.")


def _short(kind: str, cost: float) -> str:
    return f"{cost / 1e6:.3g} ms" if kind == "latency" else tick(cost)


def _curve(record: Mapping[str, Any], name: str) -> list[tuple[float, float]]:
    """Cost and accuracy of each point that there is, from the cheapest on."""
    students = [point[name] for point in record["points"] if point[name] is not None]
    return sorted((student[record["kind"]], student["top1"]) for student in students)
