"""The whole job as steps on a run folder: prepare, teach, search, distill, evaluate, export, report."""

from transprune.runs.config_file import preset_options
from transprune.runs.frontier import run_frontier
from transprune.runs.measure_step import measure_step, show_measurements
from transprune.runs.plan import Plan, plan_run, show_plan
from transprune.runs.preparation import open_run, prepare, resume_run
from transprune.runs.results import show_architecture, show_frontier, show_results, show_space, space_as_json
from transprune.runs.run import Run, logging_to
from transprune.runs.run_options import RunOptions, Safety
from transprune.runs.steps import (
    distill_step,
    evaluate_step,
    export_step,
    report_step,
    run_all,
    search_step,
    teach_step,
    write_any_report,
)
from transprune.runs.trackers import Tracking

__all__ = [
    "Plan",
    "Run",
    "RunOptions",
    "Safety",
    "Tracking",
    "distill_step",
    "evaluate_step",
    "export_step",
    "logging_to",
    "measure_step",
    "open_run",
    "plan_run",
    "prepare",
    "preset_options",
    "report_step",
    "resume_run",
    "run_all",
    "run_frontier",
    "search_step",
    "show_architecture",
    "show_frontier",
    "show_measurements",
    "show_plan",
    "show_results",
    "show_space",
    "space_as_json",
    "teach_step",
    "write_any_report",
]
