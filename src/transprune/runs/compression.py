"""Compression without training in a run folder, and runs for other budgets derived from existing ones."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transprune.architecture import Architecture
from transprune.budget import limits_of, points
from transprune.data import Augmentation, ImageData, MemorySplit, held, make_loader
from transprune.errors import DataError, OptionError, RunFolderError, TranspruneError
from transprune.latency.stopwatch import UNTIMED, Timekeeper
from transprune.options import CompressOptions
from transprune.reading.trace import Example
from transprune.runs.material import DATA_FILE, FILE_SIZE, Material, collect, read_begun
from transprune.runs.phases import (
    COMPRESS,
    COMPRESSED,
    DISTILL,
    SEARCH,
    SUPERNET_WEIGHTS,
    TEACHER,
    amounts,
    complete,
    load_teacher,
    write_architecture,
)
from transprune.runs.run import Run, costs_in, logging_to, record_start
from transprune.runs.run_options import RunOptions
from transprune.runtime import FolderLock, RunFolder, announce, choose_device, processes, to_plain
from transprune.runtime.environment import environment
from transprune.runtime.structures import as_inputs, emptied, filled, of_plan, tensors_in, to_plan
from transprune.scores.compress import check_enough, drawn, gather_labelled, smallest
from transprune.scores.rounds import Compression, compress_by_scores
from transprune.scores.score import Scores
from transprune.space import SearchSpace
from transprune.tas.derivation import check_attainable, derive_with_proof
from transprune.tas.probabilities import Probabilities
from transprune.training.train import distill

SAMPLES, SCORES, _ = COMPRESS.files
TAKEN_OVER = (DATA_FILE, "space.json", "latency.json", FILE_SIZE, TEACHER.file, SUPERNET_WEIGHTS, SAMPLES, SCORES)
"""The files that a derived run copies from its source, if they exist."""
LOSE = "lose.json"
TRIAL = 5
"""A network of which it is looked what a run would lose with it has so small a part of the epochs of distillation."""


def find_budget(
    options: RunOptions, lose: float, out: str | Path, *, device: str = "auto", overwrite: bool = False
) -> dict[str, Any]:
    """Finds the smallest budget with which no more is lost than is allowed, by `smallest`.

    Where a compression is asked for, nothing is trained; else every network is distilled for a fifth of the epochs that
    the student will have, at least one.

    Args:
        options: The options of the run; its budget is a kind alone, such as macs.
        lose: By how much the main metric may get worse.
        out: The folder that the run will have; if it was begun with the same question, the answer is read from it.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        overwrite: Whether the run in that folder is to be replaced.

    Returns:
        The contents of `lose.json`: the question, the budget, and what was tried.

    Raises:
        OptionError: The budget has an amount, the network is not trained, or there are several processes.
        BudgetError: As `smallest`.
        TranspruneError: As `collect`.
    """
    kind = _only_kind(options)
    asked = {"lose": lose, "kind": kind}
    folder = RunFolder(Path(out))
    if folder.has(LOSE) and not overwrite:
        known: dict[str, Any] = folder.read_json(LOSE)
        if {name: known.get(name) for name in asked} == asked:
            return known
    chosen = choose_device(device)
    material = collect(replace(options, budget=(f"{kind}=1",)), chosen)
    model = _trained(material)
    how = options.compress or CompressOptions()
    short = max(1, options.distill.epochs // TRIAL)
    brief = replace(options.distill, epochs=short, warm_up_epochs=short / 10, evaluate_every=short)
    found = smallest(
        model.to(chosen),
        material.data,
        lose,
        kind,
        train=None
        if options.compress
        else lambda student: distill(student, model, material.data, brief, task=material.task),
        samples=how.samples,
        space=material.space,
        costs=material.costs,
        latency=options.latency,
        task=material.task,
        by_loss=how.by_loss,
        repair=how.repair,
        seed=options.seed,
    )
    tried = [{**asdict(each), "budget": str(each.budget)} for each in found.tried]
    answer = {**asked, "budget": str(found.budget), "metric": found.metric, "before": found.before, "tried": tried}
    return dict(to_plain(answer))


def keep_answer(run: Run, answer: Mapping[str, Any]) -> None:
    """Writes down how the budget of a run was found, as `find_budget` said."""
    if run.folder.has(LOSE):
        return
    lost = next(each["lost"] for each in answer["tried"] if each["budget"] == answer["budget"])
    run.decide(
        f"Took the budget {answer['budget']}",
        f"of {len(answer['tried'])} that were tried it is the smallest that loses at most {answer['lose']:g} of "
        f"{answer['metric']} (of {answer['before']:.4g} it lost {max(lost, 0):.3g})",
        tried=answer["tried"],
    )
    run.folder.write_json(LOSE, answer)


def _only_kind(options: RunOptions) -> str:
    """The kind of cost that is to be small."""
    if len(options.budget) != 1 or "=" in options.budget[0]:
        raise OptionError(
            f"cannot use --lose with --budget {' '.join(options.budget)}: the amount is what is looked for; expected "
            "the kind of cost alone, such as --budget macs or --budget latency"
        )
    if processes.count() > 1:
        raise OptionError(
            f"cannot use --lose in {processes.count()} processes: expected one; give them the budget that it finds"
        )
    return options.budget[0].strip().lower()


def _trained(material: Material) -> nn.Module:
    """The unpruned network with its weights."""
    weights, data = material.weights, material.data
    if weights is None or not weights.is_whole:
        raise OptionError(
            f"cannot use --lose with {material.options.model!r}: what a network loses is known only once it is "
            "trained; expected its weights (--weights FILE)"
        )
    if isinstance(data, ImageData) and not data.is_labelled:
        raise OptionError(
            f"cannot use --lose with {material.options.data!r}: what is lost is seen from labels; expected data with "
            "labels, or an amount, such as --budget macs=0.5"
        )
    return weights.put_into(material.model)


def compress_step(run: Run) -> None:
    """Makes the smaller network from samples of the training images: scores, derives, shrinks and repairs."""
    complete(run, TEACHER)
    if COMPRESS.is_done(run.folder):
        run.decide(f"Kept {COMPRESS.file}", "the folder holds it already, from the same configuration")
        return
    with run.phase(COMPRESS.name):
        samples, right = _drawn_samples(run)
        tensors = {f"{TARGET}{place}": each for place, each in enumerate(tensors_in(right))}
        described = {} if right is None else {"targets": _plan_of(right)}
        run.folder.write_tensors(SAMPLES, {**samples, **tensors})
        found = _compressed(run, right)
        run.folder.write_json(SCORES, {"rounds": [each.to_json() for each in found.scores], **described})
        write_architecture(run, found.architecture)
        _keep_student(run, found)


def derive_run(
    path: str | Path, budget: Sequence[str], out: str | Path, *, device: str = "auto", overwrite: bool = False
) -> RunFolder:
    """Makes a run for another budget, from the scores of a compression or the probabilities of a finished search.

    Args:
        path: The folder of the existing run.
        budget: The budgets of the new run.
        out: The folder of the new run; created if missing.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        overwrite: Replace a run in that folder.

    Returns:
        The new folder: with a student (from scores), or ready for distillation (from probabilities).

    Raises:
        RunFolderError: The existing run is missing, unfinished or a frontier; or the new folder cannot be used.
        BudgetError: No architecture is within the budgets.
    """
    known = RunFolder.open(path)
    if Path(out).resolve() == known.path.resolve():
        raise RunFolderError(
            f"cannot derive into '{out}': it is the folder that is derived from; expected another one (--out RUN)"
        )
    options = replace(RunOptions.from_config(known.config, known.path), budget=tuple(budget))
    if len(points(known.config["budget"])) > 1:
        from transprune.reports.comparison import whole_frontier  # imports matplotlib, which takes a second

        raise whole_frontier(known, "derive from")
    source = SEARCH if options.compress is None else COMPRESS
    for phase in (TEACHER, source):
        known.require(phase.file, made_by=phase.verb)
    space = SearchSpace.from_json(known.read_json("space.json"))
    limits = limits_of(budget, space, costs_in(known, space))
    check_attainable(space, limits)
    probabilities = _probabilities(known, space) if options.compress is None else None
    lock = FolderLock(Path(out))
    folder = RunFolder.create(out, asdict(options), overwrite=overwrite)
    for name in filter(known.has, TAKEN_OVER):
        shutil.copyfile(known.file(name), folder.file(name))
    folder.write_json("environment.json", environment())
    with Run(folder, options, device, None, lock) as run, logging_to(run):
        record_start(run)
        run.decide(f"Derived from the run in '{known.path}'", "what it knows serves any budget")
        with run.phase(source.name):
            if probabilities is None:
                if IMAGES in folder.read_tensors(SAMPLES):
                    run.data = _samples(run)
                kept = folder.read_json(SCORES)
                scores = [Scores.from_json(each) for each in kept["rounds"]]
                found = _compressed(run, _targets(run, kept.get("targets")), scores)
                _describe(folder, known, found.architecture)
                _keep_student(run, found)
            else:
                derived, _ = _keeper(run).settled(
                    "what was derived", space, limits, partial(derive_with_proof, space, probabilities)
                )
                run.decide(
                    f"Chose an architecture of {amounts(space, limits, derived.architecture)}",
                    f"of all that use what is allowed it is the most probable one found: {derived}",
                    architecture=derived.architecture.to_json(),
                )
                _describe(folder, known, derived.architecture)
    return folder


def _keeper(run: Run) -> Timekeeper:
    """That of the run, if the network can still be made, which nothing else needs here."""
    try:
        return run.keeper
    except TranspruneError as error:
        run.decide("The architecture is not held against the clock", str(error), is_aloud=True)
        return UNTIMED


def _describe(folder: RunFolder, known: RunFolder, architecture: Architecture) -> None:
    """Writes `architecture.json`, with the network and preprocessing from that of the existing run."""
    folder.write_json(SEARCH.file, {**known.read_json(SEARCH.file), **architecture.to_json()})


def _probabilities(folder: RunFolder, space: SearchSpace) -> Probabilities:
    """The probabilities at the end of a search.

    Raises:
        RunFolderError: The folder's journal has none.
    """
    entries = folder.read_journal()
    epochs = [entry for entry in entries if "width_probabilities" in entry]
    if not epochs:
        raise RunFolderError(
            f"cannot derive from the run in '{folder.path}': its journal has no probabilities of a search; name the "
            "run that searched, or one that `transprune compress` wrote"
        )
    found: Mapping[str, Any] = epochs[-1]
    return Probabilities.of(space, {**found["width_probabilities"], **found["depth_probabilities"]})


def _compressed(run: Run, right: Any, scores: Sequence[Scores] = ()) -> Compression:
    """Compresses the teacher to the budget; computes scores unless they are given.

    What is right for the samples lets the loss decide; None: how far the outputs move decides.
    """
    space = replace(run.space, reading=run.reading)
    limits = limits_of(run.options.budget, space, run.costs)

    def on_round(number: int, found: Architecture) -> None:
        announce(f"{COMPRESS.name}: round {number} found {amounts(space, limits, found)}")

    return compress_by_scores(
        load_teacher(run).to(run.device),
        space,
        limits,
        _inputs(run),
        task=run.task,
        targets=right,
        scores=scores,
        repair=_options(run).repair,
        timekeeper=run.keeper,
        on_round=on_round,
    )


def _keep_student(run: Run, found: Compression) -> None:
    """Writes the student; the file that marks the phase as done comes last."""
    is_repaired = _options(run).repair
    run.keep_space(found.space)
    run.decide(
        f"Chose an architecture of {amounts(found.space, found.limits, found.architecture)}",
        "of those that keep to the budget "
        + ("it has the least loss on half of the samples" if _options(run).by_loss else "its outputs move least"),
        architecture=found.architecture.to_json(),
    )
    run.decide(
        "The student is not trained",
        f"it has the teacher's weights{', repaired' if is_repaired else ', as they were cut'}; on the samples its "
        f"outputs are {found.moved:.3g} from the teacher's, by the loss of distillation; `transprune distill "
        f"{run.folder.in_shell}` trains it",
        moved=found.moved,
    )
    state = {name: tensor.cpu() for name, tensor in found.student.state_dict().items()}
    run.folder.write_tensors(DISTILL.file, state)
    run.folder.write_tensors(COMPRESSED, state)


def _options(run: Run) -> CompressOptions:
    found = run.options.compress
    assert found is not None
    return found


IMAGES = "images"
"""The name of kept images; other inputs are numbered."""
TARGET = "target."
"""What the names of the tensors begin with that are right for the samples; a number follows."""


def _drawn_samples(run: Run) -> tuple[dict[str, Tensor], Any]:
    """Random training images, uint8 [samples, channels, rows, columns], or the first inputs of other data.

    And what is right for them; None where nobody asks for it.
    """
    data, how, seed = run.data, _options(run), run.options.seed
    if not isinstance(data, ImageData):
        inputs, _, right = gather_labelled(
            run.model, data, how.samples, task=run.task, seed=seed, has_labels=how.by_loss
        )
        return {str(place): each for place, each in enumerate(tensors_in(inputs))}, right
    places = drawn(len(data.train), how.samples, seed=seed)
    check_enough(len(places))
    split = held(data.train.subset(places), data.image_size)
    return {IMAGES: split.images}, split.labels if how.by_loss else None


def _plan_of(right: Any) -> Any:
    """The structure of what is right for the samples.

    Raises:
        DataError: It cannot be kept.
    """
    try:
        return to_plan(right)
    except TypeError as error:
        raise DataError(
            f"cannot keep what is right for the samples: {error}; expected tensors, in tuples, lists or mappings if "
            "there are several; in Python `compress` takes others too"
        ) from error


def _targets(run: Run, plan: Any) -> Any:
    """What is right for the kept samples, of the structure that was kept; None where nothing was."""
    if plan is None:
        return None
    kept = run.folder.read_tensors(SAMPLES)
    names = [name.removeprefix(TARGET) for name in kept if name.startswith(TARGET)]
    return filled(of_plan(plan), [kept[TARGET + number] for number in sorted(names, key=int)])


def _samples(run: Run) -> ImageData:
    """The kept samples as a data set, so that the original images need not be read again."""
    begun, images = read_begun(run.folder), run.folder.read_tensors(SAMPLES)[IMAGES]
    assert begun is not None
    split = MemorySplit(images, torch.zeros(len(images), dtype=torch.int64))
    return ImageData(
        name=run.options.data,
        train=split,
        test=split,
        classes=begun.classes,
        image_size=begun.image_size,
        mean=begun.mean,
        std=begun.std,
        augmentation=Augmentation(),
        is_labelled=False,
    )


def _inputs(run: Run) -> Example:
    """The samples in one batch, preprocessed for the network."""
    kept = run.folder.read_tensors(SAMPLES)
    if IMAGES not in kept:
        tensors = [kept[name].to(run.device) for name in sorted(filter(str.isdigit, kept), key=int)]
        return filled(emptied(as_inputs(run.example)), tensors)
    data = _samples(run)
    loader = make_loader(data.train, data, batch_size=len(data.train), train=False, seed=0, device=run.device)
    images, _ = next(iter(loader))
    return images
