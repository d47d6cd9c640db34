"""Several budgets in one go: one teacher, one supernet, and for each budget a search beside uniform scaling.

The folder holds what is shared; every point has a run folder of its own in it, such as `macs-0.3`, and uniform scaling
one beside it, `macs-0.3-uniform`. They are runs like any other: every verb works on them.

Shared is `shared.safetensors`: the supernet's weights, trained for `search.epochs` with all candidates drawn alike.
Each search goes on from them for half as many epochs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transprune.architecture import Architecture
from transprune.budget import limits_of, points
from transprune.errors import BudgetError
from transprune.reports.comparison import frontier_record, write_frontier
from transprune.runs.preparation import prepare
from transprune.runs.run import Run, logging_to
from transprune.runs.run_options import RunOptions
from transprune.runs.steps import (
    conclude,
    distill_step,
    load_teacher,
    search_step,
    teach_step,
    write_architecture,
)
from transprune.runtime import RunFolder, processes
from transprune.tas.baselines import uniform_architecture
from transprune.tas.search import train_shared


def run_frontier(run: Run, *, overwrite: bool = False) -> None:
    """Trains what is shared, runs every point that is not done yet, and draws the curve.

    Args:
        run: A run whose budget names several amounts.
        overwrite: Start the points anew.
    """
    with logging_to(run):
        teach_step(run)
        share_step(run)
    folders = []
    for budgets in points(run.options.budget):
        with _point(run, budgets, "", overwrite) as searched:
            _finish(searched, None)
        folders.append((searched.folder, _uniform(run, budgets, overwrite)))
    if not processes.is_first():
        return
    run.folder.write_json("frontier.json", frontier_record(folders))
    write_frontier(run.folder)


def share_step(run: Run) -> None:
    """The weights that all searches start from."""
    if run.folder.has("shared.safetensors"):
        return
    options = run.options
    model = load_teacher(run) if options.search.start == "model" else run.model
    space = replace(run.space, reading=run.reading)
    with run.training("supernet", options.search.epochs) as setup:
        weights = train_shared(model, run.data, options.search, space=space, setup=setup)
    run.folder.write_tensors("shared.safetensors", weights)
    run.checkpoints.clear()


def point_options(options: RunOptions, budgets: tuple[str, ...]) -> RunOptions:
    """What decides the run of one point: its search goes on from the shared weights for half the epochs."""
    epochs = -(-options.search.epochs // 2)
    search = replace(
        options.search,
        epochs=epochs,
        warm_up_epochs=min(options.search.warm_up_epochs, epochs - 1),
        architecture_after=0.0,
        start="model",
        importance="none",  # the shared weights stand in order already
    )
    return replace(options, budget=budgets, search=search)


def point_name(budgets: tuple[str, ...]) -> str:
    """The folder of one point in that of the frontier, such as `macs-0.3`."""
    return "-".join(budgets).replace("=", "-")


def _point(run: Run, budgets: tuple[str, ...], ending: str, overwrite: bool) -> Run:
    """The run of one point, with what it shares."""
    point = prepare(
        point_options(run.options, budgets),
        Path(run.folder.path, point_name(budgets) + ending),
        device=str(run.device),
        overwrite=overwrite,
        safety=replace(run.safety, max_minutes=run.checkpoints.minutes_left()),
        part_of=run,
    ).followed_by(run.trackers)
    for file in ("teacher.safetensors", "shared.safetensors"):
        if not point.folder.has(file):
            point.folder.write_bytes(file, run.folder.file(file).read_bytes())
    return point


def _uniform(run: Run, budgets: tuple[str, ...], overwrite: bool) -> RunFolder | None:
    """The run of uniform widths beside a search; None: there are none within the budgets."""
    try:
        architecture = uniform_architecture(run.space, limits_of(budgets, run.space, run.costs))
    except BudgetError as error:
        with logging_to(run):
            run.decide(f"Left uniform widths out at {', '.join(budgets)}", str(error))
        return None
    with _point(run, budgets, "-uniform", overwrite) as uniform:
        _finish(uniform, architecture)
    return uniform.folder


def _finish(run: Run, uniform: Architecture | None) -> None:
    """Every step of a point that is not done yet; with an architecture of uniform widths nothing is searched."""
    if run.folder.has("report.html"):
        return
    with logging_to(run):
        if uniform is None:
            search_step(run)
        else:
            _scale_step(run, uniform)
        distill_step(run)
        conclude(run)


def _scale_step(run: Run, architecture: Architecture) -> None:
    """The architecture of uniform widths, whose student starts and learns like a searched one."""
    if run.folder.has("architecture.json"):
        return
    run.decide(
        "Scaled all widths uniformly",
        f"for comparison: the largest share of {' and '.join(run.options.budget)}, every block kept",
        architecture=architecture.to_json(),
    )
    if run.options.student == "supernet":
        run.folder.write_bytes("supernet.safetensors", run.folder.file("shared.safetensors").read_bytes())
    write_architecture(run, architecture)
