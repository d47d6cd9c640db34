"""What examples.json holds: figures by class, and pictures of test images on which two networks disagree."""

from __future__ import annotations

import base64
import io

import pytest
import torch
from PIL import Image

from transprune.data import ImageData, MemorySplit
from transprune.data.augmentation import Augmentation
from transprune.reports.examples import LARGEST_SIDE, MOST_PICTURES, examples_record, scenes_record
from transprune.training.detection import Labelled
from transprune.training.evaluation import Answers, Detections, answers


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


def boxes_at(*left, labels=None, scores=None):
    """Squares of 10 pixels that begin at certain columns."""
    found = {
        "boxes": torch.tensor([[each, 0.0, each + 10, 10] for each in left]).reshape(-1, 4),
        "labels": torch.tensor(labels or [1] * len(left)),
    }
    return found if scores is None else found | {"scores": torch.tensor(scores)}


def scene(true, teacher, student):
    return Detections(labelled=Labelled(torch.rand(3, 12, 60), true), found={"teacher": teacher, "student": student})


def test_objects_are_counted_by_who_finds_them():
    true = boxes_at(0, 15, 30, 45, labels=[1, 1, 2, 2])
    teacher = boxes_at(1, 15, 30, labels=[1, 1, 1], scores=[0.9, 0.8, 0.7])  # the third is of another class
    student = boxes_at(0, 0, 30, 45, labels=[1, 1, 2, 2], scores=[0.5, 0.4, 0.2, 0.6])  # one twice, one unsure
    record = scenes_record([scene(true, teacher, student)], {1: "cat", 2: "dog"})
    assert record["counts"] == {"both_right": 1, "teacher_only": 1, "student_only": 1, "both_wrong": 1}
    assert (record["samples"], record["images"]) == (4, 1)
    assert [(each["name"], each["samples"]) for each in record["classes"]] == [("cat", 2), ("dog", 2)]
    assert record["classes"][0]["teacher"] == pytest.approx(100)
    assert record["classes"][1]["teacher"] == 0
    assert record["classes"][1]["student"] == pytest.approx(100)  # precision does not ask for a least score


def test_scenes_with_the_most_objects_that_one_alone_finds_are_shown():
    nothing = boxes_at(scores=[])
    both, first = boxes_at(0, 20, scores=[0.9, 0.9]), boxes_at(0, scores=[0.9])
    true = boxes_at(0, 20)
    scenes = [scene(true, both, both), scene(true, both, first), scene(true, both, nothing), scene(true, first, both)]
    shown = scenes_record(scenes, {})["examples"]
    found = [(each["kind"], each["place"], each["objects"], each["teacher"], each["student"]) for each in shown]
    assert found == [("teacher_only", 2, 2, 2, 0), ("teacher_only", 1, 2, 2, 1), ("student_only", 3, 2, 1, 2)]


def test_the_edges_of_boxes_have_the_colour_of_who_finds_them():
    true, found = boxes_at(0, 30), boxes_at(0, scores=[0.9])
    picture = scenes_record([scene(true, found, boxes_at(scores=[]))], {})["examples"][0]["image"]
    pixels = Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2])))
    assert pixels.size == (240, 48)  # four times as large
    assert [pixels.getpixel((column, 20)) for column in (2, 122)] == [(255, 157, 46), (255, 77, 109)]


def test_a_class_without_a_name_has_its_number():
    record = scenes_record([scene(boxes_at(0, labels=[7]), boxes_at(scores=[]), boxes_at(scores=[]))], {})
    assert record["classes"] == [{"name": "7", "samples": 1, "teacher": 0.0, "student": 0.0}]


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_scenes_of_any_number_of_channels_have_a_picture(channels):
    found = Labelled(torch.rand(channels, 12, 60), boxes_at(0)), {"teacher": boxes_at(0, scores=[0.9])}
    seen = Detections(labelled=found[0], found=found[1] | {"student": boxes_at(scores=[])})
    assert scenes_record([seen], {})["examples"][0]["image"].startswith("data:image/png")
