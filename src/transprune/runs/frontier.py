"""Several budgets in one go: one teacher, one supernet, and for each budget a search beside uniform scaling.

The folder holds what is shared; every point has a run folder of its own in it, such as `macs-0.3`, and uniform scaling
one beside it, `macs-0.3-uniform`. They are runs like any other: every verb works on them.

Shared is `shared.safetensors`: the supernet's weights, trained for `search.epochs` with all candidates drawn alike.
Each search goes on from them for half as many epochs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transprune.reports.comparison import frontier_record, write_frontier
from transprune.runs.phases import REPORT, SHARED, Course, complete, courses, scale
from transprune.runs.preparation import prepare
from transprune.runs.run import Run, logging_to
from transprune.runs.steps import conclude
from transprune.runtime import RunFolder, processes


def run_frontier(run: Run, *, overwrite: bool = False) -> None:
    """Trains what is shared, runs every point that is not done yet, and draws the curve.

    Args:
        run: A run whose budget names several amounts.
        overwrite: Start the points anew.
    """
    shared, *points = courses(run.options, run.space, run.costs)
    with logging_to(run):
        for phase in shared.phases:
            complete(run, phase)
    folders = [_do(run, point, overwrite) for point in points]
    if not processes.is_first():
        return
    pairs = zip(folders[::2], folders[1::2], strict=True)
    run.folder.write_json("frontier.json", frontier_record([(one, other) for one, other in pairs if one is not None]))
    write_frontier(run.folder)


def _do(run: Run, course: Course, overwrite: bool) -> RunFolder | None:
    """Every step of a point that is not done yet, and its folder; None: it is left out."""
    if course.left_out:
        with logging_to(run):
            run.decide(f"Left uniform widths out at {', '.join(course.options.budget)}", course.left_out)
        return None
    with _point(run, course, overwrite) as point:
        if not REPORT.is_done(point.folder):
            with logging_to(point):
                if course.scaled is not None:
                    scale(point, course.scaled)
                for phase in course.phases:
                    complete(point, phase)
                conclude(point)
        return point.folder


def _point(run: Run, course: Course, overwrite: bool) -> Run:
    """The run of one point, with what it shares."""
    point = prepare(
        course.options,
        Path(run.folder.path, course.folder),
        device=str(run.device),
        overwrite=overwrite,
        safety=replace(run.safety, max_minutes=run.checkpoints.minutes_left()),
        part_of=run,
    ).followed_by(run.trackers)
    for phase in SHARED:
        if not phase.is_done(point.folder):
            point.folder.write_bytes(phase.file, run.folder.file(phase.file).read_bytes())
    return point
