"""The report of a run: one HTML page that needs nothing but itself."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from transprune.reports.charts import accuracy_figures, cost_figures, depth_figures, width_figures
from transprune.reports.examples_section import examples_section
from transprune.reports.layers_section import layers_section
from transprune.reports.markup import bar, code, details, figures, note, page, row, section, table
from transprune.reports.measurements_section import measurement_section
from transprune.reports.run_record import RunRecord, StageRow, WidthRow, number, part, read_record
from transprune.reports.words import (
    COST_NAMES,
    PHASE_NAMES,
    amount,
    compact,
    headline,
    network_size,
    percent,
    points,
    timed_in,
)
from transprune.runtime import RunFolder
from transprune.runtime.duration import duration

_MEASURES = (
    ("Top-1 accuracy", "top1", "%"),
    ("Top-5 accuracy", "top5", "%"),
    ("MACs a sample", "macs", ""),
    ("Parameters", "params", ""),
    ("Latency", "latency_ms", "ms"),
    ("File size", "file_bytes", "B"),
)


def write_report(run_dir: Path) -> Path:
    """Writes report.html from the other files of a run folder; steps that were not done yet are named as such.

    Args:
        run_dir: The run folder.

    Returns:
        The path of the report.

    Raises:
        RunFolderError: The folder is missing or no run, a file is malformed, or there is nothing to report yet.
    """
    record = read_record(run_dir)
    return RunFolder.open(run_dir).write_text("report.html", _page(record))


def _page(record: RunRecord) -> str:
    sections = (
        section("Teacher and student", _result(record)),
        measurement_section(record),
        layers_section(record),
        examples_section(record),
        section("Widths, before and after", _widths(record)),
        section("Depths, before and after", _depths(record)),
        section("Cost and certainty over the search", figures(cost_figures(record)) or note("No search is recorded.")),
        section("Accuracy", figures(accuracy_figures(record)) or note("No epoch is recorded.")),
        section("How to repeat it", _origin(record)),
    )
    return page(headline(record), "transprune report", "".join(sections), _times(record))


def _times(record: RunRecord) -> str:
    """When the run began, and how long its phases took."""
    starts = [str(entry["time"])[:16].replace("T", " ") for entry in record.events("start") if "time" in entry]
    said = [f"started {starts[0]}"] if starts else []
    for phase, name in PHASE_NAMES.items():
        seconds = number(part(record.result, "seconds").get(phase))
        said += [f"{name} {duration(seconds)}"] if seconds is not None else []
    curve = '<p class="meta">One of several budgets: <a href="../frontier.html">accuracy against cost</a></p>\n'
    times = f'<p class="meta">{escape(" · ".join(said))}</p>\n' if said else ""
    return times + (curve if record.is_point else "")


def _result(record: RunRecord) -> str:
    teacher, student = part(record.result, "teacher"), part(record.result, "student")
    if not teacher and not student:
        return note("Neither the teacher nor a student is measured yet.")
    caption = "The unpruned network (teacher) and the derived one (student), measured on the test split"
    rows = [_measure_row(*measure, teacher, student) for measure in _MEASURES]
    measured = table(caption, ["Measure", "Teacher", "Student", "Student against teacher"], rows, "result")
    missing = "" if student else note("The student is not measured yet.")
    return f'<div class="summary">\n{measured}<div>\n{missing}{_budgets(record)}{_shape(record)}</div>\n</div>\n'


def _measure_row(label: str, key: str, unit: str, teacher: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    before, after = number(teacher.get(key)), number(student.get(key))
    label = f"{label} {timed_in(student or teacher)}" if key == "latency_ms" else label
    against = "–"
    if before is not None and after is not None and unit == "%":
        against = escape(points(after - before))
    elif before and after is not None:
        against = f"{bar(after / before)} {percent(after / before)}"
    return row(label, _measure(before, unit), _measure(after, unit), against)


def _measure(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return f"{value:.2f} {unit}" if unit in ("%", "ms") else compact(value, unit)


def _budgets(record: RunRecord) -> str:
    """Of each budget what was allowed, what is used, and whether it was kept."""
    return "".join(_budget(record, budget) for budget in record.budgets) or note("No budget is recorded.")


def _budget(record: RunRecord, budget: Mapping[str, Any]) -> str:
    target, actual, kind = number(budget.get("target")), number(budget.get("actual")), str(budget.get("kind", "macs"))
    if not target or actual is None:
        return ""
    name = COST_NAMES.get(kind, kind)
    state = "kept" if actual <= target else "exceeded"
    asked = f" ({budget['text']})" if "text" in budget else ""
    used = percent(actual / target)
    said = f"{amount(kind, actual)} of at most {amount(kind, target)}{asked}, {used} of what is allowed."
    full = number(part(record.result, "teacher").get(kind))
    key = escape(f"solid: the student's {name}; pale: the teacher's; line: the target")
    drawn = f"{bar(actual / full, target / full)}<small>{key}</small>" if full else ""
    return f'<p class="budget {state}"><strong>Budget {state}:</strong> {escape(said)} {drawn}</p>\n'


def _shape(record: RunRecord) -> str:
    size = network_size(record)
    return f'<p class="shape"><strong>The student’s shape:</strong> {escape(size)}.</p>\n' if size else ""


def _widths(record: RunRecord) -> str:
    if not record.groups:
        return note("No width group is known yet.")
    unsearched = "" if record.epochs("search") else note("No search is recorded, so there are no probabilities.")
    caption = "Channels of every width group, in network order"
    widths = table(caption, ["Width group", "Full", "Kept", "Share"], map(_width_row, record.groups), "sizes")
    folded = details("The widths as a table", widths)
    return figures(width_figures(record)) + unsearched + _friendliness(record) + folded


def _friendliness(record: RunRecord) -> str:
    """What to do where widths do not suit the hardware."""
    widths = part(record.result, "widths")
    share, multiple = number(widths.get("share_of_macs")), widths.get("multiple_of")
    if not share:
        return ""
    return note(
        f"{percent(share)} of the student’s MACs are in layers that read or write a chosen number of channels that is "
        f"no multiple of {multiple} ({len(widths.get('unfriendly', []))} of {widths.get('layers')} layers). Most "
        f"hardware computes {multiple} channels at a time and is slower with other numbers than the MACs say; "
        f"--divisor {multiple} lets only multiples be chosen."
    )


def _width_row(group: WidthRow) -> str:
    if group.is_dropped:
        return row(group.name, str(group.full), "dropped", "–")
    if group.kept is None:
        return row(group.name, str(group.full), "–", "–")
    return row(group.name, str(group.full), str(group.kept), percent(group.kept / group.full))


def _depths(record: RunRecord) -> str:
    if not record.stages:
        reason = "No stage has blocks that may be dropped." if record.groups else "No stage is known yet."
        return note(reason)
    caption = "Blocks of every stage: solid ones are kept, hatched ones dropped"
    depths = table(caption, ["Stage", "Blocks kept", "Blocks"], map(_stage_row, record.stages), "sizes")
    return depths + figures(depth_figures(record))


def _stage_row(stage: StageRow) -> str:
    kept = stage.full if stage.kept is None else stage.kept
    blocks = '<i class="block kept"></i>' * kept + '<i class="block dropped"></i>' * (stage.full - kept)
    said = f"{'–' if stage.kept is None else stage.kept} of {stage.full}"
    return row(stage.name, said, f'<span class="blocks" aria-hidden="true">{blocks}</span>')


def _origin(record: RunRecord) -> str:
    """Commands, configuration, environment and what the run had to say."""
    commands = "\n".join(_command(entry.get("command", "")) for entry in record.events("start"))
    rows = [row(name.replace("_", " "), escape(_plain(value))) for name, value in record.environment.items()]
    return (
        f"<h3>Command</h3>\n{code(commands, 'Command') if commands else note('No command is recorded.')}"
        f'<div class="beside">\n<div>\n<h3>Configuration</h3>\n{code(record.config_text, "Configuration")}</div>\n'
        f"<div>\n<h3>Environment</h3>\n{table('Versions and hardware', [], rows) if rows else note('Not recorded.')}"
        f"{_remarks(record)}</div>\n</div>\n"
    )


def _remarks(record: RunRecord) -> str:
    """Decisions and warnings of the journal."""
    said = []
    for entry in [*record.events("decision"), *record.events("warning")]:
        fields = [str(entry[key]) for key in ("what", "why", "message") if key in entry]
        said.append(f"<li>{escape(': '.join(fields) or _plain(entry))}</li>\n")
    return f"<h3>Decisions and warnings</h3>\n<ul>\n{''.join(said)}</ul>\n" if said else ""


def _command(command: Any) -> str:
    return shlex.join(map(str, command)) if isinstance(command, list) else str(command)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return "none" if value is None else str(value)
