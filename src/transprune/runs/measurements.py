"""The step that measures teacher and student side by side, and the table of what it found."""

from __future__ import annotations

from typing import Any

from transprune.latency.performance import measure, measurements_json
from transprune.options import MeasureOptions
from transprune.reports.words import compact
from transprune.runs.run import Run
from transprune.runs.steps import load_student, load_teacher
from transprune.runtime import print_table


def measure_step(run: Run, options: MeasureOptions | None = None) -> dict[str, Any]:
    """Latency, throughput, memory and file size of teacher and student, into `measurements.json`.

    Returns:
        What the file holds.
    """
    options = options or MeasureOptions()
    networks = {"teacher": load_teacher(run), "student": load_student(run)}
    with run.phase("measure"):
        found = measure(networks, run.example, options, device=run.device)
    content = measurements_json(found, options, run.device)
    run.folder.write_json("measurements.json", content)
    return content


def show_measurements(content: dict[str, Any]) -> None:
    """Prints what was measured, a line for each network, runtime and batch size."""
    rows = [
        [
            each["runtime"],
            each["batch_size"],
            each["network"],
            f"{each['latency_ms']:.3f}",
            f"{each['lower_ms']:.3f} – {each['upper_ms']:.3f}",
            f"{each['throughput']:,.0f}",
            "?" if each["peak_memory_bytes"] is None else compact(each["peak_memory_bytes"], "B"),
            compact(each["file_bytes"], "B"),
        ]
        for each in content["measurements"]
    ]
    options = content["options"]
    print_table(
        f"on {content['environment']['cpu']}, torch on {content['device']}, {options['threads']} CPU thread(s)",
        ["runtime", "batch", "network", "median (ms)", "quartiles (ms)", "samples/s", "peak memory", "file"],
        rows,
    )
