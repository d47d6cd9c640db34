"""The phases of a run, in one table, which running, planning, frontiers and resuming read.

A phase of training says what it starts from, which loop it learns by, and what it writes. It reads what earlier phases
left in the run folder, and it is done when its own file is there. Before the first of them `preparation.prepare` reads
data and network, finds the search space, measures latency where a budget asks for it, and makes the folder. The phases
that follow training have only a name and files here; `transprune.runs.steps` does them.

```text
a run            teacher ─ search ─ distill                   ─ evaluate ─ export ─ report
a frontier       teacher ─ supernet
  macs-0.3                         ─ search ─ distill         ─ evaluate ─ export ─ report
  macs-0.3-uniform                   (scaled) ─ distill       ─ evaluate ─ export ─ report
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from transprune.architecture import Architecture
from transprune.budget import Limit, limits_of, points
from transprune.costs import Cost
from transprune.data import ImageData, preprocessing
from transprune.errors import BudgetError, RunFolderError
from transprune.exports.load import load
from transprune.options import SearchOptions, TrainingOptions
from transprune.reading.networks import switched
from transprune.runs.material import check_training_images
from transprune.runs.run_options import RunOptions
from transprune.runtime import RunFolder, announce, processes, seeded
from transprune.runtime.structures import as_inputs, copied, on_device, samples_in, tensors_in, to_plan
from transprune.searching.contenders import Contender
from transprune.searching.search import SearchResult, prior_from_scores, result_of
from transprune.shrinking.shrink import shrink
from transprune.shrinking.sort import sort_channels
from transprune.shrinking.traced_network import TracedNetwork
from transprune.space import SearchSpace
from transprune.tas.baselines import uniform_architecture
from transprune.tas.bilevel import Bilevel
from transprune.tas.prior import Prior
from transprune.tas.probabilities import UNDECIDED
from transprune.training.batches import Data, example_of
from transprune.training.loop import Loop, Setup
from transprune.training.train import Fit, estimate_statistics
from transprune.training.update import settled, usual_optimizer

if TYPE_CHECKING:
    from transprune.runs.material import Material
    from transprune.runs.run import Run


@dataclass(frozen=True, eq=False)
class Start:
    """What a phase of training starts from."""

    network: nn.Module
    """The network that learns."""
    teacher: nn.Module | None = None
    """Its teacher, if it has one."""
    prior: Prior | None = None
    """What a search knows beforehand."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase of a run."""

    name: str
    """In the journal, and for a phase of training in checkpoints and as the origin of its random numbers."""
    files: tuple[str, ...]
    """What it leaves in the folder; it is done when the last one is there."""
    verb: str
    """The command that makes it."""
    start: str = ""
    """A file that it may start from: the phase is done only when its own file differs from this one."""

    @property
    def file(self) -> str:
        """The file that says it is done."""
        return self.files[-1]

    def is_done(self, folder: RunFolder) -> bool:
        """Whether a folder holds what it leaves."""
        if not folder.has(self.file):
            return False
        is_begun = bool(self.start) and folder.has(self.start)
        return not (is_begun and folder.file(self.start).read_bytes() == folder.file(self.file).read_bytes())


@dataclass(frozen=True, kw_only=True)
class TrainingPhase(Phase):
    """A phase that learns."""

    options: Callable[[RunOptions], TrainingOptions | SearchOptions]
    """How it learns."""
    begin: Callable[[Run], Start]
    """Reads what it starts from; a plan uses untrained networks instead."""
    loop: Callable[[Run | Material, Start, Setup], Loop]
    """Makes the loop."""
    keep: Callable[[Run, Any], None]
    """Writes what the loop has learned."""
    note: Callable[[Material], str]
    """What it starts from, in words."""
    is_given: Callable[[Run | Material], bool] = lambda _: False
    """Whether there is nothing to learn: whole weights were given."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """The phases of training that one folder sees."""

    folder: str
    """Of a point of a frontier its folder in that of the run; else empty."""
    options: RunOptions
    """What decides them."""
    phases: tuple[TrainingPhase, ...]
    scaled: Architecture | None = None
    """Uniform widths that take the place of a search."""
    left_out: str = ""
    """Why none of it happens; empty if it does."""


def chosen_optimizers(material: Material) -> tuple[str, str] | None:
    """What the weights learn by where the kind of network decides it, and why; None: the options say it all."""
    if material.options.compress is not None:
        return None
    phases = [phase for phase in ONE_BUDGET if not phase.is_given(material)]
    each = {phase.name: phase.options(material.options) for phase in phases}
    rates = [
        f"{name} {settled(one, material.model).learning_rate:g}" for name, one in each.items() if not one.optimizer
    ]
    if not rates:
        return None
    name, why = usual_optimizer(material.model)
    return f"Weights learn by {name}, learning rates {', '.join(rates)}", f"{why} (--distill.optimizer and its like)"


def courses(options: RunOptions, space: SearchSpace, costs: Mapping[str, Cost]) -> Iterator[Course]:
    """All that a run trains, in order; in a frontier each search comes right before its uniform widths."""
    budgets = points(options.budget)
    if options.compress is not None:
        yield Course(folder="", options=options, phases=(TEACHER,))
        return
    if len(budgets) == 1:
        yield Course(folder="", options=options, phases=ONE_BUDGET)
        return
    yield Course(folder="", options=options, phases=SHARED)
    for budget in budgets:
        point, folder = _point_options(options, budget), point_name(budget)
        yield Course(folder=folder, options=point, phases=POINT)
        scaled, left_out = _scaled(space, budget, costs)
        yield Course(folder=f"{folder}-uniform", options=point, phases=SCALED, scaled=scaled, left_out=left_out)


def point_name(budget: tuple[str, ...]) -> str:
    """The folder of one point in that of the frontier, such as `macs-0.3`."""
    return "-".join(budget).replace("=", "-")


def _point_options(options: RunOptions, budget: tuple[str, ...]) -> RunOptions:
    """What decides the run of one point: its search goes on from the shared weights for half the epochs."""
    epochs = -(-options.search.epochs // 2)
    search = replace(
        options.search,
        epochs=epochs,
        warm_up_epochs=min(options.search.warm_up_epochs, epochs - 1),
        architecture_after=0.0,
        start="model",
        importance="none",  # the shared weights stand in order already
        prior="none",
    )
    return replace(options, budget=budget, search=search)


def _scaled(space: SearchSpace, budget: tuple[str, ...], costs: Mapping[str, Cost]) -> tuple[Architecture | None, str]:
    """Uniform widths within a budget, or why there are none."""
    try:
        return uniform_architecture(space, limits_of(budget, space, costs)), ""
    except BudgetError as error:
        return None, str(error)


def complete(run: Run, phase: TrainingPhase) -> None:
    """Does a phase of training, from where its last checkpoint stands, unless the folder holds what it leaves.

    Raises:
        RunFolderError: There are more or fewer training images than the run began with.
    """
    if phase.is_done(run.folder):
        run.decide(f"Kept {phase.file}", "the folder holds it already, from the same configuration")
        return
    if phase.is_given(run):
        with run.phase(phase.name, said="is given, and not trained"):
            run.folder.write_tensors(phase.file, phase.begin(run).network.state_dict())
        return
    check_training_images(run.data, run.folder)
    start = phase.begin(run)
    with run.training(phase.name, phase.options(run.options).epochs) as setup:
        with seeded(setup.seed, setup.phase):
            loop = phase.loop(run, start, setup)
            loop.run()
        phase.keep(run, loop)
    run.checkpoints.clear()


# --- teacher


def _given_teacher(run: Run) -> Start:
    """The unpruned network with the given weights, as far as there are any; says what does not fit."""
    weights = run.weights
    if weights is None:
        return Start(run.model)
    what = "The teacher is not trained" if weights.is_whole else "The teacher is trained from the given weights"
    misfit = f"; of {run.options.weights} did not fit: {weights.misfit}" if weights.misfit else ""
    run.decide(
        what,
        f"{weights.given} tensors were given ({run.options.weights}){misfit}{weights.beside}",
        missing=weights.missing,
        unexpected=weights.unexpected,
        left_out=weights.left_out,
        reshaped=weights.reshaped,
    )
    return Start(weights.put_into(run.model))


def _note_on_teacher(material: Material) -> str:
    weights = material.weights
    if weights is None:
        return "from new weights"
    given = f"given: {material.options.weights}"
    if weights.is_whole:
        return f"not trained, weights are {given}{weights.beside}"
    return f"from the {weights.given} tensors that fit of weights {given}; {weights.misfit}"


def load_teacher(run: Run) -> nn.Module:
    """The unpruned network with the teacher's weights.

    Raises:
        RunFolderError: No phase has made it yet, or it does not fit.
    """
    run.folder.require(TEACHER.file, made_by=TEACHER.verb)
    teacher = copied(run.model)
    try:
        teacher.load_state_dict(run.folder.read_tensors(TEACHER.file))
    except RuntimeError as error:
        raise RunFolderError(
            f"cannot go on with the run in '{run.folder.path}': its teacher does not fit the network "
            f"{run.options.model} any more ({str(error).splitlines()[-1].strip().rstrip('.')}); bring back the code "
            "that the run began with, or start anew with --overwrite"
        ) from error
    return switched(teacher, training=False)


def _fit(source: Run | Material, start: Start, setup: Setup, options: TrainingOptions) -> Loop:
    return Fit(start.network, start.teacher, source.data, options, source.task, setup=setup)


def _keep_teacher(run: Run, fit: Fit) -> None:
    run.folder.write_tensors(TEACHER.file, fit.finished().state_dict())


# --- supernet and search


def _supernet_start(run: Run) -> Start:
    """The network whose weights the supernet starts from, if it does not start from new ones, and its teacher."""
    options = run.options.search
    if options.start == "model" and not SUPERNET.is_done(run.folder):
        return Start(load_teacher(run))  # which is its own teacher
    teacher = load_teacher(run) if options.distillation else None
    if not SUPERNET.is_done(run.folder):
        return Start(run.model, teacher)
    model = copied(run.model)
    model.load_state_dict(run.folder.read_tensors(SUPERNET.file), strict=False)
    return Start(model, teacher)


def _search_start(run: Run) -> Start:
    """The same, with what the trained network shows of its own accord where that is asked for."""
    start, space = _supernet_start(run), _read_space(run)
    if run.options.search.prior != "none" and run.options.search.start != "scratch":
        announce("search: looks first at what the network can do without, which takes a while")
    limits = limits_of(run.options.budget, space, run.costs)
    prior = prior_from_scores(
        start.network,
        run.data,
        run.options.search,
        space=space,
        limits=limits,
        task=run.task,
        setup=Setup(seed=run.options.seed, device=run.device),
        keeper=run.keeper,
    )
    if prior is not None:
        run.keep_space(prior.space)
        run.decide(
            f"The search starts from an architecture of {amounts(space, limits, prior.architecture)}",
            f"scores of all candidates on {samples_in(prior.samples, axis=run.task.sample_axis)} training images, "
            "labels not used, speak for it; the channels stand in the order in which the layers behind would miss "
            "them, and of blocks that may go in any "
            "order the one goes first without which the outputs move least",
            architecture=prior.architecture.to_json(),
        )
    return replace(start, prior=prior)


def _weights_alone(options: RunOptions) -> SearchOptions:
    """The supernet that searches share: all candidates are drawn alike."""
    return replace(options.search, architecture_after=1.0)


def _read_space(source: Run | Material) -> SearchSpace:
    """The search space with what was read from the network."""
    return replace(source.space, reading=source.reading)


def _supernet(source: Run | Material, start: Start, setup: Setup) -> Loop:
    options = _weights_alone(source.options)
    return Bilevel(
        start.network,
        source.data,
        options,
        space=_read_space(source),
        limits=(),
        task=source.task,
        teacher=start.teacher,
        setup=setup,
    )


def _search(source: Run | Material, start: Start, setup: Setup) -> Loop:
    limits = limits_of(source.options.budget, source.space, source.costs)
    return Bilevel(
        start.network,
        source.data,
        source.options.search,
        space=_read_space(source),
        limits=limits,
        prior=start.prior,
        task=source.task,
        teacher=start.teacher,
        setup=setup,
    )


def _keep_supernet(run: Run, bilevel: Bilevel) -> None:
    run.folder.write_tensors(SUPERNET.file, bilevel.plain_weights(run.space.full_architecture()))


def _keep_architecture(run: Run, bilevel: Bilevel) -> None:
    found = result_of(bilevel, limits_of(run.options.budget, bilevel.space, run.costs), run.keeper)
    _explain(run, found)
    if run.options.student in ("supernet", "repaired"):
        run.folder.write_tensors(SUPERNET_WEIGHTS, found.weights)
    if run.options.student == "repaired" and found.kept is not None:
        run.folder.write_tensors(REPAIRED_WEIGHTS, found.kept.student)
    write_architecture(run, found.architecture)


def scale(run: Run) -> None:
    """Leaves uniform widths as a search would leave its architecture: their student starts and learns like another."""
    if SEARCH.is_done(run.folder):
        return
    architecture, _ = run.keeper.settled(
        "uniform widths",
        run.space,
        limits_of(run.options.budget, run.space, run.costs),
        lambda within: uniform_architecture(run.space, within),
        architecture=lambda found: found,
    )
    run.decide(
        "Scaled all widths uniformly",
        f"for comparison: the largest share of {' and '.join(run.options.budget)}, every block kept",
        architecture=architecture.to_json(),
    )
    if run.options.student in ("supernet", "repaired"):
        run.folder.write_bytes(SUPERNET_WEIGHTS, run.folder.file(SUPERNET.file).read_bytes())
    write_architecture(run, architecture)


def write_architecture(run: Run, architecture: Architecture) -> None:
    """Writes `architecture.json`, from which `load` rebuilds the student."""
    run.folder.write_json(
        SEARCH.file,
        {
            "format": 1,
            **architecture.to_json(),
            "model": {"name": run.options.model, **_inputs(run.data)},
            **({"preprocessing": preprocessing(run.data)} if isinstance(run.data, ImageData) else {}),
        },
    )


def _inputs(data: Data) -> dict[str, Any]:
    """What the network is given: images of classes, or tensors of some shapes [1, ...] and types."""
    if isinstance(data, ImageData):
        return {"classes": len(data.classes), "input_size": list(data.image_size)}
    example = as_inputs(example_of(data))
    tensors = list(tensors_in(example))
    described = {"inputs": [{"shape": list(one.shape), "dtype": str(one.dtype)} for one in tensors]}
    if isinstance(example, tuple) and len(example) == len(tensors):  # they are the arguments of the forward
        return described
    try:
        return {**described, "structure": to_plan(example)}
    except TypeError:
        return {**described, "structure": None}


def _explain(run: Run, found: SearchResult) -> None:
    likeliest = found.probabilities.most_probable(found.space)
    proof, allowed = found.derivation, " and ".join(map(str, found.limits))

    def cost(architecture: Architecture) -> str:
        return amounts(found.space, found.limits, architecture)

    why = (
        "it takes the most probable candidate everywhere"
        if likeliest == proof.architecture
        else f"the most probable candidates cost {cost(likeliest)}, and of all architectures that use what is "
        f"allowed ({allowed}) this is the most probable one found: {proof}"
    )
    run.decide(
        f"{'Derived' if found.contenders else 'Chose'} an architecture of {cost(proof.architecture)}",
        why,
        architecture=proof.architecture.to_json(),
        given_up=proof.given_up,
        gap=proof.gap,
        is_proved=proof.is_proved,
    )
    if found.kept is not None:
        announce(f"{SEARCH.name}: kept {found.kept.name}, {cost(found.architecture)}")
        run.decide(
            f"Kept {found.kept.name}: an architecture of {cost(found.architecture)}",
            f"of networks of the same budget{_tried(found.kept)}, it has the least loss on the architecture's samples: "
            f"{'; '.join(map(_compared, found.contenders))}",
            architecture=found.architecture.to_json(),
            trial_epochs=found.kept.trial_epochs,
            contenders={
                each.name: {
                    "architecture": each.architecture.to_json(),
                    "origin": each.origin,
                    **each.evaluation.to_json(),
                }
                for each in found.contenders
            },
        )
    if found.indecision:
        run.decide(UNDECIDED, found.indecision)


def _tried(contender: Contender) -> str:
    epochs = contender.trial_epochs
    return f", distilled for a trial (search.trial_epochs = {epochs})" if epochs else ", not trained by themselves"


def _compared(contender: Contender) -> str:
    figures = contender.evaluation
    said = [
        f"top-1 {value:.2f} %" if name == "top1" else f"{name} {value:.4g}"
        for name, value in list(figures.metrics.items())[:1]
    ]
    cut = "repaired" if contender.origin == "teacher" else "the supernet's weights"
    return ", ".join([f"{contender.name} {figures.loss:.4g}", *said, cut])


def amounts(space: SearchSpace, limits: Sequence[Limit], architecture: Architecture) -> str:
    """What an architecture costs, as each budget counts it."""
    return " and ".join(limit.cost.written(space.cost(limit.cost, architecture)) for limit in limits)


def load_architecture(run: Run) -> Architecture:
    """The architecture that the search found.

    Raises:
        RunFolderError: No phase has made it yet.
    """
    run.folder.require(SEARCH.file, made_by=SEARCH.verb)
    return Architecture.from_json(run.folder.read_json(SEARCH.file))


# --- distill


def _untrained_student(run: Run) -> Start:
    teacher, architecture = load_teacher(run), load_architecture(run)
    with seeded(run.options.seed, "student"):
        made = next(filter(run.folder.has, (COMPRESSED, REPAIRED_WEIGHTS)), None)
        if made is not None:
            student = shrink(run.model, architecture, run.example, reading=run.reading)
            student.load_state_dict(run.folder.read_tensors(made))
        elif run.options.student == "scratch":
            student = shrink(run.model, architecture, run.example, weights="scratch", reading=run.reading)
        else:
            origin = sort_channels(teacher, run.example, reading=run.reading)
            if run.options.student != "teacher":
                origin.load_state_dict(run.folder.read_tensors(SUPERNET_WEIGHTS), strict=False)
            student = shrink(origin, architecture, run.example, reading=run.reading).to(run.device)
            student.load_state_dict(processes.from_first(lambda: _with_statistics(student, run)))
    if isinstance(student, TracedNetwork):
        run.decide("The student runs the operators that were traced", student.reason)
    return Start(student, teacher)


def _with_statistics(student: nn.Module, run: Run) -> dict[str, Tensor]:
    """The student's state after its norms have seen all training images."""
    with processes.alone():
        state = estimate_statistics(student, run.data, task=run.task, seed=run.options.seed).state_dict()
    found: dict[str, Tensor] = on_device(state, "cpu")
    return found


def load_student(run: Run) -> nn.Module:
    """The trained student, on the CPU."""
    return load(run.folder.path, model=run.model, reading=run.reading)


def _keep_student(run: Run, fit: Fit) -> None:
    run.folder.write_tensors(DISTILL.file, fit.finished().state_dict())


def _note_on_student(material: Material) -> str:
    starts = {
        "scratch": "new weights",
        "teacher": "the teacher's weights",
        "supernet": "the supernet's weights",
        "repaired": "what the search kept",
    }
    return f"from {starts[material.options.student]}"


# --- the table

SUPERNET_WEIGHTS = "supernet.safetensors"
"""What a student of `student = "supernet"` starts from."""
REPAIRED_WEIGHTS = "repaired.safetensors"
"""What a student of `student = "repaired"` starts from after a search that began with scores: what that has kept."""
COMPRESSED = "compressed.safetensors"
"""What a student starts from that was made without training."""

TEACHER = TrainingPhase(
    name="teacher",
    files=("teacher.safetensors",),
    verb="search",
    options=lambda options: options.teacher,
    begin=_given_teacher,
    loop=lambda source, start, setup: _fit(source, start, setup, source.options.teacher),
    keep=_keep_teacher,
    note=_note_on_teacher,
    is_given=lambda source: source.weights is not None and source.weights.is_whole,
)
"""The unpruned network, trained on the labels, unless whole weights are given."""

SUPERNET = TrainingPhase(
    name="supernet",
    files=("shared.safetensors",),
    verb="run",
    options=_weights_alone,
    begin=_supernet_start,
    loop=_supernet,
    keep=_keep_supernet,
    note=lambda _: "the weights that all searches start from",
)
"""The weights that the searches of a frontier share."""

SEARCH = TrainingPhase(
    name="search",
    files=(SUPERNET_WEIGHTS, REPAIRED_WEIGHTS, "architecture.json"),
    verb="search",
    options=lambda options: options.search,
    begin=_search_start,
    loop=_search,
    keep=_keep_architecture,
    note=lambda material: (
        "from the teacher's weights" if material.options.search.start == "model" else "from new weights"
    ),
)
"""The architecture, learned on the training images within the budget."""

DISTILL = TrainingPhase(
    name="distill",
    files=("student.safetensors",),
    start=COMPRESSED,
    verb="distill",
    options=lambda options: options.distill,
    begin=_untrained_student,
    loop=lambda source, start, setup: _fit(source, start, setup, source.options.distill),
    keep=_keep_student,
    note=_note_on_student,
)
"""The student: the architecture as a plain network, trained with the teacher."""

COMPRESS = Phase(name="compress", files=("samples.safetensors", "scores.json", COMPRESSED), verb="compress")
"""The architecture and the student without training; both are left as a search and a distillation would leave them."""
EVALUATE = Phase(name="evaluate", files=("examples.json", "result.json"), verb="evaluate")
EXPORT = Phase(name="export", files=("student.onnx", "student.pt2"), verb="export")
QUANTISE = Phase(name="quantise", files=("student.int8.onnx", "int8.json"), verb="export")
REPORT = Phase(name="report", files=("report.html",), verb="report")
MEASURE = Phase(name="measure", files=("measurements.json",), verb="measure")

ONE_BUDGET = (TEACHER, SEARCH, DISTILL)
"""What a run trains for one budget."""
SHARED = (TEACHER, SUPERNET)
"""What a frontier trains once."""
POINT = (replace(SEARCH, note=lambda _: "from the supernet's weights"), DISTILL)
"""What a frontier trains for each budget."""
SCALED = (DISTILL,)
"""What it trains at uniform widths beside."""
