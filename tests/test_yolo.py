"""YOLOs of ultralytics: what is searched, the loss and the boxes, and what is saved.

Ultralytics is an extra that not every machine has; what needs no code of it is tried on a network of the same form.
"""

import copy
import importlib.util
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import transprune
from transprune.errors import DataError, ModelError, OptionError
from transprune.models.by_name import build_model
from transprune.reading.inspection import fixed_by_forward
from transprune.runs.material import network_and_example
from transprune.training.parts import DenseDetector, is_dense
from yolo_like import Detector, Handle, library

needs_ultralytics = pytest.mark.skipif(
    importlib.util.find_spec("ultralytics") is None, reason="needs transprune[ultralytics]"
)
VERSIONS = ("yolov8n", "yolo11n", "yolo12n", "yolo26n")
SIDE = 64
BOXES = torch.tensor([[8.0, 8, 40, 40], [20, 30, 60, 62]])


class Attention(nn.Module):
    """Splits as blocks of YOLO do: by a number that its forward holds."""

    def __init__(self) -> None:
        super().__init__()
        self.cv1 = nn.Module()
        self.cv1.conv, self.rest = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        one, other = self.cv1.conv(images).split((4, 4), 1)
        return self.last(F.relu(self.rest(torch.cat([one, other.relu()], 1))))


Attention.__module__, Attention.__name__, Attention.__qualname__ = "ultralytics.nn.modules.block", "C2PSA", "C2PSA"


def scenes(count: int = 2, side: int = SIDE, labels: tuple[int, int] = (1, 2)):
    torch.manual_seed(0)
    images = [torch.rand(3, side, side) for _ in range(count)]
    return images, [{"boxes": BOXES.clone(), "labels": torch.tensor(labels)} for _ in images]


def ultralytics_batch(images: list[Tensor], labels: tuple[int, int]) -> dict[str, Tensor]:
    centres = torch.cat([(BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]], 1) / SIDE
    return {
        "img": torch.stack(images),
        "batch_idx": torch.arange(len(images)).repeat_interleave(2).float(),
        "cls": torch.tensor(labels)[:, None].repeat(len(images), 1).float() - 1,
        "bboxes": centres.repeat(len(images), 1),
    }


def test_a_yolo_is_taken_whole_up_to_what_its_heads_say():
    detector = Detector()
    before = copy.deepcopy(detector.state_dict())
    images, _ = scenes()
    part = transprune.part_of(detector, (images,))
    assert isinstance(part, DenseDetector)
    assert part.whole is detector
    space = transprune.inspect(part, torch.stack(images))
    assert [group.width for group in space.groups] == [8, 12]  # what the heads read too
    small = transprune.shrink(part, space.smallest_architecture(), torch.stack(images))
    assert type(small.whole) is Detector
    assert small.whole.model[2].out_channels < 12
    assert transprune.count_macs(small, torch.stack(images)) == space.macs(space.smallest_architecture())
    for training in (True, False):
        (said,) = part.train(training)(torch.stack(images))
        assert {name: tuple(each.shape) for name, each in said.items()} == {"boxes": (2, 4, 256), "scores": (2, 2, 256)}
    assert all(torch.equal(before[name], each) for name, each in detector.state_dict().items())


def test_other_networks_are_no_yolos():
    assert not is_dense(nn.Sequential(nn.Conv2d(3, 4, 1)))
    other = Detector()
    other.model = nn.Sequential(*other.model, nn.Identity())
    assert not is_dense(other)


def test_batches_of_both_forms_are_the_same():
    images, objects = scenes()
    task = transprune.detection(transprune.part_of(Detector(), (images,)))
    inputs, targets = task.split((images, objects))
    given = ultralytics_batch(images, (1, 2))
    again, others = task.split(given)
    assert torch.equal(inputs[0], again[0])
    for one, other in zip(targets, others, strict=True):
        assert torch.equal(one.objects["labels"], other.objects["labels"])
        torch.testing.assert_close(one.objects["boxes"], other.objects["boxes"])
    bytes_ = {**given, "img": torch.full((2, 3, SIDE, SIDE), 51, dtype=torch.uint8)}
    torch.testing.assert_close(task.split(bytes_)[0][0], torch.full((2, 3, SIDE, SIDE), 0.2))


def test_labels_and_sizes_that_no_yolo_has_are_named():
    images, objects = scenes()
    task = transprune.detection(transprune.part_of(Detector(), (images,)))
    for labels in ((0, 1), (1, 3)):
        with pytest.raises(DataError, match="expected 1 to 2"):
            task.split((images, scenes(labels=labels)[1]))
    with pytest.raises(DataError, match="expected one size"):
        task.split(([images[0], torch.rand(3, 96, 64)], objects))
    other = Detector()
    other.task = "segment"
    with pytest.raises(OptionError, match="'segment'"):
        transprune.detection(transprune.part_of(other, (images,)))


def test_a_part_reads_what_comes_back_in_whatever_mode_its_whole_is():
    images = torch.rand(2, 3, SIDE, SIDE)
    for training in (True, False):
        whole = Detector().train(training)
        (said,) = transprune.part_of(whole, (images,))(images)
        assert set(said) == {"boxes", "scores"}
        assert whole.training is training


def test_the_object_around_a_yolo_is_refused_before_it_does_anything():
    handle, images = Handle(), torch.rand(2, 3, SIDE, SIDE)
    for looks in (
        lambda: transprune.part_of(handle, (images,)),
        lambda: transprune.inspect(handle, images),
        lambda: transprune.count_macs(handle, images),
        lambda: transprune.compress(handle, [images] * 16, "macs=0.5"),
        lambda: transprune.evaluate(handle, ([(images, images)], [(images, images)]), task=transprune.regression()),
    ):
        with pytest.raises(ModelError, match=r"its `\.model`"):
            looks()


def test_a_trained_yolo_says_its_number_of_classes_itself(monkeypatch):
    for name, module in library(Detector()).items():
        monkeypatch.setitem(sys.modules, name, module)
    part, example = network_and_example(
        "ultralytics:best.pt", "", task="detection", length=0, image_size=(3, SIDE, SIDE), classes=10
    )
    assert part.whole.model[-1].nc == 2
    assert [tuple(each.shape) for each in example] == [(1, 3, SIDE, SIDE)]


def test_images_and_weights_that_no_yolo_takes_are_named():
    images = torch.rand(2, 3, 62, SIDE)
    with pytest.raises(
        ModelError, match="62 rows and 64 columns: expected multiples of its largest stride, 4, such as 64"
    ):
        transprune.inspect(transprune.part_of(Detector(), (images,)), images)
    images = torch.rand(2, 3, SIDE, SIDE)
    with pytest.raises(ModelError, match=r"torch\.float16: expected 32-bit floats"):
        transprune.inspect(transprune.part_of(Detector().half(), (images,)), images)


def test_what_a_forward_splits_by_one_number_keeps_its_width():
    network = Attention()
    assert fixed_by_forward(network) == {"cv1.conv": "C2PSA"}
    space = transprune.inspect(network, torch.rand(2, 3, 8, 8))
    assert [group.layers for group in space.groups] == [("rest",)]
    assert any("the forward of C2PSA" in each.reason for each in space.fixed)
    assert type(transprune.shrink(network, space.smallest_architecture(), torch.rand(2, 3, 8, 8))) is Attention


@pytest.mark.skipif(importlib.util.find_spec("ultralytics") is not None, reason="it is installed")
def test_without_ultralytics_its_name_is_refused():
    with pytest.raises(ModelError, match="transprune\\[ultralytics\\]"):
        build_model("ultralytics:best.pt", classes=3, image_channels=3)


@pytest.fixture(scope="module", params=VERSIONS)
def yolo(request, tmp_path_factory):
    from ultralytics import YOLO

    torch.manual_seed(0)
    return YOLO(f"{request.param}.yaml")


@needs_ultralytics
def test_losses_and_boxes_are_its_own(yolo):
    from ultralytics.utils import DEFAULT_CFG
    from ultralytics.utils.nms import non_max_suppression

    images, objects = scenes(labels=(1, 80))
    whole = copy.deepcopy(yolo.model).eval()
    for module in whole.modules():
        if isinstance(module, nn.Conv2d) and module.out_channels == 80 and module.bias is not None:
            nn.init.normal_(module.bias, -2)  # so that something is found
    part = transprune.part_of(whole, (images,)).eval()
    task = transprune.detection(part)
    inputs, targets = task.split((images, objects))
    with torch.no_grad():
        outputs, returned = part(*inputs), whole(*inputs)
        own = copy.deepcopy(whole)
        own.args = DEFAULT_CFG
        losses, _ = own.loss(ultralytics_batch(images, (1, 80)), returned)
    torch.testing.assert_close(task.loss(outputs, targets), losses.sum() / 2)
    drawn = non_max_suppression(returned[0], conf_thres=0.001, iou_thres=0.7, max_det=300)
    for found, expected in zip(task.boxes(outputs, targets), drawn, strict=True):
        assert len(expected) > 0
        torch.testing.assert_close(found["found"]["boxes"], expected[:, :4])
        assert torch.equal(found["found"]["labels"], expected[:, 5].long() + 1)


@needs_ultralytics
def test_students_are_of_its_own_classes_and_files(yolo, tmp_path):
    from ultralytics import YOLO

    images, _ = scenes()
    inputs = torch.stack(images)
    part = transprune.part_of(yolo.model, (images,))
    space = transprune.inspect(part, inputs)
    for seed in range(2):
        architecture = space.random_architecture(seed) if seed else space.smallest_architecture()
        student = transprune.shrink(part, architecture, inputs)
        assert type(student) is DenseDetector
        assert type(student.whole) is type(yolo.model)
        assert transprune.count_macs(student, inputs) == space.macs(architecture)
    holder = YOLO(f"{yolo.model.yaml['yaml_file']}")
    holder.model = student.whole
    holder.save(tmp_path / "student.pt")
    again = YOLO(tmp_path / "student.pt").model
    half = copy.deepcopy(student.whole).half().float().eval()  # as its files hold weights
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(inputs)[0], half(inputs)[0])


@needs_ultralytics
def test_a_yolo_is_searched_and_distilled(yolo):
    if "v8" not in yolo.model.yaml["yaml_file"]:
        pytest.skip("one of them")
    images, objects = scenes(16, labels=(1, 80))
    part = transprune.part_of(yolo.model, (images[:2],))
    task = transprune.detection(part)
    pairs = list(zip(images, objects, strict=True))
    batches = DataLoader(pairs, 8, collate_fn=lambda samples: tuple(map(list, zip(*samples, strict=True))))
    brief = {"epochs": 1, "warm_up_epochs": 0}
    options = transprune.SearchOptions(**brief, start="model", prior="none", trial_epochs=0)
    found = transprune.search(part, (batches, batches), "macs=0.6", options, task=task)
    options = transprune.DistillationOptions(**brief, learning_rate=0.001)
    student = transprune.distill(found.student, part, (batches, batches), options, task=task)
    assert type(student.whole) is type(yolo.model)
    assert set(transprune.evaluate(student, (batches, batches), task=task).metrics) == {"map50", "map"}
