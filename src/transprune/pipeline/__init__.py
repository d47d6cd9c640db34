"""The whole job as steps on a run folder: prepare, teach, search, distill, evaluate, export, report."""

from transprune.pipeline.frontier import run_frontier
from transprune.pipeline.measuring import measure_step, show_measurements
from transprune.pipeline.results import show_architecture, show_results, show_space, space_as_json
from transprune.pipeline.run import Run, RunOptions, logging_to, open_run, prepare
from transprune.pipeline.steps import (
    distill_step,
    evaluate_step,
    export_step,
    report_step,
    run_all,
    search_step,
    teach_step,
)

__all__ = [
    "Run",
    "RunOptions",
    "distill_step",
    "evaluate_step",
    "export_step",
    "logging_to",
    "measure_step",
    "open_run",
    "prepare",
    "report_step",
    "run_all",
    "run_frontier",
    "search_step",
    "show_architecture",
    "show_measurements",
    "show_results",
    "show_space",
    "space_as_json",
    "teach_step",
]
