"""Agreement of teacher and student: class by class, and test images on which they disagree; of classes and of boxes."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.ops import box_iou

from transprune.data import ImageData, make_loader
from transprune.training.detection import class_precisions
from transprune.training.evaluation import Answers, Detections

MOST_PICTURES = 10
"""Pictures of each kind of disagreement."""
LARGEST_SIDE = 64
"""Largest side of a picture in pixels; larger images are reduced."""
MOST_CONFUSIONS = 400
"""Pairs of classes of which it is kept how often one is taken for the other."""
KINDS = ("teacher_only", "student_only", "both_wrong")
"""Only the teacher is right; only the student is right; both are wrong, with different answers."""
BOXES = "boxes"
"""The form of a record of detectors; that of classifiers has none."""
SURE = 0.3
"""The least score of a box that counts as found."""
OVERLAP = 0.5
"""The least overlap, intersection over union, of a box that is found with the true one."""
SIDE_OF_SCENES = 240
"""Largest side of a picture with boxes, in pixels."""
COLOURS = {"both_right": "#ffffff", "teacher_only": "#ff9d2e", "student_only": "#3fa7ff", "both_wrong": "#ff4d6d"}
"""Of the boxes of objects that both find, only the teacher, only the student, and neither."""


def examples_record(data: ImageData, teacher: Answers, student: Answers) -> dict[str, Any]:
    """The contents of `examples.json`: accuracy by class, counts of agreement, and pictures of disagreements.

    Args:
        data: The data set with the test images.
        teacher: The answers of the teacher.
        student: The answers of the student.
    """
    labels = data.test.labels.cpu()
    is_kind = _kinds(labels, teacher, student)
    places = {kind: _most_confident(is_kind[kind], teacher, student) for kind in KINDS}
    return {
        "format": 1,
        "samples": len(labels),
        "counts": {kind: int(members.sum()) for kind, members in is_kind.items()},
        "classes": _by_class(data, labels, teacher, student),
        "confusions": _confusions(data, labels, teacher, student),
        "examples": [
            {"kind": kind, **_example(data, place, picture, teacher, student)}
            for kind in KINDS
            for place, picture in zip(places[kind], _pictures(data, places[kind]), strict=True)
        ],
    }


def _kinds(labels: Tensor, teacher: Answers, student: Answers) -> dict[str, Tensor]:
    """The images of each kind of disagreement, and those that both get right; bool [samples] each."""
    is_right, is_learned = teacher.classes == labels, student.classes == labels
    return {
        "both_right": is_right & is_learned,
        "teacher_only": is_right & ~is_learned,
        "student_only": ~is_right & is_learned,
        "both_wrong": ~is_right & ~is_learned & (teacher.classes != student.classes),
        "same_mistake": ~is_right & (teacher.classes == student.classes),
    }


def _most_confident(members: Tensor, teacher: Answers, student: Answers) -> list[int]:
    """Indices of the images on which the less confident network is most confident, so none is a toss-up."""
    places = members.nonzero().flatten()
    confidence = torch.minimum(teacher.confidences, student.confidences)[places]
    return [int(place) for place in places[confidence.argsort(descending=True, stable=True)][:MOST_PICTURES]]


def _by_class(data: ImageData, labels: Tensor, teacher: Answers, student: Answers) -> list[dict[str, Any]]:
    """For each class, the number of test images and the accuracy of both networks, in percent."""
    counts = torch.bincount(labels, minlength=len(data.classes))
    right = {
        name: torch.bincount(labels[answers.classes == labels], minlength=len(data.classes))
        for name, answers in (("teacher", teacher), ("student", student))
    }
    return [
        {
            "name": name,
            "samples": int(counts[place]),
            **{network: 100 * int(hits[place]) / int(counts[place]) for network, hits in right.items()},
        }
        for place, name in enumerate(data.classes)
        if counts[place]
    ]


def _confusions(data: ImageData, labels: Tensor, teacher: Answers, student: Answers) -> list[dict[str, Any]]:
    """How often each network takes a class for another, the most frequent of the student first."""
    size = max(len(data.classes), *(int(answers.classes.max()) + 1 for answers in (teacher, student)))
    counts = [
        torch.bincount(labels * size + answers.classes, minlength=size * size).view(size, size).fill_diagonal_(0)
        for answers in (student, teacher)
    ]
    pairs = (counts[0] + counts[1]).nonzero().tolist()
    found = [
        {
            "label": data.classes[label],
            "answer": data.classes[answer],
            "teacher": int(counts[1][label, answer]),
            "student": int(counts[0][label, answer]),
        }
        for label, answer in pairs
        if max(label, answer) < len(data.classes)
    ]
    return sorted(found, key=lambda each: (-each["student"], -each["teacher"]))[:MOST_CONFUSIONS]


def _example(data: ImageData, place: int, picture: str, teacher: Answers, student: Answers) -> dict[str, Any]:
    said = {
        name: {
            "class": data.classes[int(answers.classes[place])],
            "probability": round(float(answers.confidences[place]), 4),
        }
        for name, answers in (("teacher", teacher), ("student", student))
    }
    return {"place": place, "label": data.classes[int(data.test.labels[place])], **said, "image": picture}


def _pictures(data: ImageData, places: list[int]) -> list[str]:
    """Test images as the networks see them, as PNG in data URIs."""
    if not places:
        return []
    chosen = data.test.subset(places)
    loader = make_loader(chosen, data, batch_size=len(places), train=False, seed=0, device="cpu", workers=0)
    normalised, _ = next(iter(loader))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    pixels = ((normalised * std + mean) * 255).round().clamp(0, 255).byte()
    return [_png(image.permute(1, 2, 0).squeeze(2).numpy()) for image in pixels]


def _png(pixels: np.ndarray) -> str:
    """A PNG data URI of at most `LARGEST_SIDE` pixels per side; pixels are uint8 [rows, columns] or [.., .., 3]."""
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return _encoded(image)


def _encoded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def scenes_record(scenes: Iterable[Detections], names: Mapping[int, str]) -> dict[str, Any]:
    """The contents of `examples.json` for detectors: precision by class, what each finds, and pictures with boxes.

    Args:
        scenes: What `teacher` and `student` find on each test image.
        names: Of the classes, by their labels.
    """
    judged: dict[str, list[dict[str, Any]]] = {"teacher": [], "student": []}
    counts, samples = Counter[str](), Counter[int]()
    shown: dict[str, list[_Scene]] = {"teacher_only": [], "student_only": []}
    for place, scene in enumerate(scenes):
        true = {name: each.cpu() for name, each in scene.labelled.objects.items() if isinstance(each, Tensor)}
        for name, found in scene.found.items():
            judged[name].append({"found": found, "true": true})
        here = _Scene(place, scene.labelled.image, true["boxes"], _kinds_of_objects(true, scene.found))
        counts.update(here.kinds)
        samples.update(true["labels"].tolist())
        for kind, best in shown.items():
            if kind in here.kinds:
                shown[kind] = sorted([*best, here], key=lambda each: -each.kinds.count(kind))[:MOST_PICTURES]
    precisions = {name: class_precisions(images) for name, images in judged.items()}
    return {
        "format": 1,
        "form": BOXES,
        "images": len(judged["teacher"]),
        "samples": samples.total(),
        "counts": {kind: counts[kind] for kind in COLOURS},
        "classes": [
            {
                "name": names.get(label, str(label)),
                "samples": samples[label],
                **{name: by_class[label][0] for name, by_class in precisions.items()},
            }
            for label in sorted(samples)
        ],
        "examples": [{"kind": kind, **each.to_json()} for kind, best in shown.items() for each in best],
    }


@dataclass(frozen=True, eq=False)
class _Scene:
    """An image, and who finds the objects on it."""

    place: int
    image: Tensor
    """Values from 0 to 1 [channels, rows, columns]."""
    boxes: Tensor
    """Of the objects, in pixels [objects, 4]."""
    kinds: list[str]

    def to_json(self) -> dict[str, Any]:
        by_both = self.kinds.count("both_right")
        return {
            "place": self.place,
            "objects": len(self.kinds),
            "teacher": by_both + self.kinds.count("teacher_only"),
            "student": by_both + self.kinds.count("student_only"),
            "image": self._with_boxes(),
        }

    def _with_boxes(self) -> str:
        """A PNG data URI of the image, with the boxes; of many channels the first three."""
        seen = self.image[: 3 if len(self.image) >= 3 else 1]
        pixels = (seen.detach().cpu().float() * 255).round().clamp(0, 255).byte()
        picture = Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy()).convert("RGB")
        ratio = SIDE_OF_SCENES / max(picture.size)
        picture = picture.resize([max(1, round(side * ratio)) for side in picture.size])
        draw = ImageDraw.Draw(picture)
        for (left, upper, right, lower), kind in zip((self.boxes * ratio).tolist(), self.kinds, strict=True):
            draw.rectangle((left, upper, right, lower), outline="#000000", width=4)  # seen on any ground
            inside = left + 1, upper + 1, max(left + 1, right - 1), max(upper + 1, lower - 1)
            draw.rectangle(inside, outline=COLOURS[kind], width=2)
        return _encoded(picture)


def _kinds_of_objects(true: Mapping[str, Tensor], found: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Which of the two find each object."""
    by_both = {(True, True): "both_right", (True, False): "teacher_only", (False, True): "student_only"}
    pairs = zip(_is_found(true, found["teacher"]), _is_found(true, found["student"]), strict=True)
    return [by_both.get(pair, "both_wrong") for pair in pairs]


def _is_found(true: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[bool]:
    """Whether each object has a box of its own, of its class, that lies on it; the surest boxes choose first."""
    hit = [False] * len(true["labels"])
    overlaps = box_iou(found["boxes"].double(), true["boxes"].double())
    overlaps[found["labels"][:, None] != true["labels"]] = 0
    for box in found["scores"].argsort(descending=True).tolist():
        if found["scores"][box] < SURE:
            break
        free = [0.0 if taken else float(each) for taken, each in zip(hit, overlaps[box], strict=True)]
        if max(free, default=0.0) >= OVERLAP:
            hit[free.index(max(free))] = True
    return hit
