"""The steps of a run, each reading the files of earlier ones; and frontiers, which are several runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transprune.architecture import Architecture
from transprune.budget import Budget, parse_budgets, points
from transprune.costs import CACHE, COSTS, FileSize, in_bytes
from transprune.data import ImageData, LoaderData, make_loader
from transprune.data.scenes import class_names
from transprune.errors import ExportError, LatencyError, ModelError, OptionError, RunFolderError, expected_one_of
from transprune.exports.formats import check_pt2, export_program, pt2_bytes, takes_any_batch
from transprune.exports.runtimes import RUNTIMES, check_files, files_for, find_runtime
from transprune.latency.performance import measure, measurements_json, most_time, quantise
from transprune.latency.stopwatch import Latency, measure_latencies
from transprune.models.configured import configured
from transprune.models.hugging_face import Origin, export_pretrained, is_hugging_face
from transprune.options import DEFAULT_PRESET, MeasureOptions
from transprune.reading.inspection import CONFIGURATION, inspect_for, ties_of
from transprune.reading.macs import count_macs, friendliness
from transprune.reading.networks import unwrapped
from transprune.reading.trace import Example
from transprune.reports.comparison import frontier_record, write_frontier
from transprune.reports.examples import examples_record, scenes_record
from transprune.reports.report import write_report
from transprune.reports.words import SAVED, amount, measured, metric_label, metric_name, spent
from transprune.runs.compression import compress_step
from transprune.runs.material import IN_PYTHON, BegunData, Given, read_begun, told_apart
from transprune.runs.phases import (
    COMPRESS,
    COMPRESSED,
    DISTILL,
    EVALUATE,
    EXPORT,
    MEASURE,
    ONE_BUDGET,
    QUANTISE,
    REPORT,
    SEARCH,
    SHARED,
    TEACHER,
    Course,
    Phase,
    complete,
    courses,
    load_architecture,
    load_student,
    load_teacher,
    scale,
    write_architecture,
)
from transprune.runs.plan import foretell
from transprune.runs.preparation import prepare, read_options
from transprune.runs.results import model_card, network_figures
from transprune.runs.run import Run, log, logging_to
from transprune.runs.run_options import RunOptions, Safety, preset_options
from transprune.runtime import RunFolder, announce, choose_device, processes
from transprune.runtime.structures import copied
from transprune.runtime.tensors import encode_tensors
from transprune.runtime.terminal import milliseconds, silent
from transprune.scores.rounds import Compression
from transprune.searching.search import SearchResult
from transprune.space import SearchSpace
from transprune.training.batches import AnyData, Data, as_data, example_of, feed
from transprune.training.detection import DetectionTask
from transprune.training.evaluation import Answers, answers, detections, evaluate
from transprune.training.tasks import Task, classification

EXPORT_CHECKS = (1, 2, 7, 64)
"""Batch sizes with which exported files are compared with torch."""


def run_all(run: Run) -> None:
    """Runs all steps in order."""
    with logging_to(run):
        if run.options.compress is not None:
            compress_step(run)  # writes architecture.json, so that nothing is searched below
        for phase in ONE_BUDGET:
            complete(run, phase)
        conclude(run)


def compress_all(run: Run) -> None:
    """Runs all steps of a compression without training."""
    with logging_to(run):
        compress_step(run)
        conclude(run)


def conclude(run: Run) -> None:
    """Evaluates, exports and writes the report, in the first process only; keeps what there is of the same networks."""
    if not processes.is_first():
        return
    with processes.alone():
        if not (_has_same_images(run) and _is_newer(run.folder, EVALUATE, TEACHER, DISTILL)):
            evaluate_step(run)
        if not _is_newer(run.folder, EXPORT, TEACHER, DISTILL):
            _export_what_can_be(run)
        in_eight_bits = [QUANTISE] if run.options.int8 else []
        if in_eight_bits and not _is_newer(run.folder, QUANTISE, TEACHER, DISTILL):
            quantise_step(run)
        if not _is_newer(run.folder, REPORT, TEACHER, DISTILL, EVALUATE, *in_eight_bits):
            report_step(run)


def _export_what_can_be(run: Run) -> None:
    """Exports as `export_step` does, or for torch alone, or nothing: a report is worth having without a file, too."""
    try:
        export_step(run)
    except ExportError as error:
        run.decide("The student has no file for other runtimes than torch", str(error), is_aloud=True)
        for name in EXPORT.files:  # of an earlier student
            run.folder.file(name).unlink(missing_ok=True)
        try:
            export_step(run, is_for_torch=True)
        except ExportError as without:
            run.decide("The student is not exported", str(without), is_aloud=True)


def _has_same_images(run: Run) -> bool:
    """Whether there are as many images as when the run began."""
    begun = read_begun(run.folder)
    return begun is None or not isinstance(run.data, ImageData) or begun.counts == BegunData.of(run.data).counts


def _is_newer(folder: RunFolder, phase: Phase, *made_from: Phase) -> bool:
    """Whether the files of a phase were written after those that they are made from."""
    if not all(map(folder.has, [phase.file, *(each.file for each in made_from)])):
        return False
    written = folder.file(phase.file).stat().st_mtime_ns
    return all(folder.file(each.file).stat().st_mtime_ns <= written for each in made_from)


def teach_step(run: Run) -> None:
    """Makes the teacher from given weights, or by training the unpruned network, from those given weights that fit."""
    complete(run, TEACHER)


def search_step(run: Run) -> None:
    """Searches an architecture within the budget."""
    complete(run, SEARCH)


def distill_step(run: Run) -> None:
    """Makes the student, the architecture as a plain network, and trains it with the teacher."""
    complete(run, DISTILL)


def evaluate_step(run: Run) -> None:
    """Writes accuracy, cost and agreement of teacher and student to `result.json`; without labels, no accuracy."""
    teacher, student = load_teacher(run), load_student(run)
    options = run.options
    networks = {"teacher": teacher.to(run.device), "student": student.to(run.device)}
    _warn_of_other_images(run)
    is_labelled = not isinstance(run.data, ImageData) or run.data.is_labelled
    with run.phase(EVALUATE.name):
        told = told_apart(run)
        answered = {} if told is None else answers(networks, told, device=run.device)
        examples = examples_record(told, **answered) if told is not None and is_labelled else _scenes(run, networks)
        latencies = _latencies(run, networks)
        figures = {
            name: network_figures(
                evaluate(network, run.data, task=run.task, device=run.device) if is_labelled else None,
                macs=count_macs(network.cpu(), run.example),
                params=sum(parameter.numel() for parameter in network.parameters()),
                latency=latencies[name],
                file=run.folder.require(phase.file, made_by=phase.verb),
            )
            for (name, network), phase in zip(networks.items(), (TEACHER, DISTILL), strict=True)
        }
        for name, predicted in _predicted(run).items():
            figures[name] |= predicted
    answers_file, result_file = EVALUATE.files
    if examples:
        run.folder.write_json(answers_file, examples)
    result = {
        "model": options.model,
        "data": options.data,
        "preset": options.preset,
        "seed": options.seed,
        "device": str(run.device),
        "budgets": [
            {
                "kind": budget.kind,
                "target": budget.limit(run.space, run.costs).most,
                "actual": figures["student"][budget.kind],
                "share": budget.amount if budget.is_share else None,
                "text": str(budget),
                **_written(run, budget.kind),
                **_timed(figures, budget.kind),
            }
            for budget in parse_budgets(options.budget)
        ],
        "widths": asdict(friendliness(run.space, load_architecture(run))),
        **figures,
        **_agreement(answered),
        **({} if told is not None else {"metrics": list(run.task.metrics)}),
        "is_trained": not run.folder.has(COMPRESSED) or DISTILL.is_done(run.folder),
        "seconds": {phase.name: run.seconds(phase.name) for phase in (*ONE_BUDGET, COMPRESS)},
        "environment": run.folder.read_json("environment.json"),
    }
    run.folder.write_json(result_file, result)
    run.journal.record("result", **{name: result[name] for name in ("budgets", *networks)})


def _scenes(run: Run, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
    """What detectors find on the test images; nothing for other tasks."""
    if not isinstance(run.task, DetectionTask) or not isinstance(run.data, LoaderData):
        return {}
    return scenes_record(detections(networks, run.data, run.task, device=run.device), class_names(run.data.test))


def _written(run: Run, kind: str) -> dict[str, int]:
    """What the file of a budget in bytes has in the end, as `written`; nothing of other kinds, and before it is there.

    A file of an earlier student is none.
    """
    cost = run.costs.get(kind)
    if not isinstance(cost, FileSize):
        return {}
    start = "student.int8" if cost.int8 else "student"
    names = [f"{start}{suffix}" for suffix in RUNTIMES[cost.runtime].suffixes]
    if not _is_newer(run.folder, replace(EXPORT, files=(names[0],)), DISTILL):
        return {}
    return {"written": sum(run.folder.file(name).stat().st_size for name in names)}


def _timed(figures: Mapping[str, Mapping[str, Any]], kind: str) -> dict[str, int]:
    """What the student takes by the clock, as `measured`, in a latency budget's own time; nothing of other kinds.

    That is its share of the teacher's time, of the time that the budget took the teacher to need: how fast the machine
    is now does not matter.
    """
    if kind != "latency":
        return {}
    teacher, student = figures["teacher"], figures["student"]
    return {"measured": round(teacher["latency"] * student["latency_ms"] / teacher["latency_ms"])}


def _hold_against_file(run: Run) -> None:
    """Adds to `result.json` what the written file has, and says it aloud if that is more than its budget."""
    if not run.folder.has(EVALUATE.file):
        return
    result = run.folder.read_json(EVALUATE.file)
    held = [{**budget, **_written(run, budget["kind"])} for budget in result["budgets"]]
    if held == result["budgets"]:
        return
    run.folder.write_json(EVALUATE.file, {**result, "budgets": held})
    for budget in held:
        written, most = budget.get("written", 0), budget["target"]
        if written > most:
            run.decide(
                "The file is larger than its budget",
                f"it has {in_bytes(written)} where {budget['text']} allows {in_bytes(most)} and "
                f"{in_bytes(budget['actual'])} were predicted; ask for "
                f"{in_bytes(written - most)} less",
                is_aloud=True,
                **budget,
            )


def _agreement(answered: Mapping[str, Answers]) -> dict[str, float]:
    """On how many of a hundred images both networks answer alike."""
    if not answered:
        return {}
    is_same = answered["teacher"].classes == answered["student"].classes
    return {"agreement": 100 * float(is_same.double().mean())}


def _warn_of_other_images(run: Run) -> None:
    """Records a decision if there are more or fewer images than the run began with."""
    begun = read_begun(run.folder)
    if begun is None or not isinstance(run.data, ImageData) or begun.counts == BegunData.of(run.data).counts:
        return
    now = BegunData.of(run.data)
    run.decide(
        "Evaluates other images than the run began with",
        f"it began with {begun.counts}, and there are {now.counts} now; accuracy is that on the images of now, "
        "normalised as the run began",
        is_aloud=True,
        training_images=now.training_images,
        training_images_before=begun.training_images,
        test_images=now.test_images,
        test_images_before=begun.test_images,
    )


def _latencies(run: Run, networks: Mapping[str, nn.Module]) -> dict[str, Latency]:
    """Latencies in the runtime of the options, by default that of the exported file.

    Without a latency budget it is torch on another device than the CPU, and where the runtime cannot take a network.
    """
    options, in_torch = run.options.latency, replace(run.options.latency, backend="torch")
    if "latency" in run.costs:
        return measure_latencies(networks, run.example, options, device=run.device)
    if run.device.type == "cpu" and options != in_torch:
        try:
            return measure_latencies(networks, run.example, options)
        except LatencyError as error:
            run.decide("Latency is measured in torch", str(error))
    return measure_latencies(networks, run.example, in_torch, device=run.device)


def _predicted(run: Run) -> dict[str, dict[str, int]]:
    """What teacher and student cost by kinds that are not counted otherwise: nanoseconds, bytes of a file or cache."""
    architectures = {"teacher": run.space.full_architecture(), "student": load_architecture(run)}
    predicted = [cost for kind, cost in run.costs.items() if kind not in COSTS]
    if run.space.cost(CACHE, architectures["teacher"]):
        predicted.append(CACHE)
    return {
        name: {cost.kind: run.space.cost(cost, architecture) for cost in predicted}
        for name, architecture in architectures.items()
    }


def export_step(run: Run, runtimes: Sequence[str] = (), *, is_for_torch: bool = False) -> list[str]:
    """Exports the student as a program and for runtimes, all compared with torch on real samples.

    Args:
        run: The run.
        runtimes: Names of runtimes beside onnxruntime and the one that the run's latency is measured in.
        is_for_torch: Write the program alone.

    Returns:
        The names of the files.

    Raises:
        ExportError: A runtime is not installed, or does not take the student; then nothing is written.
    """
    names = dict.fromkeys(["onnxruntime", run.options.latency.backend, *runtimes])
    wanted = [find_runtime(name) for name in names if name != "torch" and not is_for_torch]
    student = load_student(run)
    with run.phase(EXPORT.name):
        program = export_program(student, run.example)
        is_any = takes_any_batch(program)
        batches = _check_batches(run, EXPORT_CHECKS if is_any else (1,))
        notes = _notes(run)
        contents = {"student.pt2": pt2_bytes(program, notes)}
        differences = {"student.pt2": check_pt2(contents["student.pt2"], student, batches)}
        for runtime in wanted:
            checked = batches if runtime.takes_any_batch else batches[:1]
            files = files_for(runtime, student, run.example, program, notes)
            differences[f"student{runtime.suffixes[0]}"] = check_files(runtime, files, student, checked)
            contents |= {f"student{suffix}": content for suffix, content in files.items()}
    for name, content in reversed(contents.items()):  # the program, which marks the phase as done, comes last
        run.folder.write_bytes(name, content)
    _hold_against_file(run)
    sizes = f"batches of {EXPORT_CHECKS}" if is_any else "single"
    is_image = isinstance(run.data, ImageData)
    sample, outputs = ("image", "logits") if is_image else ("sample", "outputs")
    fixed = (
        "" if is_any else f"; they take one {sample} at a time, since torch cannot export this forward for any batch"
    )
    singly = [f"student{each.suffixes[0]}" for each in wanted if is_any and not each.takes_any_batch]
    if singly:
        fixed = f"; {' and '.join(singly)} {'takes' if len(singly) == 1 else 'take'} one {sample} at a time"
    difference = max(differences.values())
    run.decide(
        f"Exported {' and '.join(differences)}",
        f"their {outputs} differ from torch's by at most {difference:.2g} on {sizes} test {sample}s{fixed}",
        largest_difference=difference,
        takes_any_batch=is_any,
    )
    return list(contents)


def quantise_step(run: Run) -> dict[str, Any]:
    """Writes the student in 8 bits, measured beside itself in 32; writes and returns `int8.json`."""
    student, (file, record) = load_student(run), QUANTISE.files
    with run.phase(QUANTISE.name):
        found = quantise(
            student,
            run.data,
            run.folder.file(file),
            task=run.task,
            latency=run.options.latency,
            seed=run.options.seed,
        )
    content = found.to_json()
    run.folder.write_json(record, content)
    _hold_against_file(run)
    name = next(iter(found.before.metrics), "loss")
    before, after = (each.to_json()[name] for each in (found.before, found.after))
    run.decide(
        f"Wrote {file}",
        f"in 8 bits its {name} is {after:.4g} where it is {before:.4g} in 32, its latency "
        f"{milliseconds(round(1e6 * found.latency_after.latency_ms))} where it is "
        f"{milliseconds(round(1e6 * found.latency_before.latency_ms))}",
        **content,
    )
    return content


def export_pretrained_step(run: Run, folder: str | Path, *, push_to_hub: str | None = None) -> Path:
    """Writes the student as a folder that transformers loads, with tokenizer or image processor and a model card.

    Raises:
        ModelError: The widths are not tied as the configuration says, so that no stock class has them.
    """
    if ties_of(run.options.tie) != CONFIGURATION:
        raise ModelError(
            f"cannot write the student of '{run.folder.path}' for transformers: its widths differ from layer to layer, "
            "which no configuration says; expected a run whose widths are tied by it (--tie config); this one is "
            f"loaded by transprune.load({str(run.folder.path)!r})"
        )
    architecture = load_architecture(run)
    stock = configured(load_student(run), load_teacher(run), run.space, architecture)
    origin = run.options.model if is_hugging_face(run.options.model) else None
    card = model_card(run.folder, Origin(origin) if origin else None)
    return export_pretrained(stock, folder, run.example, origin=origin, card=card, push_to_hub=push_to_hub)


def _notes(run: Run) -> dict[str, str]:
    """What the exported files say of their input: how images become it, with mean and standard deviation, as JSON."""
    described = run.folder.read_json(SEARCH.file).get("preprocessing")
    return {} if described is None else {"preprocessing": json.dumps(described)}


def _check_batches(run: Run, sizes: Sequence[int]) -> list[Example]:
    """The first test samples, in batches of these sizes, as far as there are so many in a batch."""
    if not isinstance(run.data, ImageData):
        first = next(iter(feed(run.data, "test", run.task, batch_size=1, seed=0, device=torch.device("cpu"))))
        some = {min(size, first.samples) for size in sizes}
        return [first.part(slice(0, size)).inputs for size in sorted(some)]
    loader = make_loader(run.data.test, run.data, batch_size=max(EXPORT_CHECKS), train=False, seed=0, device="cpu")
    images, _ = next(iter(loader))
    return [images[:size] for size in sizes]


def measure_step(run: Run, options: MeasureOptions | None = None) -> dict[str, Any]:
    """Measures latency, throughput, memory and file size of both networks; writes and returns `measurements.json`."""
    options = options or MeasureOptions()
    student = load_student(run)
    networks = {"teacher": load_teacher(run), "student": student}
    with run.phase(MEASURE.name):
        announce(f"{MEASURE.name}: {most_time(len(networks), options)}")
        found = measure(networks, run.example, options, device=run.device)
    content = measurements_json(found, options, run.device)
    run.folder.write_json(MEASURE.file, content)
    return content


def report_step(run: Run) -> None:
    """Writes the report, `report.html`, or `frontier.html` for a frontier."""
    if run.is_frontier:
        log.info("report: wrote %s", write_frontier(run.folder))
        return
    path = write_report(run.folder.path)
    log.info("report: wrote %s", path)


def report(path: str | Path) -> Path:
    """Writes the report of a run or a frontier, even while another process works on it.

    Raises:
        RunFolderError: The folder is not a run, or there is nothing to report yet.
    """
    folder = RunFolder.open(path)
    if len(points(read_options(folder).budget)) > 1:
        return write_frontier(folder)
    return write_report(folder.path)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that was made in Python."""

    path: Path
    """Its folder."""
    student: nn.Module
    """The smaller network, in evaluation mode on the CPU."""
    result: Mapping[str, Any]
    """What `result.json` says: figures of teacher and student, what the budgets allow and what is spent."""

    @property
    def report(self) -> Path:
        """The page about it."""
        return self.path / REPORT.file

    def __repr__(self) -> str:
        name, budgets = metric_name(self.result), self.result["budgets"]
        said = [
            f"{amount(each['kind'], spent(each))} of at most {amount(each['kind'], each['target'])}" for each in budgets
        ]
        if name in self.result["student"]:
            before, after = (measured(name, self.result[network][name]) for network in ("teacher", "student"))
            said.insert(0, f"{metric_label(name)} {before} → {after}")
        return f"Finished({str(self.path)!r}: {', '.join(said)}; report {self.report})"

    def _repr_html_(self) -> str:
        space = SearchSpace.from_json(RunFolder.open(self.path).read_json("space.json"))
        architecture = Architecture.from_json(RunFolder.open(self.path).read_json(SEARCH.file))
        return space.picture(architecture, repr(self))


def run(
    model: nn.Module,
    data: AnyData,
    budget: str | Sequence[str],
    out: str | Path,
    options: RunOptions | str = DEFAULT_PRESET,
    *,
    task: Task | None = None,
    is_trained: bool = True,
    seed: int = 0,
    device: torch.device | str | None = None,
    overwrite: bool = False,
    safety: Safety | None = None,
    progress: bool = True,
    **changes: Any,
) -> Finished:
    """The whole job in a run folder, as `transprune run` does it: search, distillation, figures, exports and report.

    The same call with the same folder goes on where it stopped.

    Args:
        model: The network to make smaller; untouched.
        data: Samples, as `train` takes them.
        budget: What the smaller network may cost, such as `macs=0.5`; or several, all of which are kept.
        out: The run folder.
        options: The name of a preset.
        task: What the networks are for; None: to tell images apart.
        is_trained: Whether the model is trained; if not, it is trained first, as the preset says.
        seed: The same seed gives the same result.
        device: Where to compute; None: where the model is.
        overwrite: Replace a run in the folder.
        safety: When to save checkpoints, and when to stop.
        progress: Whether to show on standard error, or in a notebook, what is done and how far it is.
        changes: Other fields of `transprune.runs.RunOptions`, such as `divisor=8`, `keep=("stem*",)`, or
            `search=replace(get_preset("quick").search, epochs=5)`.

    Raises:
        TranspruneError: Model, data, budget, options or folder cannot be used; or as in `search` and `distill`.
    """
    budgets = tuple(map(str, parse_budgets(budget)))
    chosen = preset_options(options) if isinstance(options, str) else options
    _check_changes(chosen, changes)
    task_given = task or classification()
    prepared_data = as_data(data, task_given, batch_size=chosen.teacher.batch_size)
    place = choose_device(device, model)
    network = copied(unwrapped(model)).cpu()
    described = replace(
        chosen,
        **_names(network, prepared_data, task, is_trained=is_trained),
        budget=budgets,
        seed=seed,
        **changes,
    )
    given = Given(model=network, data=prepared_data, task=task_given)
    with (
        nullcontext() if progress else silent(),
        prepare(
            described, out, device=place, overwrite=overwrite, safety=safety, given=given, foretell=foretell
        ) as begun,
    ):
        if described.compress is None:
            run_all(begun)
        else:
            compress_all(begun)
        return _finished(begun)


def _check_changes(options: RunOptions, changes: Mapping[str, Any]) -> None:
    """Checks that what `run` is to change is there, and that a part of the options is one."""
    known = [each.name for each in fields(options)]
    parts = {name: getattr(options, name) for name in ("teacher", "search", "distill")}
    for name, value in changes.items():
        holders = [holder for holder, part in parts.items() if hasattr(part, name)]
        if name not in known and holders:
            way = f"{holders[-1]}=replace(get_preset({options.preset!r}).{holders[-1]}, {name}={value!r})"
            raise OptionError(f"cannot run with {name}: it is an option of {' and of '.join(holders)}; say {way}")
        if name not in known:
            raise OptionError(f"cannot run with {name}: {expected_one_of(name, known)}")
        if name in parts and not isinstance(value, type(parts[name])):
            raise OptionError(
                f"cannot run with {name}={value!r}: expected {type(parts[name]).__name__}, such as "
                f"replace(get_preset({options.preset!r}).{name}, epochs=5)"
            )


def _names(model: nn.Module, data: Data, task: Task | None, *, is_trained: bool) -> dict[str, Any]:
    """What stands in the configuration for objects; of weights a digest, so that others are another run."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items() if is_trained else ():
        digest.update(name.encode() + tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {
        "model": f"{IN_PYTHON}{type(model).__name__}",
        "data": f"{IN_PYTHON}{data.name if isinstance(data, ImageData) else 'data'}",
        "task": None if task is None else f"{IN_PYTHON}{task.main or 'task'}",
        "weights": f"{IN_PYTHON}{digest.hexdigest()[:16]}" if is_trained else None,
    }


def _finished(run: Run) -> Finished:
    return Finished(path=run.folder.path, student=load_student(run), result=run.folder.read_json(EVALUATE.file))


def save(
    student: nn.Module,
    out: str | Path,
    *,
    teacher: nn.Module,
    found: SearchResult | Compression | Architecture,
    data: AnyData,
    task: Task | None = None,
    device: torch.device | str | None = None,
    overwrite: bool = False,
) -> Finished:
    """Writes a student that was made in Python to a run folder, as `transprune run` leaves it, with figures and report.

    `load(out, model=teacher)` gives it back; `transprune report`, `compare` and the like read the folder.

    Args:
        student: The smaller network, as it came from `distill`, `found.student` or `shrink`.
        out: The run folder; made if missing.
        teacher: The unpruned network.
        found: What the student was made from: the result of `search` or `compress`, or the architecture for `shrink`.
        data: As in `train`; its test part is what both are measured on.
        task: As in `train`.
        device: Where to measure; None: where the teacher is.
        overwrite: Replace a run in the folder.

    Raises:
        RunFolderError: The folder holds another run or student, or cannot be written.
        ModelError: The student is not of this architecture.
        TranspruneError: Model or data cannot be used.
    """
    chosen_task = task or classification()
    prepared_data = as_data(data, chosen_task)
    network = copied(unwrapped(teacher)).cpu()
    space = inspect_for(network, example_of(prepared_data), found) if isinstance(found, Architecture) else found.space
    architecture = found if isinstance(found, Architecture) else found.architecture
    limits = () if isinstance(found, Architecture) else found.limits
    budgets = [str(Budget(kind=each.cost.kind, amount=each.most, is_share=False)) for each in limits]
    described = replace(
        preset_options(DEFAULT_PRESET),
        **_names(network, prepared_data, task, is_trained=True),
        budget=tuple(budgets or [f"macs={space.macs(architecture)}"]),
    )
    given = Given(model=network, data=prepared_data, task=chosen_task, space=space)
    place = choose_device(device, teacher)
    state = {name: tensor.cpu() for name, tensor in unwrapped(student).state_dict().items()}
    with prepare(described, out, device=place, overwrite=overwrite, given=given) as run, logging_to(run):
        if run.folder.has(DISTILL.file) and run.folder.file(DISTILL.file).read_bytes() != encode_tensors(state):
            raise RunFolderError(
                f"cannot save to '{run.folder.path}': it holds another student of this network; expected the same one, "
                "another folder, or overwrite=True to replace it"
            )
        run.decide(SAVED, "the figures of the search, if there are any, are those of its call")
        for figures in found.history if isinstance(found, SearchResult) else ():
            run.journal.record("epoch", **figures)
        run.folder.write_tensors(TEACHER.file, network.state_dict())
        write_architecture(run, architecture)
        run.folder.write_tensors(DISTILL.file, state)
        load_student(run)  # says so where it is not of this architecture
        conclude(run)
        return _finished(run)


def run_frontier(run: Run, *, overwrite: bool = False) -> None:
    """Runs the shared phases and every point that is not done yet, and draws the curve.

    Args:
        run: A run with several amounts of a budget.
        overwrite: Replace the runs of the points.
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
    """Runs the steps of a point that are not done yet, and returns its folder; None if the point is left out."""
    if course.left_out:
        with logging_to(run):
            run.decide(f"Left uniform widths out at {', '.join(course.options.budget)}", course.left_out)
        return None
    with _point(run, course, overwrite) as point:
        if not REPORT.is_done(point.folder):
            with logging_to(point):
                if course.scaled is not None:
                    scale(point)
                for phase in course.phases:
                    complete(point, phase)
                conclude(point)
        return point.folder


def _point(run: Run, course: Course, overwrite: bool) -> Run:
    """The run of one point, with what it shares with the others."""
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
