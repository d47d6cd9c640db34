"""Pages about several runs: any runs side by side, and the frontier of one network beside uniform scaling."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from transprune.costs import IN_BYTES, in_bytes
from transprune.errors import RunFolderError
from transprune.reports.charts import Drawing
from transprune.reports.figures import Line, line_chart
from transprune.reports.pages import BLUE, GREY, INK, ORANGE, WIDTH, hovered, inline_svg, page_style, render
from transprune.reports.run_record import number, part, series
from transprune.reports.words import (
    COST_NAMES,
    PACE,
    PHASE_NAMES,
    SAVED,
    amount,
    compact,
    is_kept,
    measured,
    metric_axis,
    metric_label,
    metric_name,
    moved,
    named,
    percent,
    tick,
    timed_in,
)
from transprune.runtime import RunFolder
from transprune.runtime.journal import is_epoch
from transprune.runtime.terminal import decimals, duration, milliseconds

COSTS = (
    ("macs", "MACs", ""),
    ("params", "parameters", ""),
    ("latency_ms", "latency", "ms"),
    ("file_bytes", "file", "B"),
)
"""What a network costs: the key, the heading and the unit."""
COLORS = (BLUE, ORANGE, "#2a9d5c", "#a855b5", "#9a7416", "#d23f63", "#14919b", GREY)
"""Colours of the runs in charts; with more runs they come again, dashed."""
FIRST = ("model", "data", "budget", "preset", "seed")
"""Options that are named before all others."""


def comparison(run_dirs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The settings and results of each run, as far as it has come; of a frontier, those of its points.

    Args:
        run_dirs: The folders of runs.

    Raises:
        RunFolderError: A folder is missing or is not a run.
    """
    return [found for run_dir in run_dirs for found in _runs_in(RunFolder.open(run_dir))]


def _runs_in(folder: RunFolder) -> list[dict[str, Any]]:
    """What is said of a run, or of each point of a frontier that has begun."""
    if not is_frontier(folder):
        return [_said_of(folder)]
    points = map(RunFolder, points_of(folder.path))
    return [{**_said_of(point), "frontier": str(folder.path)} for point in points] or [_said_of(folder)]


def _said_of(folder: RunFolder) -> dict[str, Any]:
    result = folder.read_json("result.json") if folder.has("result.json") else {}
    config = folder.config
    asked = config.get("budget")
    budgets = [{"text": str(each)} for each in asked] if isinstance(asked, list) else []
    return {
        "run": str(folder.path),
        "state": "evaluated" if result else _progress(folder),
        **{key: result.get(key, config.get(key)) for key in ("model", "data", "seed", "device")},
        "preset": _in_place_of_preset(folder) or result.get("preset", config.get("preset")),
        "budgets": result.get("budgets", budgets),
        "metric": metric_name(result),
        **{key: part(result, key) for key in ("teacher", "student", "seconds")},
        "options": dict(_flat(config)),
    }


def _in_place_of_preset(folder: RunFolder) -> str:
    """What was done with a network that was not trained by a preset; empty of others."""
    if folder.config.get("compress"):
        return "compressed"
    is_saved = any(entry.get("what") == SAVED for entry in folder.read_journal())
    return "made in Python" if is_saved else ""


def _progress(folder: RunFolder) -> str:
    """How far a run has come that is not evaluated."""
    if folder.has("student.safetensors"):
        return "not evaluated yet"
    epochs = [entry for entry in folder.read_journal() if entry.get("event") == "epoch"]
    if not epochs:
        return "nothing trained yet"
    last = epochs[-1]
    of = f" of {last['epochs']}" if "epochs" in last else ""
    return f"{PHASE_NAMES.get(str(last.get('phase')), 'supernet')}, epoch {last.get('epoch')}{of}"


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Options by their dotted names, as text."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif name != "format":
            each = value if isinstance(value, list) else [value]
            yield prefix + name, " ".join(map(_text, each))


def _text(value: Any) -> str:
    """A value as text, the same for 1 and 1.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def differing(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The options in which runs differ, and who has which value, such as `0 (1, 2); 1 (3)`."""
    names = dict.fromkeys([*FIRST, *(name for run in runs for name in run["options"])])
    found = []
    for name in names:
        places: dict[str, list[str]] = {}
        for place, run in enumerate(runs, start=1):
            places.setdefault(run["options"].get(name, "–"), []).append(str(place))
        if len(places) > 1:
            found.append((name, "; ".join(f"{value} ({', '.join(who)})" for value, who in places.items())))
    return found


def seeds_together(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluated runs that differ in their seed alone, two or more together, with mean and standard deviation.

    Of runs with the same seed, such as a copy of a folder, the first stands for all: they say nothing of the spread.
    """
    alike: dict[str, dict[Any, tuple[int, Mapping[str, Any]]]] = {}
    for place, run in enumerate(runs, start=1):
        if run["student"]:
            others = {name: value for name, value in run["options"].items() if name != "seed"}
            alike.setdefault(json.dumps(others, sort_keys=True), {}).setdefault(run["seed"], (place, run))
    return [
        {
            "places": ", ".join(str(place) for place, _ in group),
            "count": len(group),
            "runs": [run for _, run in group],
            "metric": group[0][1]["metric"],
            "student": _spread(group, "student", group[0][1]["metric"]),
            "teacher": _spread(group, "teacher", group[0][1]["metric"]),
            **{key: _spread(group, "student", key) for key, _, _ in COSTS},
        }
        for group in map(list, map(dict.values, alike.values()))
        if len(group) > 1
    ]


def over_seeds(run_dir: Path) -> str:
    """How the main metric moved in a run and in those beside it that differ in their seed alone; empty without any."""
    this = run_dir.resolve()
    beside = (each for each in sorted(this.parent.iterdir()) if each != this and (each / "result.json").is_file())
    known = [_said_of(RunFolder.open(this))]
    for folder in beside:
        # A damaged folder beside this one is its own affair.
        with suppress(RunFolderError, KeyError, TypeError, ValueError, AttributeError):
            known.append(_said_of(RunFolder.open(folder)))
    for group in seeds_together(known):
        changes = [change for run in group["runs"] if (change := change_of(run)) is not None]
        if group["runs"][0] is known[0] and len(changes) == group["count"]:
            return _said_of_changes([Path(run["run"]).name for run in group["runs"]], group["metric"], changes)
    return ""


def _said_of_changes(names: Sequence[str], metric: str, changes: Sequence[float]) -> str:
    mean, deviation = statistics.mean(changes), statistics.stdev(changes)
    is_share = metric.startswith("top")
    moved_by = f"{mean:+.2f} ± {deviation:.2f} points" if is_share else f"{mean:+.4g} ± {deviation:.2g}"
    moved_by = moved_by.replace("-", "−")
    lower = sum(change < 0 for change in changes)
    return (
        f"Over {len(changes)} seeds ({', '.join(names)}) {metric_label(metric)} moved by {moved_by} "
        f"from teacher to student (mean ± standard deviation), and was lower in {lower} of {len(changes)}."
    )


def _spread(group: Sequence[tuple[int, Mapping[str, Any]]], network: str, key: str) -> tuple[float, float] | None:
    """Mean and standard deviation of a figure; None where a run lacks it."""
    found = [number(run[network].get(key)) for _, run in group]
    known = [value for value in found if value is not None]
    return (statistics.mean(known), statistics.stdev(known)) if len(known) == len(group) else None


def said_of_spread(spread: tuple[float, float] | None, name: str, unit: str = "") -> str:
    """Mean ± standard deviation; a dash where they are not known."""
    if spread is None:
        return "–"
    mean, deviation = spread
    if unit == "ms":
        digits = max(3, decimals(mean))
        return f"{mean:.{digits}f} ± {deviation:.{digits}f} ms"
    if name in ("macs", "params", "file_bytes"):
        return f"{compact(mean, unit)} ± {percent(deviation / mean)}"
    return f"{mean:.2f} ± {deviation:.2f} %" if name.startswith("top") else f"{mean:.4g} ± {deviation:.2g}"


def result_of(run: Mapping[str, Any]) -> tuple[str, str]:
    """The main metric of a student, and how it moved from its teacher."""
    name, change = run["metric"], change_of(run)
    after = number(run["student"].get(name))
    return "–" if after is None else measured(name, after), "" if change is None else moved(name, change)


def change_of(run: Mapping[str, Any]) -> float | None:
    """By how much the main metric of a student differs from its teacher's."""
    before, after = (number(run[network].get(run["metric"])) for network in ("teacher", "student"))
    return None if before is None or after is None else after - before


def cost_of(run: Mapping[str, Any], key: str, unit: str) -> tuple[str, float | None]:
    """What a student costs, and its share of what its teacher costs."""
    before, after = number(run["teacher"].get(key)), number(run["student"].get(key))
    if after is None:
        return "–", None
    said = milliseconds(1e6 * after) if unit == "ms" else compact(after, unit)
    return said, after / before if before else None


def settings_of(run: Mapping[str, Any]) -> str:
    """Budget, preset, seed and time of a run, or how far it is; a mark on budgets that were not kept."""
    budgets = ", ".join(f"{each['text']}{'' if is_kept(each) else ' NOT kept'}" for each in run["budgets"])
    seconds = sum(number(seconds) or 0.0 for seconds in run["seconds"].values())
    parts = [budgets, run["preset"], "" if run["seed"] is None else f"seed {run['seed']}"]
    took = duration(seconds) if seconds else ""
    return ", ".join(str(each) for each in [*parts, took if run["student"] else f"unfinished: {run['state']}"] if each)


def subject_of(run: Mapping[str, Any]) -> str:
    """The network and the data of a run."""
    return " on ".join(named(str(run[key])) for key in ("model", "data"))


def timed(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the latencies were measured: one text where they can be compared, otherwise more; none if unknown."""
    return list(dict.fromkeys(filter(None, (timed_in(run["student"]) for run in runs))))


def other_pace(runs: Sequence[Mapping[str, Any]]) -> str:
    """What is to be said where one teacher took other times in other runs; empty if none did."""
    times: dict[Any, list[float]] = {}
    for run in runs:
        taken = number(run["teacher"].get("latency_ms"))
        if taken:
            network = subject_of(run), run["teacher"].get("macs"), timed_in(run["teacher"])
            times.setdefault(network, []).append(1e6 * taken)
    for each in times.values():
        if max(each) > PACE * min(each):
            least, most = milliseconds(min(each)), milliseconds(max(each))
            return f"The same teacher took {least} in one run and {most} in another: compare shares, not milliseconds."
    return ""


def comparison_page(runs: Sequence[Mapping[str, Any]], place: Path = Path("comparison.html")) -> str:
    """The runs on one self-contained page: what differs, the students, seeds together, and curves over each other.

    Args:
        runs: What `comparison` found.
        place: Where the page will be, from where links lead to the reports of the runs.
    """
    subjects = list(dict.fromkeys(map(subject_of, runs)))
    metrics = list(dict.fromkeys(run["metric"] for run in runs))
    result = metric_label(metrics[0]) if len(metrics) == 1 else "result"
    where = timed(runs)
    named_differences = differing(runs)
    return render(
        "comparison.html.j2",
        title=f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} side by side: {', '.join(subjects)}",
        head=["Run", result, *(heading for _, heading, _ in COSTS)],
        runs=[_row(run, place.parent, is_alone=len(subjects) == 1) for run in runs],
        timed=f"Latency {where[0]}. {other_pace(runs)}".strip()
        if len(where) == 1
        else "Latencies were measured in different ways."
        if where
        else "",
        differences=[each for each in named_differences if each[0] in FIRST],
        others=[each for each in named_differences if each[0] not in FIRST],
        seeds=[_seeds_row(each) for each in seeds_together(runs)],
        charts=list(_charts(runs, metrics)),
        curves=list(_curves(runs, metrics)),
    )


def _row(run: Mapping[str, Any], folder: Path, *, is_alone: bool) -> dict[str, Any]:
    report = Path(run["run"], "report.html")
    said, change = result_of(run)
    return {
        "name": run["run"],
        "link": os.path.relpath(report, folder) if report.is_file() else "",
        "settings": settings_of(run) if is_alone else f"{subject_of(run)}; {settings_of(run)}",
        "result": said,
        "change": change,
        "costs": [(heading, *cost_of(run, key, unit)) for key, heading, unit in COSTS],
    }


def _seeds_row(group: Mapping[str, Any]) -> list[str]:
    name = group["metric"]
    return [
        f"{group['count']} seeds: runs {group['places']}",
        said_of_spread(group["student"], name),
        said_of_spread(group["teacher"], name),
        *(said_of_spread(group[key], key, unit) for key, _, unit in COSTS[:3]),
    ]


def _charts(runs: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> Iterator[Drawing]:
    """The metric against MACs, and against latency where all were measured alike."""
    if len(metrics) > 1:
        return
    (metric,) = metrics
    label = metric_label(metric)
    note = f"{label} of each student, numbered as in the table; diamonds: their teachers"
    if metric == "top1":
        note += "; line: the best for their cost"
    for key, name, said in (("macs", "MACs", tick), ("latency_ms", "latency", "{:.3g} ms".format)):
        known = [place for place, run in enumerate(runs) if None not in _point(run, "student", key, metric)]
        if known and (key == "macs" or len(timed(runs)) == 1):
            yield Drawing(f"{label.capitalize()} against {name}", _chart(runs, known, key, metric, said), note)


def _point(run: Mapping[str, Any], network: str, key: str, metric: str) -> tuple[float | None, float | None]:
    return number(run[network].get(key)), number(run[network].get(metric))


def _chart(
    runs: Sequence[Mapping[str, Any]], known: Sequence[int], key: str, metric: str, said: Callable[[float], str]
) -> Markup:
    """A metric against a cost: students as numbered points, teachers as diamonds, the best ones joined."""
    name = f"against-{key.replace('_', '-')}"
    with page_style(name):
        height = 200.0
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        axes = figure.add_axes((44 / WIDTH, 30 / height, (WIDTH - 62) / WIDTH, (height - 44) / height))
        students: dict[int, Any] = {place: _point(runs[place], "student", key, metric) for place in known}
        teachers: set[Any] = {_point(runs[place], "teacher", key, metric) for place in known}
        for point in teachers:
            if None not in point:
                hovered(
                    axes.plot(*point, "D", color=GREY, ms=5),
                    f"teacher: {measured(metric, point[1])} at {said(point[0])}",
                )
        best = _undominated(list(students.values()))
        if metric == "top1" and len(best) > 1:
            axes.plot(*zip(*best, strict=True), color=GREY, lw=1, ls="--", zorder=1)
        for place, point in students.items():
            text = f"run {place + 1}: {measured(metric, point[1])} at {said(point[0])}"
            hovered(axes.plot(*point, "o", color=COLORS[place % len(COLORS)], ms=6), text)
            axes.annotate(str(place + 1), point, xytext=(4, -9 if place % 2 else 3), textcoords="offset points", size=7)
        axes.set(xlabel="MACs a sample" if key == "macs" else "latency", ylabel=metric_axis(metric))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: said(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(0.08, 0.15)
        if metric == "top1":
            axes.set_ylim(*_percents([point[1] for point in (*students.values(), *teachers) if None not in point]))
        axes.grid(axis="y", color=(INK, 0.12), lw=0.6)
        axes.set_axisbelow(True)
        points = "; ".join(f"run {n + 1}: {measured(metric, p[1])} at {said(p[0])}" for n, p in students.items())
        return inline_svg(figure, name, f"Points of {metric_label(metric)} against cost. {points}.")


def _percents(shown: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis that shows these percents, and one percent at least; nothing is above 100."""
    least, most = min(shown), max(shown)
    beside = max(0.15 * (most - least), (1 - most + least) / 2)
    return max(least - beside, 0), min(most + beside, 100.1)


def _undominated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no cheaper one reaches, cheapest first."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda each: (each[0], -each[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def _curves(runs: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> Iterator[Drawing]:
    """The courses of the runs over each other."""
    journals = [RunFolder(run["run"]).read_journal() for run in runs]
    measures = [
        ("distill", f"test_{name}", f"{metric_axis(name)} of the student", "on the test split") for name in metrics
    ]
    for phase, key, title, note in (
        *measures,
        ("distill", "test_loss", "Loss of the student", "on the test split"),
        ("search", "entropy", "Entropy of the search", "1: all choices are as likely, 0: decided"),
    ):
        lines = []
        for place, journal in enumerate(journals):
            epochs = [entry for entry in journal if is_epoch(entry, phase)]
            steps, values = series(epochs, key)
            if steps:
                style = "-" if place < len(COLORS) else "--"
                color = COLORS[place % len(COLORS)]
                lines.append(
                    Line(label=str(place + 1), epochs=steps, values=values, color=color, style=style, weight=1.4)
                )
        if lines:
            said = "; ".join(f"run {line.label}: {line.values[-1]:.4g} at the end" for line in lines)
            name = f"curve-{phase}-{key}".replace("_", "-")
            picture = line_chart(name, lines, f"Line chart over epochs. {said}.", legend_columns=8)
            yield Drawing(title[0].upper() + title[1:], picture, f"{note}; lines numbered as the runs")


SEARCHED, UNIFORM = CURVES = "searched", "uniform"


def is_frontier(folder: RunFolder) -> bool:
    """Whether a run folder is a frontier: several runs, one for each amount of a budget."""
    budgets = folder.config.get("budget")
    return isinstance(budgets, list) and any("," in str(text) for text in budgets)


def points_of(run: Path) -> list[Path]:
    """The runs inside a folder, which are the points of a frontier."""
    return sorted(each.parent for each in run.glob("*/config.toml"))


def whole_frontier(folder: RunFolder, action: str) -> RunFolderError:
    """The error for an action on a frontier that is only possible on one of its runs, which it names.

    Args:
        folder: The folder of the frontier.
        action: The action, as it stands before the folder's name in the message.
    """
    runs = [point.name for point in points_of(folder.path)]
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
        "metric": metric_name(results[0]),
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
    metric = _metric(record)
    note = f"{metric_label(metric)} on the test split; {name} of the student. Both learned alike from the same weights."
    return render(
        "frontier.html.j2",
        title=f"{record['model']} on {record['data']}: accuracy against {name}",
        chart=Drawing("Searched and uniformly scaled", frontier_chart(record), note),
        name=name,
        metric=metric_label(metric),
        teacher=measured(metric, record["teacher"][metric]),
        points=[_frontier_point(point, record) for point in record["points"]],
    )


def _metric(record: Mapping[str, Any]) -> str:
    """The main metric of a frontier; those of earlier versions are about top-1."""
    return str(record.get("metric", "top1"))


def _frontier_point(point: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    kind, metric = record["kind"], _metric(record)
    cost = point[SEARCHED][kind]
    students = [point[name] and {**point[name], "said": measured(metric, point[name][metric])} for name in CURVES]
    gain = moved(metric, students[0][metric] - students[1][metric]) if students[1] else "–"
    return {
        "budget": ", ".join(budget["text"] for budget in point["budgets"]),
        "cost": f"{amount(kind, cost)} ({percent(cost / record['teacher'][kind])})",
        "gain": gain,
        **dict(zip(CURVES, students, strict=True)),
    }


def frontier_chart(record: Mapping[str, Any]) -> Markup:
    """Accuracy against cost: searched and uniformly scaled students, and the teacher."""
    kind, metric = record["kind"], _metric(record)
    teacher = (record["teacher"][kind], record["teacher"][metric])
    curves = {name: _curve(record, name) for name in CURVES}
    with page_style("frontier"):
        height = 190.0
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        axes = figure.add_axes((44 / WIDTH, 30 / height, (WIDTH - 56) / WIDTH, (height - 54) / height))
        axes.plot(*zip(*curves[SEARCHED], strict=True), color=BLUE, marker="o", ms=4, lw=1.8, label=SEARCHED, zorder=3)
        uniform: dict[str, Any] = {"color": ORANGE, "marker": "s", "ms": 3.5, "ls": "--", "lw": 1.4, "label": UNIFORM}
        if curves[UNIFORM]:
            axes.plot(*zip(*curves[UNIFORM], strict=True), **uniform)
        hovered(axes.plot(*teacher, "D", color=GREY, ms=5, label="teacher"), f"teacher: {measured(metric, teacher[1])}")
        for name, curve in curves.items():
            for cost, value in curve:
                text = f"{name}: {measured(metric, value)} at {_short(kind, cost)}"
                hovered(axes.plot(cost, value, "o", color=GREY, ms=9, alpha=0, zorder=9), text)
        axes.set(xlabel=COST_NAMES.get(kind, kind), ylabel=metric_axis(metric))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(kind, value)))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(0.06, 0.1)
        axes.grid(axis="y", color=(INK, 0.12), lw=0.6)
        axes.set_axisbelow(True)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, frameon=False, handlelength=1.8)
        said = "; ".join(
            f"{name}: {', '.join(f'{measured(metric, value)} at {_short(kind, cost)}' for cost, value in curve)}"
            for name, curve in curves.items()
            if curve
        )
        return inline_svg(figure, "frontier", f"Line chart of {metric_label(metric)} against cost. {said}.")


def _short(kind: str, cost: float) -> str:
    if kind in IN_BYTES:
        return in_bytes(cost)
    return f"{cost / 1e6:.3g} ms" if kind == "latency" else tick(cost)


def _curve(record: Mapping[str, Any], name: str) -> list[tuple[float, float]]:
    """Cost and accuracy of the points of a curve, cheapest first."""
    students = [point[name] for point in record["points"] if point[name] is not None]
    return sorted((student[record["kind"]], student[_metric(record)]) for student in students)
