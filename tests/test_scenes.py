"""Images with boxes: read from folders as COCO and YOLO have them, brought to one size, changed with their boxes."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torchvision.models import detection as models

import scene_folders
import transprune
from scene_folders import BOX, COLUMNS, ROWS, write_coco, write_yolo
from transprune.cli import main
from transprune.data.scenes import Scene, Scenes, load_scenes
from transprune.errors import DataError
from transprune.runs.material import collect, detector_of
from transprune.runs.run_options import preset_options

SIZE = (3, 2 * ROWS, COLUMNS)
"""Twice as high, so that rows and columns are not scaled alike."""


@pytest.mark.parametrize(("write", "kind"), [(write_coco, "coco"), (write_yolo, "yolo")])
def test_both_forms_give_the_same_boxes_at_the_size_of_the_images(tmp_path, write, kind):
    write(tmp_path)
    found = load_scenes(f"{kind}:{tmp_path}", image_size=SIZE, batch_size=3)
    assert found.classes == 3
    images, objects = next(iter(found.test))
    assert [tuple(each.shape) for each in images] == [SIZE] * 3
    assert [each["labels"].tolist() for each in objects] == [[1], [2], [1]]
    wanted = torch.tensor([[BOX[0], 2 * BOX[1], BOX[2], 2 * BOX[3]]], dtype=torch.float32)
    assert all(torch.allclose(each["boxes"], wanted, atol=1e-3) for each in objects)
    left, upper, right, lower = wanted[0].int().tolist()
    assert images[0][0, upper + 3 : lower - 3, left + 3 : right - 3].min() > 0.95  # red, in the box


def test_changes_move_boxes_with_what_is_in_them(tmp_path):
    data = load_scenes(f"coco:{write_coco(tmp_path)}", image_size=(3, ROWS, COLUMNS), augmentation="standard")
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        image, objects = data.train.dataset[0]
        for left, upper, right, lower in objects["boxes"].round().int().tolist():
            inner = image[0, upper + 2 : lower - 2, left + 2 : right - 2]
            assert inner.numel() == 0 or inner.mean() > 0.9
            seen.add((left, upper, right, lower))
    assert len(seen) > 2


def test_an_object_at_the_border_is_not_behind_it_by_rounding(tmp_path):
    found = []
    for columns in range(150, 192):
        file = tmp_path / f"{columns}.png"
        Image.new("RGB", (columns, 50)).save(file)
        scene = Scene(file, torch.tensor([[3.0, 0, columns, 50]]), torch.tensor([1]))
        found += [Scenes([scene], (64, 96), augmentation)[0][1]["boxes"] for augmentation in ("none", "shift")]
    assert all(len(boxes) for boxes in found[::2]), "none is lost"
    edges = torch.cat(found)[:, 2:]
    assert (edges <= torch.tensor([96, 64])).all()
    assert (edges == torch.tensor([96, 64])).all(1).sum() > 40


def test_categories_that_count_from_zero_leave_it_to_the_background(tmp_path):
    found = load_scenes(f"coco:{write_coco(tmp_path, first=0)}", image_size=SIZE)
    assert found.classes == 3
    assert {each["labels"].item() for _, batch in found.test for each in batch} == {1, 2}


def test_outlines_become_their_boxes_and_images_without_objects_stay(tmp_path):
    write_yolo(tmp_path, line="1 0.25 0.25 0.5 0.25 0.5 0.75\n")
    (tmp_path / "labels" / "train" / "1.txt").unlink()
    first, second, *_ = load_scenes(f"yolo:{tmp_path}").train.dataset.scenes
    assert first.boxes.tolist() == [[COLUMNS / 4, ROWS / 4, COLUMNS / 2, 3 * ROWS / 4]]
    assert first.labels.tolist() == [2]
    assert second.boxes.shape == (0, 4)


def test_crowds_are_left_out(tmp_path):
    found = load_scenes(f"coco:{write_coco(tmp_path, iscrowd=1)}").train.dataset.scenes
    assert [len(each.labels) for each in found] == [0, 1, 1, 1]


def test_boxes_drawn_on_images_of_another_size_are_refused(tmp_path):
    write_coco(tmp_path)
    table = tmp_path / "annotations" / "instances_val2017.json"
    record = json.loads(table.read_text())
    record["images"][2]["width"] *= 2
    table.write_text(json.dumps(record))
    with pytest.raises(DataError, match=rf"{2 * COLUMNS} columns"):
        load_scenes(f"coco:{tmp_path}")


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_boxes_are_drawn_on_images_as_their_exif_turns_them(tmp_path, kind):
    """The picture looks the same; it is stored lying on its side."""
    (write_coco if kind == "coco" else write_yolo)(tmp_path)
    file = next(each for each in tmp_path.rglob("0.png") if each.parent.name == "val")
    with Image.open(file) as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
    tags = Image.Exif()
    tags[0x0112] = 6  # to be turned back
    turned.save(file, exif=tags)
    image, objects = load_scenes(f"{kind}:{tmp_path}", image_size=(3, ROWS, COLUMNS)).test.dataset[0]
    assert objects["boxes"].round().tolist() == [list(map(float, BOX))]
    left, upper, right, lower = BOX
    assert image[0, upper + 1 : lower - 1, left + 1 : right - 1].min() > 0.95


def test_a_table_with_the_size_of_what_is_stored_is_about_that(tmp_path):
    write_coco(tmp_path)
    file = tmp_path / "val" / "0.png"
    tags = Image.Exif()
    tags[0x0112] = 6
    with Image.open(file) as image:
        image.copy().save(file, exif=tags)
    image, _ = load_scenes(f"coco:{tmp_path}", image_size=(3, ROWS, COLUMNS)).test.dataset[0]
    left, upper, right, lower = BOX
    assert image[0, upper + 1 : lower - 1, left + 1 : right - 1].min() > 0.95


def test_key_points_behind_boxes_are_left_out(tmp_path):
    write_yolo(
        tmp_path, line="0 .5 .5 .2 .25 .1 .1 2 .3 .3 2\n", described=f"{scene_folders.DESCRIBED}kpt_shape: [2, 3]\n"
    )
    boxes = load_scenes(f"yolo:{tmp_path}").train.dataset.scenes[0].boxes
    assert torch.allclose(boxes, torch.tensor([[0.4 * COLUMNS, 12, 0.6 * COLUMNS, 20]]), atol=1e-3)


def test_an_image_is_not_taken_from_the_other_part(tmp_path):
    write_coco(tmp_path)
    found = load_scenes(f"coco:{tmp_path}")
    assert {each.file.parent.name for each in found.train.dataset.scenes} == {"train"}
    assert {each.file.parent.name for each in found.test.dataset.scenes} == {"val"}


DETECTOR = """
from itertools import pairwise
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator


class Backbone(nn.Sequential):
    out_channels = 12

    def __init__(self):
        super().__init__()
        for before, after in pairwise((3, 8, 12, 12)):
            self += nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())

    def forward(self, images):
        return {"0": super().forward(images)}


def build(classes):
    anchors = AnchorGenerator(((8, 12),), ((1.0,),))
    return RetinaNet(Backbone(), num_classes=classes, anchor_generator=anchors)
"""


@pytest.fixture
def options(tmp_path):
    (tmp_path / "net.py").write_text(DETECTOR)
    write_yolo(tmp_path / "data", count=8)
    return replace(
        preset_options("quick"),
        model=f"{tmp_path / 'net.py'}:build",
        data=f"yolo:{tmp_path / 'data'}",
        task="detection",
        budget=("macs=0.6",),
        image_size=(3, ROWS, ROWS),
    )


def test_a_named_detector_is_searched_in_its_part_at_the_size_of_the_images(options):
    given = detector_of(options)
    assert [link.path for link in given.model.links] == ["backbone", "head"]
    assert given.data.example[0].shape == (1, *options.image_size)  # not enlarged to 800 rows


def test_a_detector_is_inspected_by_the_size_of_images_or_by_data(options, capsys):
    asked = ["inspect", options.model, "--task", "detection", "--json", "--input-size"]
    main([*asked, "3", "64", "64"])
    bare = json.loads(capsys.readouterr().out)
    main([*asked, "3", "32", "32", "--data", options.data])
    with_data = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in bare["groups"]] == [each["name"] for each in with_data["groups"]]
    assert bare["attainable"]["macs"]["unpruned"] > 3 * with_data["attainable"]["macs"]["unpruned"]


def test_weights_of_the_whole_detector_are_the_parts(options, tmp_path):
    part = detector_of(options).model
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.fill_(0.25)
    torch.save(part.whole.state_dict(), tmp_path / "w.pth")
    found = collect(replace(options, weights=str(tmp_path / "w.pth")), torch.device("cpu"))
    assert found.weights.is_whole
    fresh = detector_of(options).model
    fresh.load_state_dict(found.weights.tensors)
    assert all(bool((each == 0.25).all()) for each in fresh.whole.parameters())


@pytest.mark.long
def test_a_detector_is_made_smaller_in_one_command(options, tmp_path):
    weights = tmp_path / "w.pth"
    torch.save(detector_of(options).model.whole.state_dict(), weights)
    brief = replace(options.distill, epochs=1, warm_up_epochs=0)
    asked = replace(
        options, weights=str(weights), search=replace(options.search, epochs=1, warm_up_epochs=0), distill=brief
    )
    with transprune.runs.prepare(asked, tmp_path / "run") as run:
        transprune.runs.run_all(run)
    result, seen = run.folder.read_json("result.json"), run.folder.read_json("examples.json")
    assert {"map50", "map"} <= result["student"].keys()
    assert [each["name"] for each in seen["classes"]] == ["a", "b"]
    for name in ("teacher", "student"):
        by_class = [each[name] for each in seen["classes"]]
        assert sum(by_class) / len(by_class) == pytest.approx(result[name]["map50"])
    assert "Of 8 objects on 8 test images" in run.folder.file("report.html").read_text("utf-8")
    unpruned = detector_of(options).model
    student = transprune.load(tmp_path / "run", model=unpruned)
    assert isinstance(student.whole, models.RetinaNet)
    assert sum(each.numel() for each in student.parameters()) < sum(each.numel() for each in unpruned.parameters())
    assert student.whole([torch.rand(3, ROWS, ROWS)])[0].keys() == {"boxes", "labels", "scores"}
