"""Pages about several runs: any runs side by side, and the frontier of one network beside uniform scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from transprune.errors import RunFolderError
from transprune.reports.charts import Drawing
from transprune.reports.pages import BLUE, GREY, INK, ORANGE, WIDTH, inline_svg, page_style, render
from transprune.reports.run_record import number, part
from transprune.reports.words import COST_NAMES, amount, compact, percent, points, tick, timed_in
from transprune.runtime import RunFolder
from transprune.runtime.terminal import duration

HEAD = ("run", "model", "data", "budget", "top-1", "change", "MACs", "parameters", "latency", "file", "time")
_COSTS = (("macs", ""), ("params", ""), ("latency_ms", "ms"), ("file_bytes", "B"))


def comparison(run_dirs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The settings and results of each run, from its `result.json`.

    Args:
        run_dirs: The folders of evaluated runs.

    Raises:
        RunFolderError: A folder is missing, is not a run, is a frontier, or is not evaluated yet.
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
    """The cells of one run in a table with the columns of `HEAD`."""
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
    """The budgets as given, with a mark on those that were not kept."""
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
    """The runs on one self-contained page, as a drawing and a table."""
    models = ", ".join(dict.fromkeys(f"{run['model']} on {run['data']}" for run in runs))
    note = "top-1 of each student against its MACs, numbered as in the table; diamonds: their teachers"
    return render(
        "comparison.html.j2",
        title=f"{len(runs)} runs side by side: {models}",
        head=[name.capitalize() if name.islower() else name for name in HEAD],
        runs=[_row(run) for run in runs],
        chart=Drawing("Accuracy against cost", _chart(runs), note),
    )


def _row(run: Mapping[str, Any]) -> dict[str, Any]:
    """The name of a run, and its other cells, each with its share of the teacher's cost if it is a cost."""
    name, *said = cells(run)
    shares: list[float | None] = [None] * len(said)
    first = HEAD.index("MACs") - 1  # the first column is the name
    shares[first : first + len(_COSTS)] = [_share(run, key) for key, _ in _COSTS]
    return {"name": name, "cells": list(zip(said, shares, strict=True))}


def _share(run: Mapping[str, Any], key: str) -> float | None:
    before, after = number(run["teacher"].get(key)), number(run["student"].get(key))
    return after / before if before and after is not None else None


def _chart(runs: Sequence[Mapping[str, Any]]) -> Markup:
    """Accuracy against MACs: students as numbered points, teachers as diamonds."""
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
    """MACs and accuracy; NaN if missing, which leaves a gap."""
    macs, top1 = (number(run[network].get(key)) for key in ("macs", "top1"))
    return (float("nan") if macs is None else macs, float("nan") if top1 is None else top1)


SEARCHED, UNIFORM = "searched", "uniform"


def is_frontier(folder: RunFolder) -> bool:
    """Whether a run folder is a frontier: several runs, one for each amount of a budget."""
    budgets = folder.config.get("budget")
    return isinstance(budgets, list) and any("," in str(text) for text in budgets)


def whole_frontier(folder: RunFolder, action: str) -> RunFolderError:
    """The error for an action on a frontier that is only possible on one of its runs, which it names.

    Args:
        folder: The folder of the frontier.
        action: The action, as it stands before the folder's name in the message.
    """
    runs = sorted(path.parent.name for path in folder.path.glob("*/config.toml"))
    return RunFolderError(
        f"cannot {action} '{folder.path}': it holds a frontier of several runs; name one of them, such as "
        f"'{folder.path / (runs[0] if runs else '...')}' ({', '.join(runs) or 'none has begun'})"
    )


def frontier_record(runs: Sequence[tuple[RunFolder, RunFolder | None]]) -> dict[str, Any]:
    """The contents of `frontier.json`: the teacher, and the searched and the uniformly scaled student of each point.

    Args:
        runs: For each point, the evaluated runs of the search and of uniform scaling (None if no uniform architecture
            is within the budget).
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
    """The kind of cost in which the budgets of the points differ."""
    differing = (each[0]["kind"] for each in zip(*budgets, strict=True) if len({one["target"] for one in each}) > 1)
    return str(next(differing, budgets[0][0]["kind"]))


def write_frontier(folder: RunFolder) -> Path:
    """Writes `frontier.html` from `frontier.json`.

    Raises:
        RunFolderError: Some points are not done.
    """
    folder.require("frontier.json", made_by="run")
    return folder.write_text("frontier.html", frontier_page(folder.read_json("frontier.json")))


def frontier_page(record: Mapping[str, Any]) -> str:
    """The curve and its points on one self-contained page."""
    kind = record["kind"]
    name = COST_NAMES.get(kind, kind)
    note = f"top-1 on the test split; {name} of the student. Both were distilled alike from the same weights."
    return render(
        "frontier.html.j2",
        title=f"{record['model']} on {record['data']}: accuracy against {name}",
        chart=Drawing("Searched and uniformly scaled", frontier_chart(record), note),
        name=name,
        teacher_top1=record["teacher"]["top1"],
        points=[_frontier_point(point, record) for point in record["points"]],
    )


def _frontier_point(point: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    kind = record["kind"]
    cost = point[SEARCHED][kind]
    return {
        "budget": ", ".join(budget["text"] for budget in point["budgets"]),
        "cost": f"{amount(kind, cost)} ({percent(cost / record['teacher'][kind])})",
        SEARCHED: point[SEARCHED],
        UNIFORM: point[UNIFORM],
    }


def frontier_chart(record: Mapping[str, Any]) -> Markup:
    """Accuracy against cost: searched and uniformly scaled students, and the teacher."""
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
    """Cost and accuracy of the points of a curve, cheapest first."""
    students = [point[name] for point in record["points"] if point[name] is not None]
    return sorted((student[record["kind"]], student["top1"]) for student in students)
