"""The part of the report about classes and pictures: what the student has lost, and where the two disagree."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from transprune.reports.examples import KINDS
from transprune.reports.markup import details, note, row, section, table
from transprune.reports.run_record import RunRecord, number
from transprune.reports.words import percent

MOST_CLASSES = 24
"""Rows of the table by class; of more classes only those with the largest changes are shown."""
_SAID = {
    "both_right": "both are right",
    "teacher_only": "only the teacher is right",
    "student_only": "only the student is right",
    "both_wrong": "both are wrong, each in its own way",
    "same_mistake": "both make the same mistake",
}
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


def examples_section(record: RunRecord) -> str:
    """Agreement, accuracy by class, and pictures; nothing where no answers were kept."""
    found = record.examples
    if not found:
        return ""
    beside = f'<div class="beside">\n<div>\n{_classes(found)}</div>\n<div>\n{_pictures(found)}</div>\n</div>\n'
    return section("Class by class, and where they disagree", _agreement(found) + beside)


def _agreement(found: Mapping[str, Any]) -> str:
    samples, counts = found["samples"], found["counts"]
    said = [
        f"on {counts[kind]:,} {text} ({percent(counts[kind] / samples)})"
        for kind, text in _SAID.items()
        if counts[kind]
    ]
    return f"<p>Of {samples:,} test images, {escape('; '.join(said))}.</p>\n"


def _classes(found: Mapping[str, Any]) -> str:
    classes: Sequence[Mapping[str, Any]] = found["classes"]
    shown = sorted(classes, key=lambda each: -abs(each["student"] - each["teacher"]))[:MOST_CLASSES]
    shown = [each for each in classes if each in shown]
    caption = "Share of each class’s test images that each network gets right"
    if len(shown) < len(classes):
        caption += f"; the {len(shown)} of {len(classes)} classes with the largest changes"
    head = ["Class", "Images", "Teacher", "Student", "Points"]
    return table(caption, head, map(_class_row, shown), "classes")


def _class_row(each: Mapping[str, Any]) -> str:
    teacher, student = (number(each[name]) or 0.0 for name in ("teacher", "student"))
    change = f"{student - teacher:+.1f}".replace("-", "−") if student != teacher else "0"
    kind = "worse" if student < teacher else "better" if student > teacher else "same"
    cells = (f"{each['samples']:,}", f"{teacher:.1f} %", f"{student:.1f} %", f'<span class="{kind}">{change}</span>')
    return row(str(each["name"]), *cells)


def _pictures(found: Mapping[str, Any]) -> str:
    """The pictures of each kind of disagreement."""
    if not found["examples"]:
        return note("There is no test image on which the two disagree.")
    groups = [(kind, [each for each in found["examples"] if each["kind"] == kind]) for kind in KINDS]
    drawn = "".join(
        f"<h3>{escape(_SAID[kind].capitalize())} ({len(members)} of {found['counts'][kind]:,} shown)</h3>\n"
        f'<ul class="pictures">\n{"".join(map(_picture, members))}</ul>\n'
        for kind, members in groups
        if members
    )
    return details("Pictures on which they disagree", drawn, is_open=True)


def _picture(example: Mapping[str, Any]) -> str:
    label = escape(str(example["label"]), quote=True)
    source = example["image"] if _PICTURE.fullmatch(example["image"]) else ""
    said = "".join(
        f"<dt>{name}</dt><dd>{escape(str(answer['class']))} <small>{percent(answer['probability'], 0)}</small></dd>"
        for name, answer in (("teacher", example["teacher"]), ("student", example["student"]))
    )
    return (
        f'<li><img src="{source}" alt="Test image {int(example["place"])}, of class {label}" width="72" height="72">'
        f"<dl><dt>is</dt><dd>{label}</dd>{said}</dl></li>\n"
    )
