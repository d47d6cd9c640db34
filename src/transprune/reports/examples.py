"""Agreement of teacher and student: accuracy by class, and test images on which they disagree."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from transprune.data import ImageData, make_loader
from transprune.training.evaluation import Answers

MOST_PICTURES = 10
"""Pictures of each kind of disagreement."""
LARGEST_SIDE = 64
"""Largest side of a picture in pixels; larger images are reduced."""
MOST_CONFUSIONS = 400
"""Pairs of classes of which it is kept how often one is taken for the other."""
KINDS = ("teacher_only", "student_only", "both_wrong")
"""Only the teacher is right; only the student is right; both are wrong, with different answers."""


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
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
