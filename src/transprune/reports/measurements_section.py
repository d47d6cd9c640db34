"""The part of the report about speed and memory, as `transprune measure` found them."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from transprune.reports.markup import bar, row, section, table
from transprune.reports.run_record import RunRecord, part
from transprune.reports.words import compact, percent

_HEAD = ["Runtime, batch", "Teacher, median", "Student, median", "Student against teacher", "Peak memory", "File size"]


def measurement_section(record: RunRecord) -> str:
    """Teacher and student side by side, a row for each runtime and batch size; nothing where none was measured."""
    found: list[Mapping[str, Any]] = list(record.measurements.get("measurements", []))
    teachers = [each for each in found if each["network"] == "teacher"]
    students = {(each["runtime"], each["batch_size"]): each for each in found if each["network"] == "student"}
    rows = [_row(teacher, students[teacher["runtime"], teacher["batch_size"]]) for teacher in teachers]
    if not rows:
        return ""
    options, cpu = part(record.measurements, "options"), part(record.measurements, "environment").get("cpu")
    caption = (
        f"Median time of a batch with its quartiles; {cpu}, {options['threads']} thread(s) on the CPU, torch on "
        f"{record.measurements['device']}. Memory and files: teacher → student"
    )
    return section("Speed and memory", table(caption, _HEAD, rows, "result"))


def _row(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    share = student["latency_ms"] / teacher["latency_ms"]
    return row(
        f"{teacher['runtime']}, {teacher['batch_size']}",
        _time(teacher),
        _time(student),
        f"{bar(share)} {percent(share)}",
        _change("peak_memory_bytes", teacher, student),
        _change("file_bytes", teacher, student),
    )


def _time(figures: Mapping[str, Any]) -> str:
    said = f"{figures['latency_ms']:.3f} ms ({figures['lower_ms']:.3f} – {figures['upper_ms']:.3f})"
    return escape(f"{said}, {figures['throughput']:,.0f} a second")


def _change(key: str, teacher: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    sizes = ["–" if each[key] is None else compact(each[key], "B") for each in (teacher, student)]
    return escape(" → ".join(sizes))
