"""The whole job, as steps on a run folder: prepare, teach, search, distill, evaluate, export, report."""

from typing import TYPE_CHECKING

from transprune.on_demand import on_demand

if TYPE_CHECKING:
    from transprune.runs.compression import compress_step as compress_step
    from transprune.runs.compression import derive_run as derive_run
    from transprune.runs.compression import find_budget as find_budget
    from transprune.runs.compression import keep_answer as keep_answer
    from transprune.runs.material import network_and_example as network_and_example
    from transprune.runs.plan import Plan as Plan
    from transprune.runs.plan import foretell as foretell
    from transprune.runs.plan import plan_run as plan_run
    from transprune.runs.plan import show_plan as show_plan
    from transprune.runs.preparation import open_run as open_run
    from transprune.runs.preparation import prepare as prepare
    from transprune.runs.preparation import resume_run as resume_run
    from transprune.runs.results import show_architecture as show_architecture
    from transprune.runs.results import show_derived as show_derived
    from transprune.runs.results import show_frontier as show_frontier
    from transprune.runs.results import show_measurements as show_measurements
    from transprune.runs.results import show_quantised as show_quantised
    from transprune.runs.results import show_results as show_results
    from transprune.runs.results import show_space as show_space
    from transprune.runs.results import space_as_json as space_as_json
    from transprune.runs.run import Run as Run
    from transprune.runs.run import logging_to as logging_to
    from transprune.runs.run_options import RunOptions as RunOptions
    from transprune.runs.run_options import Safety as Safety
    from transprune.runs.run_options import Tracking as Tracking
    from transprune.runs.run_options import preset_options as preset_options
    from transprune.runs.steps import compress_all as compress_all
    from transprune.runs.steps import distill_step as distill_step
    from transprune.runs.steps import evaluate_step as evaluate_step
    from transprune.runs.steps import export_pretrained_step as export_pretrained_step
    from transprune.runs.steps import export_step as export_step
    from transprune.runs.steps import measure_step as measure_step
    from transprune.runs.steps import quantise_step as quantise_step
    from transprune.runs.steps import report as report
    from transprune.runs.steps import report_step as report_step
    from transprune.runs.steps import run_all as run_all
    from transprune.runs.steps import run_frontier as run_frontier
    from transprune.runs.steps import search_step as search_step
    from transprune.runs.steps import teach_step as teach_step
else:
    __all__, __getattr__, __dir__ = on_demand(__spec__)
