"""Networks of which a part is searched and the whole is trained: detectors, and others that cannot be traced whole.

What surrounds a part works on lists of images, draws boxes or looks at targets, which no trace holds. It need not be
traced: the part is a network from tensors to tensors, like any other, and what surrounds it is run with the part's
answers in the place of what it would compute itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transprune.errors import DataError, ExportError, ModelError, OptionError
from transprune.reading.networks import set_mode, switched, unwrapped
from transprune.reading.trace import Example, check_forward
from transprune.runtime.structures import (
    ATOMS,
    Inputs,
    as_inputs,
    called,
    copied,
    emptied,
    filled,
    inputs_of,
    mapped,
    on_device,
    outline,
    parts_of,
    tensors_in,
)
from transprune.training.tasks import Metric, Task

Found = TypeVar("Found")


@dataclass(frozen=True)
class Link:
    """A module of a part, and where its inputs come from."""

    path: str
    """Its path in the whole network."""
    arguments: Any
    """The arguments of its forward, with a hole in the place of each tensor."""
    sources: tuple[tuple[str, int], ...]
    """For each tensor the path of the module that gives it, and its number there; an empty path: the part's inputs."""


class Part(nn.Module):
    """Some modules of a network, each given what others of them return, as a network from tensors to tensors.

    It holds the whole network, so that a smaller part is a smaller whole: `shrink(part, …).whole`. What the other
    modules have of weights stays as it is.

    Args:
        whole: The network; its modules are the part's, not copies of them.
        links: The modules, in the order in which they run.
    """

    def __init__(self, whole: nn.Module, links: Sequence[Link]) -> None:
        super().__init__()
        self.whole, self.links = whole, tuple(links)

    def forward(self, *inputs: Tensor) -> dict[str, Any]:
        """What each of the modules returns, by its path; the inputs are those of `inputs_of`."""
        given: dict[str, list[Tensor]] = {"": list(inputs)}
        returned: dict[str, Any] = {}
        for link in self.links:
            arguments = filled(link.arguments, [given[path][place] for path, place in link.sources])
            outputs = called(self.whole.get_submodule(link.path), arguments)
            returned[link.path], given[link.path] = outputs, list(tensors_in(outputs))
        return returned


class Surroundings:
    """What is around a part, which is run with the part's answers. The whole network is untouched.

    Args:
        part: The part.

    Raises:
        ModelError: It is none.
    """

    def __init__(self, part: Part) -> None:
        if not isinstance(part, Part):
            raise ModelError(
                f"cannot tell what is around a {type(part).__name__}: expected a Part, as transprune.part_of finds it "
                "(of a student without a `whole`: the one that it was made of)"
            )
        self.whole, self.links = copied(part.whole).requires_grad_(False), part.links

    def inputs_of(self, inputs: Example) -> tuple[Tensor, ...]:
        """What the part is given when the whole network is given `inputs` in evaluation mode, where its weights are.

        Raises:
            ModelError: The whole network does not run that far.
        """
        found: list[tuple[Tensor, ...]] = []

        def first(*positional: Any, **named: Any) -> Any:
            found.append(self._of_first(inputs_of(positional, named)))
            raise _Reached

        try:
            self._run(inputs, {self.links[0].path: first}, training=False)
        except _Reached:
            return found[0]
        raise ModelError(
            f"cannot run the {type(self.whole).__name__}: it does not call {self.links[0].path!r} for "
            f"{outline(inputs)}; expected inputs like the example's"
        )

    def outputs(self, inputs: Example, answers: Mapping[str, Any], *, training: bool = False) -> Any:
        """What the whole network returns when its part returns `answers`, as `Part.forward` does.

        What comes before the part runs in evaluation mode in any case, as in `inputs_of`: a random choice of sizes,
        say, would be another than the one that the part was given. Norms after it do too: their weights stay as they
        are, and so do their statistics. The answers are the caller's: what changes tensors in place is given copies.

        Raises:
            ModelError: The answers are not of the part's modules.
        """
        paths = [link.path for link in self.links]
        if not isinstance(answers, Mapping) or any(next(tensors_in(answers.get(path)), None) is None for path in paths):
            raise ModelError(
                f"cannot run what is around a part of the {type(self.whole).__name__} with {outline(answers)}: "
                f"expected what the part returns, a dict of what {', '.join(map(repr, paths))} returned"
            )
        self.whole.to(next(tensors_in(answers)).device)
        ways = {link.path: _returning(mapped(answers[link.path], Tensor.clone)) for link in self.links}
        return self._run(inputs, ways, training=training)

    def _run(self, inputs: Example, ways: Mapping[str, Callable[..., Any]], *, training: bool) -> Any:
        set_mode(self.whole, training=False)
        self.whole.training = training
        modules = {path: self.whole.get_submodule(path) for path in ways}

        def first(*positional: Any, **named: Any) -> Any:
            switched(self.whole, training=training)
            for module in self.whole.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    module.training = False
            return ways[self.links[0].path](*positional, **named)

        for path, module in modules.items():
            module.forward = first if path == self.links[0].path else ways[path]
        weights = next(self.whole.parameters(), None)
        try:
            return called(self.whole, inputs if weights is None else on_device(inputs, weights.device))
        finally:
            for module in modules.values():
                del module.forward

    def _of_first(self, arguments: Any) -> tuple[Tensor, ...]:
        tensors = list(tensors_in(arguments))
        expected = len(self.links[0].sources)
        if len(tensors) != expected:
            raise ModelError(
                f"cannot run the {type(self.whole).__name__}: it gives {self.links[0].path!r} {outline(arguments)}; "
                f"expected {expected} tensors, as for the example"
            )
        return tuple(tensors)


class _Reached(Exception):  # noqa: N818 — no error
    """The part is reached: what follows is not wanted."""


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


@dataclass
class _Call:
    """A call of a module."""

    path: str
    arguments: Any
    outputs: Any = None
    number: int = 0
    """How many calls began before it."""


def part_of(whole: nn.Module, example: Example, modules: Sequence[str] | None = None) -> Part:
    """The part of a network that can be traced, of which the whole cannot, such as a detector.

    It is made of the modules that take and return nothing but tensors, each once in a forward, and whose tensors come
    from each other, beginning with the first: a backbone, a neck, heads. The largest such modules are taken.

        part = transprune.part_of(detector, ([image, image],))
        small = transprune.compress(part, …, "macs=0.5").student.whole

    Args:
        whole: The network; untouched.
        example: Inputs that it takes in evaluation mode.
        modules: Paths of the modules, in any order; None: they are found.

    Raises:
        ModelError: It does not run on the example; no module of it takes and returns tensors alone; or one that is
            named does not, is not called once, is inside of another, or is given what none before it returns.
    """
    whole, example = unwrapped(whole), as_inputs(example)
    modules = [modules] if isinstance(modules, str) else modules
    check_forward(whole, example)
    calls = _calls(whole, example, modules)
    links: list[Link] = []
    known: dict[int, tuple[str, int]] = {}
    for call in calls:
        tensors = list(tensors_in(call.arguments))
        if not links:
            known |= {id(tensor): ("", place) for place, tensor in enumerate(tensors)}
        if all(id(tensor) in known for tensor in tensors):
            links.append(Link(call.path, emptied(call.arguments), tuple(known[id(tensor)] for tensor in tensors)))
            known |= {id(tensor): (call.path, place) for place, tensor in enumerate(tensors_in(call.outputs))}
        elif modules is not None:
            raise ModelError(
                f"cannot make {call.path!r} of the {type(whole).__name__} part of what is searched: it is given "
                f"tensors that neither {links[0].path!r} is given nor a named module before it returns, but what is "
                "computed between them; expected modules that hand their tensors on to each other"
            )
    if not links:
        raise ModelError(
            f"cannot find a part of the {type(whole).__name__} that takes and returns tensors alone, once in each "
            "forward; expected modules such as a backbone and its heads: move what else these are given, such as "
            "sizes or targets, to where they are called from"
        )
    part = Part(whole, links)
    _check(part, example)
    return part


def _check(part: Part, example: Example) -> None:
    """Checks that the part returns what its modules do in the whole network, and the whole with its answers the same.

    What the whole returns does not suffice: a detector that has not learned yet may find nothing in any case.

    Raises:
        ModelError: It does not.
    """
    network = copied(part)
    set_mode(network, training=False)
    around = Surroundings(network)
    returned: list[Any] = []
    for link in part.links:  # copies, as what follows may change them in place
        network.whole.get_submodule(link.path).register_forward_hook(
            lambda _, __, outputs: returned.append(mapped(outputs, Tensor.clone))
        )
    with torch.no_grad():
        wanted = called(network.whole, example)
        found = around.outputs(example, network(*around.inputs_of(example)))
    count = len(part.links)
    if not _is_alike((wanted, returned[:count]), (found, returned[count:])):
        raise ModelError(
            f"cannot take {', '.join(repr(link.path) for link in part.links)} of the {type(part.whole).__name__} for a "
            f"part of it: with what they return for the same inputs it gives {outline(found)} where it gave "
            f"{outline(wanted)}, or other numbers on the way; expected a forward that computes the same whenever it is "
            "called, and changes nothing in place between these modules"
        )


def _is_alike(one: Any, other: Any) -> bool:
    try:
        pairs = list(zip(tensors_in(one), tensors_in(other), strict=True))
        return all(torch.allclose(*pair, 1e-3, 1e-5, equal_nan=True) for pair in pairs)
    except (RuntimeError, ValueError):  # another number of tensors, or other shapes
        return False


@torch.no_grad()
def _calls(whole: nn.Module, example: Example, modules: Sequence[str] | None) -> list[_Call]:
    """The calls of the named modules, or of the largest with weights that run once, from tensors to tensors, in order.

    Raises:
        ModelError: A named module is not there, not called once, or given or returning something else than tensors.
    """
    open_calls: list[_Call] = []
    found: list[_Call] = []
    network = copied(whole)
    set_mode(network, training=False)

    def before(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, positional: Any, named: Any) -> None:
            call = _Call(path, inputs_of(positional, named), number=len(found) + len(open_calls))
            open_calls.append(call)

        return hook

    def after(_: nn.Module, __: Any, outputs: Any) -> None:
        call = open_calls.pop()
        call.outputs = outputs
        found.append(call)

    for path, module in network.named_modules():
        if path:
            module.register_forward_pre_hook(before(path), with_kwargs=True)
            module.register_forward_hook(after)
    called(network, example)
    often = [call.path for call in found]
    with_weights = {path for path, module in network.named_modules() if next(module.parameters(), None) is not None}
    plain = [
        call
        for call in found
        if call.path in with_weights and often.count(call.path) == 1
        if _is_of_tensors(call.arguments) and _is_of_tensors(call.outputs)
    ]
    if modules is not None:
        named = {call.path: call for call in plain}
        for path in modules:
            what = f"cannot make {path!r} of the {type(whole).__name__} part of what is searched: it is"
            if path not in named:
                raise ModelError(
                    f"{what} {_why_not(path, found, with_weights)}; expected one of "
                    f"{', '.join(map(repr, named)) or 'none'}"
                )
            around = next((above for above in _above(path) if above in modules), None)
            if around is not None:
                raise ModelError(f"{what} inside of {around!r}, which is named too; expected one of the two")
        return sorted((named[path] for path in {*modules}), key=lambda call: call.number)
    paths = {call.path for call in plain}
    largest = [call for call in plain if not any(above in paths for above in _above(call.path))]
    return sorted(largest, key=lambda call: call.number)


def _above(path: str) -> Iterator[str]:
    """The paths of the modules around one."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _is_of_tensors(value: Any) -> bool:
    """Whether a value is made of tensors, in tuples, lists and mappings, and at most flags and numbers beside."""
    return next(tensors_in(value), None) is not None and _has_plain_parts(value)


def _has_plain_parts(value: Any) -> bool:
    if isinstance(value, Tensor | ATOMS):
        return True
    is_plain = isinstance(value, tuple | list | Mapping | Inputs)
    return is_plain and all(map(_has_plain_parts, (parts_of(value) or {}).values()))


def _why_not(path: str, calls: Sequence[_Call], with_weights: Collection[str]) -> str:
    mine = [call for call in calls if call.path == path]
    if path not in with_weights:
        return "no module of it that has weights"
    if len(mine) != 1:
        return f"called {len(mine)} times in a forward"
    return f"given {outline(mine[0].arguments)} and returns {outline(mine[0].outputs)}"


# --- the task of detectors

TRUE = ("boxes", "labels")
"""What is known of an image, as torchvision has it: boxes [objects, 4] (x1, y1, x2, y2), labels int64 [objects]."""
ROUNDING = 1e-5
"""How far behind the border of its image a box may lie, as a share of the image: resizing computes so exactly."""
FOUND = (*TRUE, "scores")
"""What a detector finds: how sure it is of each box, too."""
OVERLAPS = 10
"""Overlaps at which boxes are judged: 0.5, 0.55, …, 0.95."""
EPSILON = 0.01
"""Keeps what hardly varies, as in a head that has not learned yet, from outweighing all else."""


@dataclass(frozen=True)
class Labelled:
    """An image and what is on it, as the whole detector is given them."""

    image: Tensor
    """[channels, rows, columns]."""
    objects: Mapping[str, Tensor]
    """Its boxes and labels, and what else the detector learns from."""


@dataclass(frozen=True)
class DetectionTask(Task):
    """What `detection` makes."""

    boxes: Callable[[Any, Sequence[Labelled]], list[dict[str, Any]]] = field(repr=False, kw_only=True)
    """Maps outputs of the part and targets to what was `found` on each image, and what is `true`."""


def detection(part: Part) -> DetectionTask:
    """For a detector of torchvision, or one that is called alike, whose part is searched and trained.

    Batches are pairs of a list of images [channels, rows, columns] and a list of as many dicts, with `boxes` float
    [objects, 4] (x1, y1, x2, y2, in pixels) and `labels` int64 [objects]. In training mode the detector returns a dict
    of losses, whose sum is the loss; in evaluation mode a list of dicts with `boxes`, `labels` and `scores`. The part
    learns from what surrounds it: its matching of anchors, losses and drawing of boxes run as they are. `map50` is the
    mean over classes of the average precision at an overlap of 0.5, `map` that over overlaps of 0.5 to 0.95, as for
    COCO, both in percent. A student learns from the objects, and what the teacher's part returns
    (`relative_distance`).

    Needs `transprune[detection]` to measure.

    Args:
        part: Of the detector, as `part_of` finds it; what surrounds it is copied.

    Source: Lin et al., 2014, arXiv:1405.0312 (the metrics).
    """
    around = Surroundings(part)

    def split(batch: Any) -> tuple[tuple[Tensor, ...], list[Labelled]]:
        images, objects = _checked(batch)
        return around.inputs_of((images,)), list(map(Labelled, images, objects))

    def loss(outputs: Any, targets: Sequence[Labelled]) -> Tensor:
        images, objects = [each.image for each in targets], [dict(each.objects) for each in targets]
        losses = around.outputs((images, objects), outputs, training=True)
        if not isinstance(losses, Mapping):
            raise OptionError(
                f"cannot train {type(part.whole).__name__}: in training mode it returned {outline(losses)}; expected a "
                "dict of losses, as torchvision's detectors do, or a task of your own around transprune.Surroundings"
            )
        return torch.stack([torch.as_tensor(each) for each in losses.values()]).sum()

    def with_teacher(student: Any, teacher: Any, targets: Sequence[Labelled] | None) -> Tensor:
        distance = relative_distance(student, teacher)
        return distance if targets is None else loss(student, targets) + distance

    def boxes(outputs: Any, targets: Sequence[Labelled]) -> list[dict[str, Any]]:
        found = around.outputs(([each.image for each in targets],), outputs)
        return [
            {"found": _on_cpu(one), "true": _on_cpu(each.objects)} for one, each in zip(found, targets, strict=True)
        ]

    seen, precisions = _kept_last(boxes), _kept_last(average_precisions)

    def precision(name: str) -> Metric:
        return Metric(seen, finish=lambda images: precisions(images)[name], of_all=True)

    return DetectionTask(
        loss=loss,
        metrics={name: precision(name) for name in ("map50", "map")},
        distillation_loss=with_teacher,
        split=split,
        boxes=boxes,
    )


def resize_to(whole: nn.Module, size: tuple[int, int, int]) -> None:
    """Lets a detector of torchvision take images at a size (channels, rows, columns), instead of enlarging them.

    One with a size of its own, as SSD has, keeps that.
    """
    transform = getattr(whole, "transform", None)
    if transform is not None and getattr(transform, "fixed_size", 0) is None:
        transform.min_size, transform.max_size = (min(size[1:]),), max(size[1:])


def relative_distance(outputs: Any, wanted: Any) -> Tensor:
    """The mean over tensors of the squared difference, relative to the variance of what is wanted.

    Features, scores and boxes are of different sizes, and each counts alike. Beyond a standard deviation the distance
    grows in a line, so that a few answers that are far off, or a head that hardly varies, do not upset the training.
    """
    distances = []
    for one, other in zip(tensors_in(outputs), tensors_in(wanted), strict=True):
        scale = (other.var().detach() + EPSILON).sqrt()
        distances.append(2 * F.smooth_l1_loss(one / scale, other.detach() / scale))
    return torch.stack(distances).mean()


def average_precisions(images: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean average precision over classes, in percent: `map50` and `map`.

    Args:
        images: For each image what was `found` (`boxes`, `labels`, `scores`) and what is `true` (`boxes`, `labels`).

    Raises:
        DataError: An image is none of these.
        ExportError: faster-coco-eval is not installed.
    """
    found = torch.tensor(list(class_precisions(images).values()), dtype=torch.float64).reshape(-1, OVERLAPS)
    return {"map50": float(found[:, 0].mean()), "map": float(found.mean())}


def class_precisions(images: Sequence[Mapping[str, Any]]) -> dict[int, list[float]]:
    """The average precision of each class of which there is an object, by its label, in percent.

    Args:
        images: As of `average_precisions`.

    Returns:
        For each label one figure for each overlap: 0.5, 0.55, …, 0.95.

    Raises:
        As `average_precisions`.
    """
    for number, image in enumerate(images):
        for side, names in (("found", FOUND), ("true", TRUE)):
            if not _has_tensors(image.get(side), names):
                raise DataError(
                    f"cannot measure average precision: {side!r} of image {number} is {outline(image.get(side))}; "
                    f"expected a dict with tensors {', '.join(names)}"
                )
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise ExportError(
            "cannot measure average precision: faster-coco-eval is not installed; install it with "
            "`pip install 'transprune[detection]'`"
        ) from error
    true: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, image in enumerate(images, 1):
        for box, label in _sides(image["true"]):
            true.append(
                {"id": len(true) + 1, "image_id": number, "category_id": label, "iscrowd": 0}
                | {"bbox": box, "area": box[2] * box[3]}
            )
        scores = image["found"]["scores"].tolist()
        for (box, label), score in zip(_sides(image["found"]), scores, strict=True):
            found.append({"image_id": number, "category_id": label, "bbox": box, "score": score})
    labels = sorted({each["category_id"] for each in true})
    if not true or not found:
        return {label: [0.0] * OVERLAPS for label in labels}
    known = COCO(
        {
            "images": [{"id": number} for number in range(1, len(images) + 1)],
            "annotations": true,
            "categories": [{"id": label, "name": str(label)} for label in labels],
        }
    )
    judged = COCOeval_faster(known, known.loadRes(found), "bbox", print_function=lambda *_: None)
    judged.evaluate()
    judged.accumulate()
    # [overlaps, recalls, classes, sizes of objects (all first), most boxes of an image (the largest last)]
    by_class = 100 * judged.eval["precision"][:, :, :, 0, -1].mean(1)
    return {label: by_class[:, place].tolist() for place, label in enumerate(labels)}


def _sides(objects: Mapping[str, Tensor]) -> list[tuple[list[float], int]]:
    """Boxes as x, y, width and height, with their labels."""
    boxes = objects["boxes"].double().clone()
    boxes[:, 2:] -= boxes[:, :2]
    return list(zip(boxes.tolist(), objects["labels"].tolist(), strict=True))


def _has_tensors(objects: Any, names: Sequence[str]) -> bool:
    return isinstance(objects, Mapping) and all(isinstance(objects.get(name), Tensor) for name in names)


def _on_cpu(objects: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: objects[name].detach().cpu() for name in FOUND if name in objects}


def _kept_last(compute: Callable[..., Found]) -> Callable[..., Found]:
    """The same function, which does not compute twice what it is asked for twice in a row."""
    last: list[Any] = []

    def kept(*arguments: Any) -> Found:
        if not last or any(one is not other for one, other in zip(last[0], arguments, strict=True)):
            last[:] = [arguments, compute(*arguments)]
        found: Found = last[1]
        return found

    return kept


def _checked(batch: Any) -> tuple[list[Tensor], list[Mapping[str, Tensor]]]:
    """The images and objects of a batch.

    Raises:
        DataError: It holds something else, or boxes that no image can have.
    """
    images, objects = batch if isinstance(batch, tuple | list) and len(batch) == 2 else ((), None)
    is_images = all(isinstance(each, Tensor) and each.dim() == 3 for each in images)
    if not is_images or not isinstance(objects, list | tuple) or len(objects) != len(images):
        raise DataError(
            f"cannot take the batch {outline(batch)} apart: expected a list of images [channels, rows, columns] and a "
            "list of as many dicts with `boxes` [objects, 4] and `labels` [objects]"
        )
    for number, (image, each) in enumerate(zip(images, objects, strict=True)):
        _check_objects(number, image, each)
    return list(images), list(objects)


def _check_objects(number: int, image: Tensor, objects: Any) -> None:
    where = f"cannot learn from image {number} of a batch"
    if not _has_tensors(objects, TRUE):
        raise DataError(f"{where}: what is on it is {outline(objects)}; expected a dict with tensors boxes and labels")
    boxes, labels = (objects[name] for name in TRUE)
    if boxes.dim() != 2 or boxes.shape[1:] != (4,) or labels.shape != boxes.shape[:1] or labels.is_floating_point():
        raise DataError(
            f"{where}: its boxes are {outline(boxes)} and its labels {outline(labels)} of {labels.dtype}; expected "
            "float [objects, 4] and int64 [objects]; without objects [0, 4] and [0]"
        )
    rows, columns = image.shape[1:]
    starts, ends = boxes[:, :2], boxes[:, 2:]
    most = ends.new_tensor([columns, rows])
    is_inside = (starts >= -ROUNDING * most).all(1) & (ends <= (1 + ROUNDING) * most).all(1)
    good = (starts < ends).all(1) & is_inside
    if not bool(good.all()):
        raise DataError(
            f"{where}, of {rows} rows and {columns} columns: it has the box {boxes[~good][0].tolist()}; expected x1, "
            "y1, x2, y2 in pixels, with x1 < x2 and y1 < y2, inside of the image"
        )
    if bool((labels < 0).any()):
        raise DataError(f"{where}: it has the label {int(labels.min())}; expected numbers of classes, 0 or more")
