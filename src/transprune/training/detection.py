"""The tasks of detectors: their own losses, the boxes that they draw, and how precise these are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transprune.errors import DataError, ExportError, OptionError
from transprune.reading.networks import set_mode
from transprune.runtime.structures import copied, outline, tensors_in
from transprune.training.parts import DenseDetector, Part, Surroundings
from transprune.training.tasks import Metric, Task

Found = TypeVar("Found")
TRUE = ("boxes", "labels")
"""What is known of an image, as torchvision has it: boxes [objects, 4] (x1, y1, x2, y2), labels int64 [objects]."""
ROUNDING = 1e-5
"""How far behind the border of its image a box may lie, as a share of the image: resizing computes so exactly."""
LEAST_SCORE, MOST_BOXES = 0.001, 300
"""What ultralytics measures a YOLO with: boxes that it is surer of than this, and so many of an image."""
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

    A YOLO of ultralytics learns by its own criterion, and its own code draws its boxes. Its batches are the same, of
    images of one size with labels from 1 on, or what ultralytics' loaders give.

    Needs `transprune[detection]` to measure.

    Args:
        part: Of the detector, as `part_of` finds it; what surrounds it is copied.

    Source: Lin et al., 2014, arXiv:1405.0312 (the metrics).
    """
    way = _OfAnchors(part) if isinstance(part, DenseDetector) else _OfWhole(part)

    def with_teacher(student: Any, teacher: Any, targets: Sequence[Labelled] | None) -> Tensor:
        distance = relative_distance(student, teacher)
        return distance if targets is None else way.loss(student, targets) + distance

    def boxes(outputs: Any, targets: Sequence[Labelled]) -> list[dict[str, Any]]:
        found = way.boxes(outputs, targets)
        return [
            {"found": _on_cpu(one), "true": _on_cpu(each.objects)} for one, each in zip(found, targets, strict=True)
        ]

    seen, precisions = _kept_last(boxes), _kept_last(average_precisions)

    def precision(name: str) -> Metric:
        return Metric(seen, finish=lambda images: precisions(images)[name], of_all=True)

    return DetectionTask(
        loss=way.loss,
        metrics={name: precision(name) for name in ("map50", "map")},
        distillation_loss=with_teacher,
        split=way.split,
        boxes=boxes,
    )


class _OfWhole:
    """Loss and boxes of a detector that computes them itself, as torchvision's do."""

    def __init__(self, part: Part) -> None:
        self.around = Surroundings(part)

    def split(self, batch: Any) -> tuple[tuple[Tensor, ...], list[Labelled]]:
        images, objects = _checked(batch)
        return self.around.inputs_of((images,)), list(map(Labelled, images, objects))

    def loss(self, outputs: Any, targets: Sequence[Labelled]) -> Tensor:
        images, objects = [each.image for each in targets], [dict(each.objects) for each in targets]
        losses = self.around.outputs((images, objects), outputs, training=True)
        if not isinstance(losses, Mapping):
            raise OptionError(
                f"cannot train {type(self.around.whole).__name__}: in training mode it returned {outline(losses)}; "
                "expected a dict of losses, as torchvision's detectors do, or a task of your own around "
                "transprune.Surroundings"
            )
        return torch.stack([torch.as_tensor(each) for each in losses.values()]).sum()

    def boxes(self, outputs: Any, targets: Sequence[Labelled]) -> list[Mapping[str, Tensor]]:
        found: list[Mapping[str, Tensor]] = self.around.outputs(([each.image for each in targets],), outputs)
        return found


class _OfAnchors:
    """Loss and boxes of a YOLO of ultralytics, by its own criterion and its own drawing of boxes.

    Its classes are counted from 0, and those of the images from 1.
    """

    def __init__(self, part: DenseDetector) -> None:
        whole = copied(part.whole).requires_grad_(False)
        set_mode(whole, training=False)
        self.whole = cast(Any, whole)
        self.head = self.whole.model[-1]
        if getattr(self.whole, "task", "detect") != "detect":
            raise OptionError(
                f"cannot detect with the {type(self.whole).__name__}: its task is {self.whole.task!r}, and only "
                "'detect' has boxes alone; expected a YOLO that detects, or a task of your own (transprune.Task)"
            )
        self.criterion: Any = None

    def split(self, batch: Any) -> tuple[tuple[Tensor, ...], list[Labelled]]:
        images, objects = _checked(_taken_apart(batch) if isinstance(batch, Mapping) and "img" in batch else batch)
        sizes = {tuple(image.shape) for image in images}
        if len(sizes) != 1:
            raise DataError(
                f"cannot give a YOLO images of the sizes {', '.join(map(str, sorted(sizes)))} at once; expected one "
                "size"
            )
        for number, each in enumerate(objects):
            labels, classes = each["labels"], self.head.nc
            if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= classes:
                raise DataError(
                    f"cannot learn from image {number} of a batch: it has labels from {int(labels.min())} to "
                    f"{int(labels.max())}; expected 1 to {classes}, as the YOLO has {classes} classes and 0 is the "
                    "background"
                )
        return (torch.stack(images),), list(map(Labelled, images, objects))

    def loss(self, outputs: Any, targets: Sequence[Labelled]) -> Tensor:
        device = outputs[0]["boxes"].device
        if self.criterion is None or next(self.whole.parameters()).device != device:
            self.criterion = self._criterion(device)
        rows, columns = targets[0].image.shape[-2:]
        boxes = [each.objects["boxes"].to(device) for each in targets]
        drawn = torch.cat(boxes).float() / torch.tensor([columns, rows, columns, rows], device=device)
        batch = {
            "batch_idx": torch.cat([torch.full((len(each),), at, device=device) for at, each in enumerate(boxes)]),
            "cls": torch.cat([each.objects["labels"].to(device) - 1 for each in targets]).float(),
            "bboxes": torch.cat([(drawn[:, :2] + drawn[:, 2:]) / 2, drawn[:, 2:] - drawn[:, :2]], 1),
        }
        heads = self._heads(outputs, targets)
        said = heads[0] if len(heads) == 1 else dict(zip(("one2many", "one2one"), heads, strict=True))
        losses, _ = self.criterion(said, batch)
        total: Tensor = losses.sum() / len(targets)
        return total

    def _criterion(self, device: torch.device) -> Any:
        from ultralytics.utils import DEFAULT_CFG_DICT, IterableSimpleNamespace

        given = getattr(self.whole, "args", {})
        given = given if isinstance(given, Mapping) else vars(given)
        self.whole.to(device).args = IterableSimpleNamespace(**{**DEFAULT_CFG_DICT, **given})
        return self.whole.init_criterion()

    def boxes(self, outputs: Any, targets: Sequence[Labelled]) -> list[Mapping[str, Tensor]]:
        from ultralytics.utils.nms import non_max_suppression

        heads = self._heads(outputs, targets)
        features, said = heads[0]["feats"], iter(heads)
        self.head.to(features[0].device)
        self.head.forward_head = lambda *_, **__: next(said)  # the head draws what others have said
        try:
            found, _ = self.head(features)
        finally:
            del self.head.forward_head
        # It leaves images out once a batch has taken long, which would be a wrong figure on a busy machine.
        drawn = non_max_suppression(
            found, conf_thres=LEAST_SCORE, iou_thres=0.7, max_det=MOST_BOXES, max_time_img=float("inf")
        )
        return [{"boxes": each[:, :4], "scores": each[:, 4], "labels": each[:, 5].long() + 1} for each in drawn]

    def _heads(self, outputs: Sequence[Mapping[str, Tensor]], targets: Sequence[Labelled]) -> list[dict[str, Any]]:
        """What each set of heads says, with features that have the sizes of those that it has read: no more is used."""
        rows, columns = targets[0].image.shape[-2:]
        like, strides = outputs[0]["scores"], [int(stride) for stride in self.head.stride]
        features = [like.new_zeros(len(like), 1, rows // stride, columns // stride) for stride in strides]
        return [{**each, "feats": features} for each in outputs]


def _taken_apart(batch: Mapping[str, Any]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """A batch of ultralytics' loaders: `img` [batch, channels, rows, columns], and all boxes as shares of the image."""
    images = batch["img"].float() / 255 if batch["img"].dtype == torch.uint8 else batch["img"]
    sides = batch["bboxes"].new_tensor(images.shape[-2:][::-1])
    centres, sizes = batch["bboxes"][:, :2] * sides, batch["bboxes"][:, 2:] * sides
    boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], 1)
    labels = batch["cls"].view(-1).long() + 1
    on = [batch["batch_idx"].view(-1) == place for place in range(len(images))]
    return list(images), [{"boxes": boxes[each], "labels": labels[each]} for each in on]


def inputs_of_part(part: Part, images: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What a detector's part is given when the whole is given images [channels, rows, columns]."""
    if isinstance(part, DenseDetector):
        return (torch.stack(list(images)),)
    return Surroundings(part).inputs_of((list(images),))


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
