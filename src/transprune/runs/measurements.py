"""The step that measures teacher and student side by side, and the table of what it found."""

from __future__ import annotations

from typing import Any

from transprune.exports.load import load
from transprune.latency.performance import measure, measurements_json
from transprune.options import MeasureOptions
from transprune.reports.words import compact
from transprune.runs.phases import MEASURE, load_teacher
from transprune.runs.run import Run
from transprune.runtime import print_table


def measure_step(run: Run, options: MeasureOptions | None = None) -> dict[str, Any]:
    """Latency, throughput, memory and file size of teacher and student, into `measurements.json`.

    Returns:
        What the file holds.
    """
    options = options or MeasureOptions()
    student = load(run.folder.path, model=run.model)
    networks = {"teacher": load_teacher(run), "student": student}
    with run.phase(MEASURE.name):
        found = measure(networks, run.example, options, device=run.device)
    content = measurements_json(found, options, run.device)
    run.folder.write_json(MEASURE.file, content)
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
