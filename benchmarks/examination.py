"""Reading, shrinking and checking one network of the list.

It is shrunk to its smallest and to two random architectures, and run forward and backward. What is checked has a name
in `CHECKS`.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import transprune
from isolated import Record, first_line
from model_list import ListedModel
from other_networks import OtherNetwork
from transprune.errors import TranspruneError
from transprune.reading.networks import switched
from transprune.reading.trace import rebatched
from transprune.runtime.structures import as_inputs, called, tensors_in
from zeroing import hindrances, kept_indices, zeroed

LEARNING = {
    "searches": "one step of a search at 16 samples ends within the budget",
    "distills": "one step of a distillation at 16 samples ends",
}
OF_TRANSFORMERS = {
    "own": "of the networks of the transformers library, every student is of their class",
    "elsewhere": "and runs forward and backward at other batch sizes and lengths",
}
CHECKS = {
    "counts": "predicted MACs and parameters are those counted on the student, as integers",
    "full": "the student of the full architecture computes what the model does",
    "runs": "every student runs forward and backward, with finite gradients",
    "zeroing": "a student computes what the model does with the dropped channels at zero",
    "untouched": "the caller's model is unchanged",
}
SAME = 1e-5
"""Largest difference of two outputs that are the same, as a share of the largest output."""
SAME_AFTER_ZEROING = 1e-3
"""As `SAME`, where sums of different lengths round differently."""


@dataclass
class Examination:
    """One network and what has been found out about it."""

    model: nn.Module
    inputs: Any
    """Images of a classifier; of other networks whatever they take."""
    reading: transprune.Reading | None = None
    """What was read of it; None to read it for each student."""
    record: Record = field(default_factory=lambda: {"seconds_of": {}, "checks": {}, "details": {}})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what is inside under a name; an error names the stage."""
        started = time.perf_counter()
        self.record["stage"] = name
        yield
        self.record["seconds_of"][name] = round(time.perf_counter() - started, 2)
        del self.record["stage"]

    def check(self, name: str, holds: bool, detail: str = "") -> None:
        """Records that a check holds, unless it failed before; the first failure keeps its detail."""
        if self.record["checks"].setdefault(name, True) and not holds:
            self.record["checks"][name] = False
            self.record["details"][name] = detail

    def shrunk(self, architecture: transprune.Architecture) -> nn.Module:
        """The student of an architecture."""
        return transprune.shrink(self.model, architecture, self.inputs, reading=self.reading)


def examine(listed: ListedModel | OtherNetwork) -> Record:
    """Everything about one network: `outcome` is works, wrong (a check fails), refused or failed."""
    if isinstance(listed, OtherNetwork):
        examination = Examination(*listed.build())
    else:
        examination = Examination(listed.build(), listed.example())
    record = examination.record
    before = remembered(examination.model)
    try:
        with examination.stage("count"):
            record["macs"] = counted_macs(examination.model, examination.inputs)
            record["params"] = count_params(examination.model)
        with examination.stage("inspect"):
            space = transprune.inspect(examination.model, examination.inputs)
        record |= described(space, record["macs"])
        if isinstance(listed, OtherNetwork):
            examination.reading = space.reading
        check_full(examination, space)
        for label, architecture in architectures(space).items():
            check_student(examination, space, label, architecture)
            if isinstance(listed, OtherNetwork) and listed.elsewhere is not None:
                check_elsewhere(examination, label, architecture, listed.elsewhere())
        if not isinstance(listed, OtherNetwork):
            check_zeroing(examination, space)
        elif any(parameter.requires_grad for parameter in examination.model.parameters()):
            check_learning(examination, space)
    except TranspruneError as error:
        record |= {"outcome": "refused", "error": first_line(error)}
    except Exception as error:  # whatever goes wrong is the result
        record |= {"outcome": "failed", "error": first_line(error)}
    examination.check("untouched", is_unchanged(examination.model, before))
    if "outcome" not in record:
        record["outcome"] = "wrong" if False in record["checks"].values() else "works"
    return record


def architectures(space: transprune.SearchSpace) -> dict[str, transprune.Architecture]:
    """The students that are made, by a name for each."""
    return {
        "smallest": space.smallest_architecture(),
        "random 0": space.random_architecture(0),
        "random 1": space.random_architecture(1),
    }


def described(space: transprune.SearchSpace, macs: int) -> Record:
    """What can be searched; shares are of the MACs counted on the model."""
    reasons = Counter(fixed.reason for fixed in space.fixed)
    return {
        "groups": len(space.groups),
        "stages": len(space.stages),
        "searched_share": round(searched_macs(space) / macs, 4),
        "smallest_share": round((space.macs(space.smallest_architecture()) + macs - full_macs(space)) / macs, 4),
        "fixed": [[reason, count] for reason, count in reasons.most_common()],
    }


def full_macs(space: transprune.SearchSpace) -> int:
    return space.macs(space.full_architecture())


def searched_macs(space: transprune.SearchSpace) -> int:
    """MACs of the full network in layers that have a searched width or lie in a block that can be left out."""
    full = space.full_architecture()
    removable = {block for stage in space.stages for block in stage.blocks[min(stage.candidates) :]}
    return sum(
        layer.macs(space.resolve(layer.inputs, full), space.resolve(layer.outputs, full))
        for layer in space.layers
        if layer.inputs.source is not None
        or layer.outputs.source is not None
        or any(layer.name.startswith(f"{block}.") for block in removable)
    )


def check_full(examination: Examination, space: transprune.SearchSpace) -> None:
    with examination.stage("shrink"):
        student = examination.shrunk(space.full_architecture())
    difference = distance(examination.model, switched(student, training=False), examination.inputs)
    examination.check("full", difference <= SAME, f"differs by {difference:.1e} of the largest output")


def check_student(
    examination: Examination, space: transprune.SearchSpace, label: str, architecture: transprune.Architecture
) -> None:
    with examination.stage(f"shrink, {label}"):
        student = examination.shrunk(architecture)
    expected = {"macs": space.macs(architecture), "params": space.params(architecture)}
    found = {"macs": counted_macs(student, examination.inputs), "params": count_params(student)}
    examination.check("counts", found == expected, f"{label}: predicted {expected}, counted {found}")
    with examination.stage(f"run, {label}"):
        is_finite = runs(student, examination.inputs)
    examination.check("runs", is_finite, f"{label}: outputs or gradients are not finite")


def check_elsewhere(
    examination: Examination, label: str, architecture: transprune.Architecture, elsewhere: tuple[Any, ...]
) -> None:
    """The student's class, and that it runs on inputs unlike the example."""
    with examination.stage(f"elsewhere, {label}"):
        student = examination.shrunk(architecture)
        reason = student.reason if isinstance(student, transprune.TracedNetwork) else ""
        examination.check("own", not reason, f"{label}: {reason}")
        for inputs in elsewhere if not reason else ():
            examination.check("elsewhere", runs(student, inputs), f"{label}: outputs or gradients are not finite")


def check_zeroing(examination: Examination, space: transprune.SearchSpace) -> None:
    """Checks widths alone; where channels at zero are not missing channels, only equality says something."""
    architecture = replace(space.random_architecture(2), depths={})
    with examination.stage("zeroing"):
        kept = kept_indices(
            examination.model, lambda network: transprune.shrink(network, architecture, examination.inputs)
        )
        student = examination.shrunk(architecture).eval()
        difference = distance(zeroed(examination.model, kept), student, examination.inputs)
        if difference > SAME_AFTER_ZEROING and (found := hindrances(examination.model, examination.inputs)):
            examination.record["checks"]["zeroing"] = None
            examination.record["details"]["zeroing"] = f"not comparable: {', '.join(found)}"
            return
    examination.check("zeroing", difference <= SAME_AFTER_ZEROING, f"differs by {difference:.1e} of the largest output")


def check_learning(examination: Examination, space: transprune.SearchSpace) -> None:
    """One step of a search and of a distillation, towards what the network itself gives for 16 samples."""
    axes = space.reading.trace.axes
    batch = as_inputs(examination.inputs)
    if space.reading.trace.batch is not None:
        batch = rebatched(batch, SAMPLES, axes)
    with torch.no_grad():
        targets = [each.clone() for each in tensors_in(called(copy.deepcopy(examination.model), batch))]
    task = transprune.Task(
        loss=squared_error, split=lambda pair: pair, sample_axis=next((axis for axis in axes if axis is not None), 0)
    )
    batches = [(batch, targets)]
    data = transprune.LoaderData(train=batches, test=batches, search=(batches, batches), example=examination.inputs)
    smallest = space.smallest_architecture()
    budget = (space.macs(smallest) + full_macs(space)) // 2
    with examination.stage("search"), recorded(examination, "searches"):
        found = transprune.search(examination.model, data, f"macs={budget}", ONE_SEARCH, space=space, task=task)
        examination.check("searches", found.actual <= budget, f"{found.actual} MACs for {budget}")
    with examination.stage("distill"), recorded(examination, "distills"):
        student = examination.shrunk(smallest)
        transprune.distill(student, examination.model, data, ONE_DISTILLATION, task=task)
        examination.check("distills", True)


@contextmanager
def recorded(examination: Examination, name: str) -> Iterator[None]:
    """An error of ours is a check that fails; any other ends the examination."""
    try:
        yield
    except TranspruneError as error:
        examination.check(name, False, first_line(error))


SAMPLES = 16
ONE_SEARCH = transprune.SearchOptions(
    epochs=1, warm_up_epochs=0, start="model", alignment="pad", distillation=0.5, learning_rate=1e-4
)
ONE_DISTILLATION = transprune.DistillationOptions(epochs=1, warm_up_epochs=0, learning_rate=1e-4)


def squared_error(outputs: Any, targets: Any) -> Tensor:
    """The mean over all tensors that may learn; where training gives others than evaluation, towards zero."""
    found = list(tensors_in(outputs))
    wanted = targets if [each.shape for each in found] == [each.shape for each in targets] else [0.0] * len(found)
    kinds = [one.is_floating_point() or one.is_complex() for one in found]
    pairs = [pair for pair, can_learn in zip(zip(found, wanted, strict=True), kinds, strict=True) if can_learn]
    return torch.stack([(one - other).abs().square().mean() for one, other in pairs]).mean()


def runs(student: nn.Module, inputs: Any) -> bool:
    """Whether outputs and gradients are finite numbers after a step forward and backward."""
    outputs = called(switched(student, training=True), inputs)
    parts = [each.abs() for each in tensors_in(outputs) if each.requires_grad]
    if not any(parameter.requires_grad for parameter in student.parameters()):
        return all(bool(each.isfinite().all()) for each in tensors_in(outputs))
    torch.stack([part.sum() for part in parts]).sum().backward()
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    return bool(gradients) and all(bool(value.isfinite().all()) for value in [*parts, *gradients])


@torch.no_grad()
def distance(one: nn.Module, other: nn.Module, inputs: Any) -> float:
    """Largest difference of the outputs, as a share of the largest output."""
    ours, theirs = (list(tensors_in(called(each, inputs))) for each in (one, other))
    largest = max(float(each.abs().max()) for each in ours)
    pairs = zip(ours, theirs, strict=True)
    return max(float((mine.to(torch.complex64) - own.to(torch.complex64)).abs().max()) for mine, own in pairs) / largest


def counted_macs(network: nn.Module, inputs: Any) -> int:
    """MACs of a network."""
    return transprune.count_macs(network, inputs)


def count_params(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


Memory = tuple[dict[str, Tensor], list[tuple[str, type, bool]]]


def remembered(model: nn.Module) -> Memory:
    """Copies of a model's tensors, and its modules' paths, types and modes."""
    state = model.state_dict().items()
    tensors = {name: value.clone() for name, value in state if isinstance(value, Tensor) and not is_lazy(value)}
    return tensors, [(name, type(module), module.training) for name, module in model.named_modules()]


def is_unchanged(model: nn.Module, before: Memory) -> bool:
    tensors, modules = remembered(model)
    same_tensors = tensors.keys() == before[0].keys() and all(
        torch.equal(value, before[0][name]) for name, value in tensors.items()
    )
    return same_tensors and modules == before[1]
