"""The whole job as steps on a run folder: prepare, teach, search, distill, evaluate, export, report."""

from transprune.pipeline.results import show_architecture, show_results, show_space, space_as_json
from transprune.pipeline.run import Run, RunOptions, Safety, logging_to, open_run, prepare, resume_run
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
    "Safety",
    "distill_step",
    "evaluate_step",
    "export_step",
    "logging_to",
    "open_run",
    "prepare",
    "report_step",
    "resume_run",
    "run_all",
    "search_step",
    "show_architecture",
    "show_results",
    "show_space",
    "space_as_json",
    "teach_step",
]
