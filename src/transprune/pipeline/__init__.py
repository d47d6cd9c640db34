"""The whole job as steps on a run folder: prepare, teach, search, distill, evaluate, export, report."""

from transprune.pipeline.results import show_architecture, show_results, show_space
from transprune.pipeline.run import Run, RunOptions, logging_to, open_run, prepare, read_space
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
    "open_run",
    "prepare",
    "read_space",
    "report_step",
    "run_all",
    "search_step",
    "show_architecture",
    "show_results",
    "show_space",
    "teach_step",
]
