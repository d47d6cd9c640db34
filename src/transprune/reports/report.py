"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transprune.models.by_name import is_user_model
from transprune.reports.charts import (
    cost_figures,
    depth_figures,
    layers_figure,
    loss_figures,
    metric_figures,
    width_figures,
)
from transprune.reports.comparison import over_seeds
from transprune.reports.examples import BOXES, KINDS, OVERLAP, SURE
from transprune.reports.pages import render
from transprune.reports.run_record import LayerRow, RunRecord, number, part, read_record
from transprune.reports.words import (
    COST_NAMES,
    PHASE_NAMES,
    amount,
    compact,
    foretold,
    headline,
    how_left,
    how_spent,
    is_kept,
    moved,
    network_size,
    other_times,
    percent,
    spent,
    timed_in,
    verdict,
)
from transprune.runtime import RunFolder
from transprune.runtime.terminal import duration, milliseconds

MOST_CLASSES = 24
"""Largest number of rows in the table by class, which shows the classes with the largest changes."""
_MEASURES = (
    ("Latency", "latency_ms", "ms"),
    ("Top-1 accuracy", "top1", "%"),
    ("Top-5 accuracy", "top5", "%"),
    ("MACs a sample", "macs", ""),
    ("Parameters", "params", ""),
    ("File size", "file_bytes", "B"),
)
_SAID = {
    "both_right": "both are right",
    "teacher_only": "only the teacher is right",
    "student_only": "only the student is right",
    "both_wrong": "both are wrong, each in its own way",
    "same_mistake": "both make the same mistake",
}
_NETWORKS = ("teacher", "student")
_SAID_OF_OBJECTS = {
    "both_right": "both find",
    "teacher_only": "only the teacher finds",
    "student_only": "only the student finds",
    "both_wrong": "neither finds",
}
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


def write_report(run_dir: Path) -> Path:
    """Writes report.html from the other files of a run folder, and returns its path; it says which steps are missing.

    Raises:
        RunFolderError: The folder is missing or not a run, a file is malformed, or there is nothing to report yet.
    """
    page = report_page(run_dir)
    return RunFolder.open(run_dir).write_text("report.html", page)


def report_page(run_dir: Path) -> str:
    """The page of a run as its folder is now.

    Raises:
        RunFolderError: As of `write_report`.
    """
    record = read_record(run_dir)
    said = verdict(record)
    if said:
        said[1:1] = filter(None, [over_seeds(run_dir)])
    return render("report.html.j2", **_context(record), verdict=said)


MOST_PAIRS = 8
"""Pairs of classes that are most often confused, which a report names."""
MOST_IN_MATRIX, SHORT_NAME = 20, 3
"""Largest number of classes in a matrix of answers, and characters of a name that fits the head of its columns."""


def _context(record: RunRecord) -> dict[str, Any]:
    """The variables of the template; empty for what is not done yet."""
    return {
        "title": headline(record),
        "record": record,
        "times": _times(record),
        "measures": list(_measures(record)),
        "is_student_measured": bool(part(record.result, "student")),
        "is_trained": record.result.get("is_trained", True),
        "how_left": how_left(record.config),
        "agreement": None if part(record.result, "student").get("top1") else number(record.result.get("agreement")),
        "budgets": list(_budgets(record)),
        "size": network_size(record),
        "measurements": list(_measurements(record)),
        "measured_on": _measured_on(record),
        "int8": list(_int8(record)),
        "layers": [_layer(layer) for layer in record.layers],
        "layers_drawing": layers_figure(record.layers) if record.layers else None,
        "examples": _examples(record.examples),
        "width_figures": list(width_figures(record)),
        "friendliness": _friendliness(record),
        "depth_figures": list(depth_figures(record)),
        "cost_figures": list(cost_figures(record)),
        "metric_figures": list(metric_figures(record)),
        "loss_figures": list(loss_figures(record)),
        "uses": list(_uses(record)),
        "inputs": _inputs(record),
        "commands": "\n".join(dict.fromkeys(_command(entry.get("command", "")) for entry in record.events("start"))),
        "is_of_python": str(part(record.architecture, "model").get("name", "")).startswith("python:"),
        "environment": [(name.replace("_", " "), _plain(value)) for name, value in record.environment.items()],
        "remarks": list(_remarks(record)),
    }


def _times(record: RunRecord) -> str:
    """The start of the run and the durations of its phases, in words."""
    starts = [str(entry["time"])[:16].replace("T", " ") for entry in record.events("start") if "time" in entry]
    said = [f"started {starts[0]}"] if starts else []
    for phase, name in PHASE_NAMES.items():
        seconds = number(part(record.result, "seconds").get(phase))
        is_given = phase == "teacher" and not record.epochs(phase)  # what is timed then is that it was read
        said += [f"{name} {duration(seconds)}"] if seconds is not None and not is_given else []
    return " · ".join(said)


def _measures(record: RunRecord) -> Iterator[dict[str, Any]]:
    """The rows of figures of teacher and student; none if neither is measured."""
    teacher, student = part(record.result, "teacher"), part(record.result, "student")
    known = {key: (label, key, unit) for label, key, unit in _MEASURES}
    metrics = [known.get(str(name), (str(name), str(name), "metric")) for name in record.result.get("metrics", [])]
    latency, *others = (each for each in _MEASURES if not metrics or not each[1].startswith("top"))
    for label, key, unit in [latency, *metrics, *others] if teacher or student else ():
        before, after = number(teacher.get(key)), number(student.get(key))
        if key == "top5" and before is None and after is None:  # of five classes or fewer
            continue
        yield {
            "label": f"{label} {timed_in(student or teacher)}" if key == "latency_ms" else label,
            "teacher": _measure(before, unit),
            "student": _measure(after, unit),
            "share": after / before if after is not None and before and unit not in ("%", "metric") else None,
            "change": "–" if before is None or after is None else moved(key, after - before),
        }


def _measure(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "metric":
        return f"{value:.4g}"
    if unit == "ms":
        return milliseconds(1e6 * value)
    return f"{value:.2f} %" if unit == "%" else compact(value, unit)


def _budgets(record: RunRecord) -> Iterator[dict[str, Any]]:
    """For each budget, what it allows, what is used, and whether it is kept."""
    for budget in record.budgets:
        target, actual = number(budget.get("target")), number(budget.get("actual"))
        if not target or actual is None:
            continue
        kind, actual, how = str(budget.get("kind", "macs")), spent(budget), how_spent(budget)
        asked = f" ({budget['text']})" if "text" in budget else ""
        found = other_times(record.result, record.folder) if kind == "latency" else []
        said = f"{how}{amount(kind, actual)} of at most {amount(kind, target)}{asked}, {percent(actual / target)}"
        yield {
            "state": "kept" if is_kept(budget) else "exceeded",
            "said": " ".join([f"{said} of what is allowed{foretold(budget)}.", *found]),
            "name": COST_NAMES.get(kind, kind),
            "full": number(part(record.result, "teacher").get(kind)),
            "target": target,
            "actual": actual,
        }


def _measurements(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Teacher and student side by side, for each runtime and batch size that `transprune measure` measured."""
    found: list[Mapping[str, Any]] = list(record.measurements.get("measurements", []))
    students = {(each["runtime"], each["batch_size"]): each for each in found if each["network"] == "student"}
    for teacher in found:
        if teacher["network"] == "teacher":
            student = students[teacher["runtime"], teacher["batch_size"]]
            yield {
                "name": f"{teacher['runtime']}, {teacher['batch_size']}",
                "teacher": _time(teacher),
                "student": _time(student),
                "share": student["latency_ms"] / teacher["latency_ms"],
                "memory": _change("peak_memory_bytes", teacher, student),
                "file": _change("file_bytes", teacher, student),
            }


def _int8(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    """The student's figures in 32 and in 8 bits."""
    units = {"latency_ms": ("Latency", "ms"), "file_bytes": ("File", "B")}
    before, after = part(record.int8, "float"), part(record.int8, "int8")
    for name in before:
        label, unit = units.get(name, (name.replace("_", " "), "metric"))
        yield label, _measure(number(before[name]), unit), _measure(number(after.get(name)), unit)


def _measured_on(record: RunRecord) -> tuple[Any, Any, Any]:
    """Processor, threads and device of the measurements."""
    options, environment = part(record.measurements, "options"), part(record.measurements, "environment")
    return environment.get("cpu"), options.get("threads"), record.measurements.get("device")


def _time(figures: Mapping[str, Any]) -> str:
    median, lower, upper = (milliseconds(1e6 * figures[key]) for key in ("latency_ms", "lower_ms", "upper_ms"))
    said = f"{median} ({lower.removesuffix(' ms')} – {upper.removesuffix(' ms')})"
    return f"{said}, {figures['throughput']:,.0f} a second"


def _change(key: str, teacher: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    sizes = ["–" if each[key] is None else compact(each[key], "B") for each in (teacher, student)]
    return " → ".join(sizes)


def _layer(layer: LayerRow) -> tuple[str, ...]:
    before, after = layer.before, layer.after
    channels = "dropped" if layer.is_dropped else f"{after.inputs} → {after.outputs}" if after else "–"
    left = f"{compact(after.macs)} ({percent(after.macs / before.macs)})" if after and before.macs else "–"
    if after and not before.macs:
        left = compact(after.macs)
    return layer.name, layer.operator, f"{before.inputs} → {before.outputs}", channels, compact(before.macs), left


def _examples(found: Mapping[str, Any]) -> dict[str, Any]:
    """Agreement, figures by class, and pictures; empty if no answers were kept."""
    if not found:
        return {}
    classes: Sequence[Mapping[str, Any]] = found["classes"]
    changed = sorted(classes, key=lambda each: -abs(each["student"] - each["teacher"]))[:MOST_CLASSES]
    shown = [each for each in classes if each in changed]
    described = _of_objects(found) if found.get("form") == BOXES else _of_images(found)
    if len(shown) < len(classes):
        described["caption"] += f"; the {len(shown)} of {len(classes)} classes with the largest changes"
    return {
        **described,
        "classes": [_class(each) for each in shown],
        "confusions": [_pair(each) for each in found.get("confusions", [])[:MOST_PAIRS]],
    }


def _of_images(found: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of classifiers alone."""
    samples, counts = found["samples"], found["counts"]
    parts = [
        f"on {counts[kind]:,} {text} ({percent(counts[kind] / samples)})"
        for kind, text in _SAID.items()
        if counts[kind]
    ]
    return {
        "agreement": f"Of {samples:,} test images, {'; '.join(parts)}.",
        "counted": "Images",
        "form": "",
        "caption": "Share of each class’s test images that each network gets right",
        "matrix": _matrix(found),
        "pictures": [
            {
                "title": f"{_SAID[kind].capitalize()} ({len(members)} of {counts[kind]:,} shown)",
                "members": [_picture(each) for each in members],
            }
            for kind, members in _by_kind(found)
        ],
    }


def _of_objects(found: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of detectors alone."""
    samples, counts = found["samples"], found["counts"]
    parts = [
        f"{text} {counts[kind]:,} ({percent(counts[kind] / samples)})"
        for kind, text in _SAID_OF_OBJECTS.items()
        if counts[kind]
    ]
    meant = f"by a box of its class with a score of {SURE} or more that overlaps its own by {OVERLAP} or more"
    return {
        "agreement": f"Of {samples:,} objects on {found['images']:,} test images, {', '.join(parts)}. An object is "
        f"found {meant}.",
        "counted": "Objects",
        "form": BOXES,
        "caption": "Average precision of each class at an overlap of 0.5",
        "matrix": {},
        "pictures": [
            {"title": f"Most objects that {_SAID_OF_OBJECTS[kind]}", "members": [_scene(each) for each in members]}
            for kind, members in _by_kind(found)
        ],
    }


def _by_kind(found: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """The examples of each kind of disagreement."""
    for kind in KINDS:
        members = [each for each in found["examples"] if each["kind"] == kind]
        if members:
            yield kind, members


def _matrix(found: Mapping[str, Any]) -> dict[str, Any]:
    """How often the student gives each answer to each class; empty for many classes, and where it was not kept."""
    names = [str(each["name"]) for each in found["classes"]]
    confusions = {(each["label"], each["answer"]): int(each["student"]) for each in found.get("confusions", [])}
    if "confusions" not in found or len(names) > MOST_IN_MATRIX or not {n for n, _ in confusions} <= set(names):
        return {}
    is_short = max(map(len, names)) <= SHORT_NAME
    heads = names if is_short else [str(place) for place, _ in enumerate(names, start=1)]
    rows = []
    for head, each in zip(heads, found["classes"], strict=True):
        right = round(each["samples"] * each["student"] / 100)
        cells = []
        for name in names:
            is_right = name == each["name"]
            count = right if is_right else confusions.get((each["name"], name), 0)
            cells.append((count, is_right, round(count / max(1, each["samples"]), 3)))
        rows.append({"name": each["name"] if is_short else f"{head} {each['name']}", "cells": cells})
    return {"heads": heads, "rows": rows}


def _pair(each: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{each['label']} taken for {each['answer']}", f"{each['teacher']:,}", f"{each['student']:,}"


def _class(each: Mapping[str, Any]) -> dict[str, str]:
    teacher, student = (number(each[name]) or 0.0 for name in ("teacher", "student"))
    return {
        "name": str(each["name"]),
        "samples": f"{each['samples']:,}",
        "teacher": f"{teacher:.1f} %",
        "student": f"{student:.1f} %",
        "change": f"{student - teacher:+.1f}".replace("-", "−") if student != teacher else "0",
        "kind": "worse" if student < teacher else "better" if student > teacher else "same",
    }


def _picture(example: Mapping[str, Any]) -> dict[str, Any]:
    label = str(example["label"])
    answers = [(name, example[name]["class"], percent(example[name]["probability"], 0)) for name in _NETWORKS]
    described = f"Test image {int(example['place'])}, of class {label}"
    return {"source": _source(example), "described": described, "facts": [("is", label, ""), *answers]}


def _scene(example: Mapping[str, Any]) -> dict[str, Any]:
    finds = [(name, f"{int(example[name])} found", "") for name in _NETWORKS]
    described = f"Test image {int(example['place'])}, with {int(example['objects'])} objects"
    return {
        "source": _source(example),
        "described": described,
        "facts": [("objects", int(example["objects"]), ""), *finds],
    }


def _source(example: Mapping[str, Any]) -> str:
    return str(example["image"]) if _PICTURE.fullmatch(example["image"]) else ""


def _uses(record: RunRecord) -> Iterator[tuple[str, str]]:
    """How to run what is in the folder: a title and a few lines of Python for each kind of file."""
    described = part(record.architecture, "model")
    name, inputs = str(described.get("name", "")), described.get("inputs")
    size = inputs[0]["shape"][1:] if inputs else described.get("input_size")
    needed, own = _built(name)
    shape = ", ".join(map(str, size)) if isinstance(size, list) else "…"
    file = record.folder
    if "student.safetensors" in record.files:
        yield (
            "In PyTorch, to run it or to train it further",
            f"import torch, transprune\n{needed}\nstudent = transprune.load({file!r}{own})\n"
            f"answers = student(torch.zeros(1, {shape}))",
        )
    if "student.pt2" in record.files:
        yield (
            "In PyTorch, without transprune",
            f"import torch\n\nstudent = torch.export.load({f'{file}/student.pt2'!r}).module()\n"
            f"answers = student(torch.zeros(1, {shape}))",
        )
    if "student.onnx" in record.files:
        yield (
            "Without PyTorch",
            f"import numpy, onnxruntime\n\nsession = onnxruntime.InferenceSession({f'{file}/student.onnx'!r})\n"
            f"name = session.get_inputs()[0].name\ninputs = numpy.zeros((1, {shape}), numpy.float32)\n"
            "(answers,) = session.run(None, {name: inputs})",
        )


def _built(name: str) -> tuple[str, str]:
    """The line that imports what builds a network of the user's own, and the argument that builds it; else empty."""
    if name.startswith("python:"):
        return "# network: the one that was made smaller, built by your code\n", ", model=network"
    if not is_user_model(name):
        return "", ""
    place, _, function = name.rpartition(":")
    file = Path(place)
    is_beside = place.endswith(".py") and file.name != place
    module = file.stem if place.endswith(".py") else place
    beside = f"  # {place}" if is_beside else ""
    return f"from {module} import {function}{beside}\n", f", model={function}()"


def _inputs(record: RunRecord) -> str:
    """How images become inputs and what the outputs stand for; empty where the run does not know."""
    known = part(record.architecture, "preprocessing")
    if not known.get("how"):
        return ""
    figures = [
        f"{name} {', '.join(f'{value:.4g}' for value in known[name])}" for name in ("mean", "std") if known.get(name)
    ]
    said = f"Inputs: {'; '.join([str(known['how']), *figures])}."
    classes = list(map(str, known.get("classes", [])))
    if not classes:
        return said
    named = ", ".join(classes[:MOST_CLASSES]) + (", …, as in architecture.json" if len(classes) > MOST_CLASSES else "")
    return f"{said} Answers: a logit for each class, in this order: {named}."


def _friendliness(record: RunRecord) -> str:
    """Advice if many widths are inefficient on hardware."""
    widths = part(record.result, "widths")
    share, multiple = number(widths.get("share_of_macs")), widths.get("multiple_of")
    if not share:
        return ""
    return (
        f"{percent(share)} of the student’s MACs are in layers that read or write a chosen number of channels that is "
        f"no multiple of {multiple} ({len(widths.get('unfriendly', []))} of {widths.get('layers')} layers). Most "
        f"hardware computes {multiple} channels at a time and is slower with other numbers than the MACs say; "
        f"--divisor {multiple} lets only multiples be chosen."
    )


def _remarks(record: RunRecord) -> Iterator[str]:
    """The decisions and warnings in the journal."""
    for entry in [*record.events("decision"), *record.events("warning")]:
        fields = [str(entry[key]) for key in ("what", "why", "message") if key in entry]
        yield ": ".join(fields) or _plain(entry)


def _command(command: Any) -> str:
    return shlex.join(map(str, command)) if isinstance(command, list) else str(command)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return "none" if value is None else str(value)
