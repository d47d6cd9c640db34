"""Starts a run in its folder, and resumes it: in one process, or in several together.

Several processes, on one machine or more, take the same steps at the same time. The first one works in the run folder,
each of the others in a temporary copy of it. So only the first one writes to it, and no disk has to be shared.
"""

from __future__ import annotations

import logging
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from transprune.data import ImageData, said_of_left_out
from transprune.errors import RunFolderError
from transprune.latency.measurement import LatencyMeasurement, model_json
from transprune.options import OPTIMIZERS
from transprune.reports.comparison import is_frontier, whole_frontier
from transprune.runs.material import (
    DATA_FILE,
    FILE_SIZE,
    BegunData,
    Given,
    GivenTeacher,
    Material,
    begun_in,
    check_asked,
    collect,
    judge_teacher,
    read_begun,
)
from transprune.runs.phases import TEACHER, chosen_optimizers
from transprune.runs.run import Run, record_start
from transprune.runs.run_options import RunOptions, Safety
from transprune.runtime import RUN_FILES, FolderLock, RunFolder, announce, choose_device, processes
from transprune.runtime.environment import environment
from transprune.space import SearchSpace
from transprune.tas.derivation import least_cost
from transprune.training.update import usual_optimizer

_log = logging.getLogger("transprune.run")


def prepare(
    options: RunOptions,
    out: str | Path,
    *,
    device: torch.device | str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    safety: Safety | None = None,
    part_of: Run | None = None,
    given: Given | None = None,
    foretell: Callable[[Material, torch.device, RunFolder], None] | None = None,
) -> Run:
    """Checks everything that can be checked before training, then creates the run folder, or resumes the run in it.

    Args:
        options: The options that decide the result of the run.
        out: The run folder.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        overwrite: Replace a run in the folder.
        resume: Require a run in the folder; without it, a run is resumed if there is one, otherwise started.
        safety: When to save checkpoints, when to stop, and what to do about numbers that are not finite.
        part_of: The frontier that the run is a point of, with which it shares data and network.
        given: Network, data and task, where the options do not name them.
        foretell: Says what is to come, once all is checked.

    Raises:
        TranspruneError: Model, data, weights, budget, options or folder cannot be used.
    """

    def prepared(folder: str | Path) -> Run:
        is_asked = folder == out  # otherwise it is a copy of the folder that the first process has prepared
        begin = {"overwrite": overwrite and is_asked, "resume": resume and is_asked}
        return _prepare(
            options, folder, device=device, safety=safety, part_of=part_of, given=given, foretell=foretell, **begin
        )

    return opened_by_all(out, prepared)


def _prepare(
    options: RunOptions,
    out: str | Path,
    *,
    device: torch.device | str,
    overwrite: bool,
    resume: bool,
    safety: Safety | None,
    part_of: Run | None,
    given: Given | None,
    foretell: Callable[[Material, torch.device, RunFolder], None] | None,
) -> Run:
    check_asked(out, overwrite=overwrite, resume=resume)
    chosen = choose_device(device)
    shared, reading = (None, None) if part_of is None else (part_of.folder, part_of.reading)
    origin = begun_in(out, options, overwrite=overwrite, part_of=shared)
    material = collect(options, chosen, begun_in=origin, reading=reading, given=given)
    begun = read_begun(origin) if origin else None
    is_new = part_of is None and processes.is_first() and (overwrite or not TEACHER.is_done(RunFolder(out)))
    judged = judge_teacher(material, chosen) if is_new else None
    lock = FolderLock(Path(out))
    folder = RunFolder.create(out, asdict(options), overwrite=overwrite)
    space = _begun_space(folder, material.space)
    run = Run(folder, options, chosen, safety, lock)
    run.data, run.model, run.weights, run.space = material.data, material.model, material.weights, space
    run.reading, run.task = material.reading, material.task
    folder.write_json("environment.json", environment())
    data = material.data
    is_begun = folder.has(DATA_FILE) or folder.has("space.json")  # the latter alone: by an earlier version
    if isinstance(data, ImageData) and not is_begun:
        folder.write_json(DATA_FILE, asdict(begun or BegunData.of(data)))
    folder.write_json("space.json", space.to_json())
    measured = material.latency
    if measured is not None and not folder.has("latency.json"):  # a run keeps its first latency model
        folder.write_json("latency.json", model_json(measured.key, material.space, measured.model))
    if material.file is not None and not folder.has(FILE_SIZE):
        folder.write_json(FILE_SIZE, asdict(material.file))
        run.journal.record("file", **asdict(material.file))
    record_start(run)
    run.journal.record("configuration", **asdict(options))
    if isinstance(data, ImageData) and begun is None:
        _record_images(run, data)
    if judged is not None:
        _record_teacher(run, judged)
    if part_of is None and not is_begun:
        _record_optimizers(run, material)
    _record_space(run, material)
    if measured is not None:
        _record_latency(run, measured)
    if foretell is not None and processes.is_first():
        foretell(material, chosen, folder)
    return run


def _record_images(run: Run, data: ImageData) -> None:
    """Says what of a folder of images was left out, and what was divided."""
    left_out = said_of_left_out(data)
    if left_out:
        run.decide("Left out files beside the images", left_out, is_aloud=True, left_out=dict(data.left_out))
    if data.divided:
        run.decide("Divided the training images", data.divided)


def _record_optimizers(run: Run, material: Material) -> None:
    """Says what the weights learn by; what a transformer does is a decision."""
    what, why = chosen_optimizers(material) or ("", "")
    if what and usual_optimizer(material.model)[0] != OPTIMIZERS[0]:
        run.decide(what, why)
    elif what:
        _log.info("%s: %s", what, why)


def _begun_space(folder: RunFolder, space: SearchSpace) -> SearchSpace:
    """The space with the orders of blocks that the run has found; it must be of the network that the run began with.

    Raises:
        RunFolderError: The search space differs.
    """
    if not folder.has("space.json"):
        return space
    begun = SearchSpace.from_json(folder.read_json("space.json"))
    stages, own = ([replace(stage, free=(), order=()) for stage in each.stages] for each in (begun, space))
    if (begun.groups, stages, begun.layers) != (space.groups, own, space.layers):
        raise RunFolderError(
            f"cannot go on with the run in '{folder.path}': the network is not the one that it began with, other sizes "
            "can be chosen now; bring back the code that the run began with, or start anew with --overwrite"
        )
    return space.ordered({stage.name: stage.order for stage in begun.stages if stage.order})


def _record_teacher(run: Run, given: GivenTeacher) -> None:
    """Says what a given teacher can do."""
    announce(f"teacher: {given}")
    run.decide(
        f"Looked first, and {given}",
        "; ".join(given.doubts) or "nothing looks wrong",
        is_aloud=bool(given.doubts),
        metric=given.metric,  # a name of the user's, which may be that of another entry
        figure=given.figure,
        samples=given.samples,
    )


def _record_space(run: Run, material: Material) -> None:
    """Records the size of the search space, and the budgets in units of cost, in the journal."""
    space = material.space
    limits = [budget.limit(space, run.costs) for budget in material.budgets]
    run.journal.record(
        "space",
        groups=len(space.groups),
        stages=len(space.stages),
        architectures=float(space.count()),
        fixed=[asdict(fixed) for fixed in space.fixed],
        budgets=[
            {
                "kind": limit.cost.kind,
                "full": space.cost(limit.cost, space.full_architecture()),
                "smallest": least_cost(space, limit.cost),
                "target": limit.most,
            }
            for limit in limits
        ],
    )


def _record_latency(run: Run, measured: LatencyMeasurement) -> None:
    """Records how latency was measured, and how accurate the model is, in the journal."""
    validation = measured.model.validation
    run.journal.record(
        "latency",
        measured_for=measured.key,
        seconds=measured.seconds,
        median_error=validation.median,
        worst_error=validation.worst,
        predicted=validation.predicted,
        measured=validation.measured,
    )


def open_run(path: str | Path, *, device: str = "auto", safety: Safety | None = None) -> Run:
    """Opens the run in a folder for further steps.

    Args:
        path: The folder.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        safety: As in `prepare`.

    Raises:
        RunFolderError: The folder is missing, is not a run, is a frontier, or is in use by another process.
    """
    return opened_by_all(path, lambda folder: _open_run(RunFolder.open(folder), device, safety))


def _open_run(folder: RunFolder, device: str, safety: Safety | None) -> Run:
    options = read_options(folder)
    if is_frontier(folder):
        raise whole_frontier(folder, "do this step in")
    run = Run(folder, options, device, safety, FolderLock(folder.path))
    record_start(run)
    return run


def resume_run(path: str | Path, *, device: str = "auto", safety: Safety | None = None) -> Run:
    """Resumes the run in a folder, as the command that started it would.

    Raises:
        TranspruneError: The folder is missing or not a run, or as in `prepare`.
    """
    options = processes.from_first(lambda: read_options(RunFolder.open(path)))
    return prepare(options, path, device=device, safety=safety)


def read_options(folder: RunFolder) -> RunOptions:
    """The options of the run in a folder.

    Raises:
        RunFolderError: Its config.toml is malformed.
    """
    return RunOptions.from_config(folder.config, folder.path)


def opened_by_all(path: str | Path, opened: Callable[[str | Path], Run]) -> Run:
    """Opens a run in all processes: in the run folder in the first one, in a copy of it in the others.

    Args:
        path: The run folder of the first process.
        opened: Opens the run in a folder.

    Raises:
        TranspruneError: In the first process, whatever `opened` raises; in the others, if it failed there.
    """
    if processes.count() == 1:
        return opened(path)
    if processes.is_first():
        runs: list[Run] = []

        def first() -> dict[str, bytes]:
            with processes.alone():
                runs.append(opened(path))
            return _contents(runs[0].folder)

        processes.from_first(first)
        runs[0].decide(
            f"{processes.count()} processes share the work",
            "torchrun started them; each learns from its share of every batch, and the first writes",
            processes=processes.count(),
        )
        return runs[0]
    contents = processes.from_first(dict[str, bytes])
    folder = tempfile.TemporaryDirectory(prefix="transprune-")
    for name, content in contents.items():
        Path(folder.name, name).write_bytes(content)
    run = opened(folder.name)
    weakref.finalize(run, folder.cleanup)
    return run


def _contents(folder: RunFolder) -> dict[str, bytes]:
    """The contents of the files that later steps read, by name."""
    return {name: folder.file(name).read_bytes() for name in RUN_FILES if name != "run.log" and folder.has(name)}
