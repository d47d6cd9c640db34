"""What examples.json holds: accuracy by class, and pictures of test images on which two networks disagree."""

from __future__ import annotations

import base64
import io

import pytest
import torch
from PIL import Image

from transprune.data import ImageData, MemorySplit
from transprune.data.augmentation import Augmentation
from transprune.reports.examples import LARGEST_SIDE, MOST_PICTURES, examples_record
from transprune.training.evaluation import Answers, answers


def data_of(labels: list[int], size: tuple[int, int, int] = (3, 6, 5)) -> ImageData:
    """Images whose pixels all have the value of their place."""
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, *size).contiguous()
    split = MemorySplit(images, torch.tensor(labels))
    channels = size[0]
    return ImageData(
        name="grey", train=split, test=split, classes=("a", "b", "c"), image_size=size,
        mean=(0.4,) * channels, std=(0.2,) * channels, augmentation=Augmentation(),
    )  # fmt: skip


def said(classes: list[int], confidences: list[float] | None = None) -> Answers:
    return Answers(classes=torch.tensor(classes), confidences=torch.tensor(confidences or [0.9] * len(classes)))


LABELS = [0, 0, 1, 1, 2, 2]
TEACHER = said([0, 0, 1, 0, 1, 0])
STUDENT = said([0, 1, 1, 1, 1, 1])


def test_images_are_counted_by_who_is_right():
    record = examples_record(data_of(LABELS), TEACHER, STUDENT)
    counts = {"both_right": 2, "teacher_only": 1, "student_only": 1, "both_wrong": 1, "same_mistake": 1}
    assert record["counts"] == counts
    assert sum(counts.values()) == record["samples"] == 6


def test_accuracy_is_counted_class_by_class_and_absent_classes_are_left_out():
    record = examples_record(data_of(LABELS), TEACHER, STUDENT)
    assert record["classes"] == [
        {"name": "a", "samples": 2, "teacher": 100.0, "student": 50.0},
        {"name": "b", "samples": 2, "teacher": 50.0, "student": 100.0},
        {"name": "c", "samples": 2, "teacher": 0.0, "student": 0.0},
    ]
    only_a = examples_record(data_of([0, 0]), said([0, 0]), said([0, 0]))
    assert [each["name"] for each in only_a["classes"]] == ["a"]
    assert only_a["examples"] == []


def test_what_is_taken_for_what_is_counted_for_both_networks():
    record = examples_record(data_of(LABELS), TEACHER, STUDENT)
    assert record["confusions"] == [
        {"label": "c", "answer": "b", "teacher": 1, "student": 2},
        {"label": "a", "answer": "b", "teacher": 0, "student": 1},
        {"label": "b", "answer": "a", "teacher": 1, "student": 0},
        {"label": "c", "answer": "a", "teacher": 1, "student": 0},
    ]


@pytest.mark.parametrize("size", [(1, 6, 5), (3, 6, 5)])
def test_a_picture_has_the_pixels_of_its_test_image(size):
    record = examples_record(data_of(LABELS, size), TEACHER, STUDENT)
    found = {each["kind"]: each for each in record["examples"]}
    assert {kind: each["place"] for kind, each in found.items()} == {
        "teacher_only": 1, "student_only": 3, "both_wrong": 5,
    }  # fmt: skip
    for each in found.values():
        picture = Image.open(io.BytesIO(base64.b64decode(each["image"].removeprefix("data:image/png;base64,"))))
        assert picture.size == (5, 6)
        assert set(picture.convert("L").getdata()) == {each["place"]}
    both = found["both_wrong"]
    assert (both["label"], both["teacher"]["class"], both["student"]["class"]) == ("c", "a", "b")


def test_large_images_are_made_small_and_there_are_only_so_many():
    labels = [0] * 200
    confidences = [n / 200 for n in range(200)]
    record = examples_record(data_of(labels, (3, 100, 80)), said([0] * 200, [1.0] * 200), said([1] * 200, confidences))
    assert [each["place"] for each in record["examples"]] == list(range(199, 199 - MOST_PICTURES, -1))
    first = base64.b64decode(record["examples"][0]["image"].removeprefix("data:image/png;base64,"))
    assert max(Image.open(io.BytesIO(first)).size) == LARGEST_SIDE


def test_pictures_of_pure_noise_stay_below_two_megabytes():
    data = data_of([0, 1, 2] * 20, (3, 224, 224))
    noise = torch.randint(0, 256, (60, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    object.__setattr__(data, "test", MemorySplit(noise, data.test.labels))
    record = examples_record(data, said([0] * 60), said([1] * 60))
    assert len(record["examples"]) == 3 * MOST_PICTURES
    assert sum(len(each["image"]) for each in record["examples"]) < 1_000_000


class Brightness(torch.nn.Module):
    """Says "b" of bright images, "a" of dark ones."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, images):
        bright = images.mean((1, 2, 3)) - self.threshold
        return torch.stack([-bright, bright, torch.full_like(bright, -9.0)], dim=1)


def test_answers_come_in_the_order_of_the_split_and_leave_the_networks_in_their_mode():
    data = data_of([0] * 10)
    normal = (torch.arange(10) / 255 - 0.4) / 0.2
    networks = {"low": Brightness(float(normal[4]) - 1e-3), "high": Brightness(float(normal[7]) - 1e-3).train()}
    found = answers(networks, data, batch_size=3)
    assert found["low"].classes.tolist() == [0] * 4 + [1] * 6
    assert found["high"].classes.tolist() == [0] * 7 + [1] * 3
    logits = networks["low"](normal.view(-1, 1, 1, 1).expand(-1, 3, 6, 5))
    assert torch.allclose(found["low"].confidences, logits.softmax(1).max(1).values, atol=1e-5)
    assert all(network.training for network in networks.values())
