"""The steps of a run. Each reads what earlier ones left in the folder, and is skipped when its result is there."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor, nn

from transprune.architecture import Architecture
from transprune.budget import parse_budgets, points
from transprune.data import make_loader, preprocessing
from transprune.errors import RunFolderError
from transprune.exports.exported_program import check_pt2, export_program, pt2_bytes, takes_any_batch
from transprune.exports.load import load
from transprune.exports.onnx_file import check_onnx, onnx_bytes
from transprune.latency.macs import count_macs, friendliness
from transprune.latency.stopwatch import Latency, measure_latencies
from transprune.reports.comparison import write_frontier
from transprune.reports.examples import examples_record
from transprune.reports.report import write_report
from transprune.runs.begun_data import BegunData, read_begun
from transprune.runs.preparation import read_options
from transprune.runs.results import network_figures
from transprune.runs.run import Run, log, logging_to
from transprune.runtime import RunFolder, processes, seeded
from transprune.runtime.structures import on_device
from transprune.shrinking.shrink import shrink
from transprune.shrinking.sort import sort_channels
from transprune.shrinking.traced_network import TracedNetwork
from transprune.tas.search import SearchResult, search
from transprune.training.answers import answers
from transprune.training.evaluation import evaluate
from transprune.training.train import distill, estimate_statistics, train

EXPORT_CHECKS = (1, 2, 7, 64)
"""Batch sizes on which the exported files are compared with torch."""


def run_all(run: Run) -> None:
    """Every step in order."""
    with logging_to(run):
        teach_step(run)
        search_step(run)
        distill_step(run)
        conclude(run)


def conclude(run: Run) -> None:
    """Evaluation, export and report: work for the first process alone."""
    if processes.is_first():
        with processes.alone():
            evaluate_step(run)
            export_step(run)
            report_step(run)


def teach_step(run: Run) -> None:
    """The teacher: given weights, or the unpruned network trained on the labels, from what fits of given weights."""
    if _is_done(run, "teacher.safetensors"):
        return
    options = run.options.teacher
    if run.given_weights is not None and run.given_weights.is_whole:
        with run.phase("teacher"):
            teacher = _given_teacher(run)
    else:
        with run.training("teacher", options.epochs) as setup:
            teacher = train(_given_teacher(run), run.data, options, setup=setup)
    run.folder.write_tensors("teacher.safetensors", teacher.state_dict())
    run.checkpoints.clear()


def _given_teacher(run: Run) -> nn.Module:
    """The unpruned network with the given weights, as far as there are any; says what does not fit."""
    weights = run.given_weights
    if weights is None:
        return run.model
    teacher = copy.deepcopy(run.model)
    teacher.load_state_dict(weights.tensors, strict=False)
    what = "The teacher is not trained" if weights.is_whole else "The teacher is trained from the given weights"
    misfit = f"; of {run.options.weights} did not fit: {weights.misfit}" if weights.misfit else ""
    run.decide(
        what,
        f"{len(weights.tensors)} tensors were given ({run.options.weights}){misfit}",
        missing=weights.missing,
        unexpected=weights.unexpected,
        reshaped=weights.reshaped,
    )
    return teacher


def search_step(run: Run) -> None:
    """The architecture: learned on the training images, within the budget."""
    if _is_done(run, "architecture.json"):
        return
    options = run.options
    model = _search_start(run)
    space = replace(run.space, reading=run.reading)
    with run.training("search", options.search.epochs) as setup:
        found = search(model, run.data, options.budget, options.search, space=space, costs=run.costs, setup=setup)
    _explain(run, found)
    if options.student == "supernet":
        run.folder.write_tensors("supernet.safetensors", found.weights)
    write_architecture(run, found.architecture)


def _search_start(run: Run) -> nn.Module:
    """The network whose weights the search starts from, if it does not start from new ones."""
    if not run.folder.has("shared.safetensors"):
        return load_teacher(run) if run.options.search.start == "model" else run.model
    model = copy.deepcopy(run.model)
    model.load_state_dict(run.folder.read_tensors("shared.safetensors"), strict=False)
    return model


def write_architecture(run: Run, architecture: Architecture) -> None:
    """Writes `architecture.json`, from which `load` rebuilds the student."""
    run.folder.write_json(
        "architecture.json",
        {
            "format": 1,
            **architecture.to_json(),
            "model": {
                "name": run.options.model,
                "classes": len(run.data.classes),
                "input_size": list(run.data.image_size),
            },
            "preprocessing": preprocessing(run.data),
        },
    )
    run.checkpoints.clear()


def _explain(run: Run, found: SearchResult) -> None:
    likeliest = found.probabilities.most_probable(found.space)
    proof = found.derivation
    why = (
        "it takes the most probable candidate everywhere"
        if likeliest == found.architecture
        else f"the most probable candidates cost {_amounts(found, likeliest)}, and of all architectures that use what "
        f"is allowed ({' and '.join(map(str, found.limits))}) this is the most probable one found: {proof}"
    )
    run.decide(
        f"Chose an architecture of {_amounts(found, found.architecture)}",
        why,
        architecture=found.architecture.to_json(),
        given_up=proof.given_up,
        gap=proof.gap,
        is_proved=proof.is_proved,
    )


def _amounts(found: SearchResult, architecture: Architecture) -> str:
    """What an architecture costs, as each budget counts it."""
    costs = (limit.cost for limit in found.limits)
    return " and ".join(cost.written(found.space.cost(cost, architecture)) for cost in costs)


def distill_step(run: Run) -> None:
    """The student: the architecture as a plain network, trained with the teacher."""
    if _is_done(run, "student.safetensors"):
        return
    teacher = load_teacher(run)
    student = _untrained_student(run)
    if isinstance(student, TracedNetwork):
        run.decide("The student runs the operators that were traced", student.reason)
    with run.training("distill", run.options.distill.epochs) as setup:
        student = distill(student, teacher, run.data, run.options.distill, setup=setup)
    run.folder.write_tensors("student.safetensors", student.state_dict())
    run.checkpoints.clear()


def _untrained_student(run: Run) -> nn.Module:
    architecture = load_architecture(run)
    with seeded(run.options.seed, "student"):
        if run.options.student == "scratch":
            return shrink(run.model, architecture, run.example, weights="scratch", reading=run.reading)
        origin = sort_channels(load_teacher(run), run.example, reading=run.reading)
        if run.options.student == "supernet":
            origin.load_state_dict(run.folder.read_tensors("supernet.safetensors"), strict=False)
        student = shrink(origin, architecture, run.example, reading=run.reading).to(run.device)
        student.load_state_dict(processes.from_first(lambda: _with_statistics(student, run)))
        return student


def _with_statistics(student: nn.Module, run: Run) -> dict[str, Tensor]:
    """The student's state after its norms have seen all training images."""
    with processes.alone():
        state = estimate_statistics(student, run.data, seed=run.options.seed).state_dict()
    found: dict[str, Tensor] = on_device(state, "cpu")
    return found


def evaluate_step(run: Run) -> None:
    """Accuracy and cost of teacher and student, side by side, into `result.json`."""
    teacher, student = load_teacher(run), load_student(run)
    options = run.options
    networks = {"teacher": teacher.to(run.device), "student": student.to(run.device)}
    _warn_of_other_images(run)
    with run.phase("evaluate"):
        answered = answers(networks, run.data, device=run.device)
        latencies = _latencies(run, networks)
        figures = {
            name: network_figures(
                evaluate(network, run.data, device=run.device),
                macs=count_macs(network.cpu(), run.example),
                params=sum(parameter.numel() for parameter in network.parameters()),
                latency=latencies[name],
                file=run.folder.require(f"{name}.safetensors", made_by="distill"),
            )
            for name, network in networks.items()
        }
        for name, predicted in _predicted(run).items():
            figures[name]["latency"] = predicted
    run.folder.write_json("examples.json", examples_record(run.data, **answered))
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
            }
            for budget in parse_budgets(options.budget)
        ],
        "widths": asdict(friendliness(run.space, load_architecture(run))),
        **figures,
        "seconds": {phase: run.seconds(phase) for phase in ("teacher", "search", "distill")},
        "environment": run.folder.read_json("environment.json"),
    }
    run.folder.write_json("result.json", result)
    run.journal.record("result", **{name: result[name] for name in ("budgets", *networks)})


def _warn_of_other_images(run: Run) -> None:
    """Says so if there are more or fewer images than the run began with."""
    begun, now = read_begun(run.folder), BegunData.of(run.data)
    if begun is None or begun.counts == now.counts:
        return
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
    """How long the networks take in the runtime of the latency budget; without one, in torch on the run's device."""
    options = run.options.latency
    options = options if "latency" in run.costs else replace(options, backend="torch")
    return measure_latencies(networks, run.example, options, device=run.device)


def _predicted(run: Run) -> dict[str, int]:
    """What the model of a latency budget says of teacher and student, nanoseconds; nothing without one."""
    cost = run.costs.get("latency")
    if cost is None:
        return {}
    architectures = {"teacher": run.space.full_architecture(), "student": load_architecture(run)}
    return {name: run.space.cost(cost, architecture) for name, architecture in architectures.items()}


def export_step(run: Run) -> None:
    """The student as an exported program and as ONNX, both compared with torch on real images."""
    student = load_student(run)
    with run.phase("export"):
        program = export_program(student, run.example)
        is_any = takes_any_batch(program)
        batches = _check_batches(run, EXPORT_CHECKS if is_any else (1,))
        pt2 = pt2_bytes(program)
        onnx = onnx_bytes(program)
        difference = max(check_pt2(pt2, student, batches), check_onnx(onnx, student, batches))
    run.folder.write_bytes("student.onnx", onnx)
    run.folder.write_bytes("student.pt2", pt2)
    sizes = f"batches of {EXPORT_CHECKS}" if is_any else "single"
    fixed = "" if is_any else "; they take one image at a time, since torch cannot export this forward for any batch"
    run.decide(
        "Exported student.onnx and student.pt2",
        f"their logits differ from torch's by at most {difference:.2g} on {sizes} test images{fixed}",
        largest_difference=difference,
        takes_any_batch=is_any,
    )


def _check_batches(run: Run, sizes: Sequence[int]) -> list[Tensor]:
    """The first test images in batches of these sizes."""
    loader = make_loader(run.data.test, run.data, batch_size=max(EXPORT_CHECKS), train=False, seed=0, device="cpu")
    images, _ = next(iter(loader))
    return [images[:size] for size in sizes]


def report_step(run: Run) -> None:
    """The report, `report.html`; of a frontier `frontier.html`."""
    if run.is_frontier:
        log.info("report: wrote %s", write_frontier(run.folder))
        return
    path = write_report(run.folder.path)
    log.info("report: wrote %s", path)


def write_any_report(path: str | Path) -> Path:
    """Writes the report of a run or of a frontier, also while another process is at work on it.

    Raises:
        RunFolderError: The folder holds no run, or nothing to report yet.
    """
    folder = RunFolder.open(path)
    if len(points(read_options(folder).budget)) > 1:
        return write_frontier(folder)
    return write_report(folder.path)


def load_teacher(run: Run) -> nn.Module:
    """The unpruned network with the teacher's weights.

    Raises:
        RunFolderError: No step has made it yet.
    """
    run.folder.require("teacher.safetensors", made_by="search")
    teacher = copy.deepcopy(run.model)
    try:
        teacher.load_state_dict(run.folder.read_tensors("teacher.safetensors"))
    except RuntimeError as error:
        raise RunFolderError(
            f"cannot go on with the run in '{run.folder.path}': its teacher does not fit the network "
            f"{run.options.model} any more ({str(error).splitlines()[-1].strip().rstrip('.')}); bring back the code "
            "that the run began with, or start anew with --overwrite"
        ) from error
    return teacher.eval()


def load_student(run: Run) -> nn.Module:
    """The trained student, on the CPU."""
    return load(run.folder.path, model=run.model, reading=run.reading)


def load_architecture(run: Run) -> Architecture:
    """The architecture that the search found.

    Raises:
        RunFolderError: No step has made it yet.
    """
    run.folder.require("architecture.json", made_by="search")
    return Architecture.from_json(run.folder.read_json("architecture.json"))


def _is_done(run: Run, file: str) -> bool:
    if run.folder.has(file):
        run.decide(f"Kept {file}", "the folder holds it already, from the same configuration")
        return True
    return False
