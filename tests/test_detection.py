"""Detectors: the part that can be traced is searched, the whole learns by its own loss and draws its own boxes."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import detection as models
from torchvision.models.detection.anchor_utils import AnchorGenerator

import transprune
from transprune.errors import DataError, ModelError, OptionError
from transprune.training.detection import average_precisions, relative_distance

SIDE = 32
GROUND = [torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(each)) for each in range(2)]


class Backbone(nn.Sequential):
    """Three convolutions with norms."""

    out_channels = 12

    def __init__(self) -> None:
        widths = [3, 8, 12, 12]
        super().__init__()
        for before, after in pairwise(widths):
            self += nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())

    def forward(self, images):
        return {"0": super().forward(images)}


def retina(**more) -> nn.Module:
    torch.manual_seed(0)
    anchors = AnchorGenerator(((8, 12),), ((1.0,),))
    return models.RetinaNet(
        Backbone(), num_classes=3, anchor_generator=anchors, **({"min_size": SIDE, "max_size": SIDE} | more)
    ).eval()


def scenes(count: int) -> list:
    """Images with a bright square of one of two colours."""
    draw, found = torch.Generator().manual_seed(count), []
    for _ in range(count):
        image = torch.rand(3, SIDE, SIDE, generator=draw) * 0.3
        x, y = (int(each) for each in torch.randint(0, SIDE - 12, (2,), generator=draw))
        label = int(torch.randint(1, 3, (), generator=draw))
        image[label, y : y + 12, x : x + 12] = 1
        found.append((image, {"boxes": torch.tensor([[x, y, x + 12, y + 12.0]]), "labels": torch.tensor([label])}))
    return found


def together(samples):
    return tuple(map(list, zip(*samples, strict=True)))


def data() -> tuple:
    return tuple(DataLoader(scenes(count), 16, collate_fn=together) for count in (32, 16))


@pytest.fixture(scope="module")
def part():
    return transprune.part_of(retina(), (GROUND,))


def test_the_part_is_what_takes_and_returns_tensors_alone(part):
    assert [link.path for link in part.links] == ["backbone", "head"]
    images = transprune.Surroundings(part).inputs_of((GROUND,))
    with torch.no_grad():
        found = part.eval()(*images)
        features = part.whole.backbone(*images)
        wanted = part.whole.head(list(features.values()))
    assert torch.equal(found["head"]["cls_logits"], wanted["cls_logits"])
    assert torch.equal(found["backbone"]["0"], features["0"])


@pytest.mark.parametrize(
    ("build", "paths"),
    [
        (lambda: models.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3), "head"),
        (
            lambda: models.fasterrcnn_mobilenet_v3_large_320_fpn(
                weights=None, weights_backbone=None, num_classes=3, min_size=SIDE, max_size=64
            ),
            "rpn.head",
        ),
    ],
    ids=["SSDlite", "Faster R-CNN"],
)
def test_detectors_of_torchvision_are_found_in_a_part(build, paths):
    torch.manual_seed(0)
    found = transprune.part_of(build().eval(), (GROUND,))
    assert [link.path for link in found.links] == ["backbone", paths]


@pytest.mark.parametrize(
    "name",
    [
        *("retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large"),
        *("fasterrcnn_mobilenet_v3_large_320_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"),
    ],
)
@pytest.mark.long
def test_a_whole_detector_of_torchvision_goes_in_and_a_smaller_one_comes_out(name):
    torch.manual_seed(0)
    sizes = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 64}
    detector = getattr(models, name)(weights=None, weights_backbone=None, num_classes=3, **sizes).eval()
    found = transprune.part_of(detector, (GROUND,))
    inputs = transprune.Surroundings(found).inputs_of((GROUND,))
    space = transprune.inspect(found, inputs)
    full = transprune.shrink(found, space.full_architecture(), inputs).whole.eval()
    small = transprune.shrink(found, space.smallest_architecture(), inputs).whole.eval()
    assert type(small) is type(detector)
    assert sum(each.numel() for each in small.parameters()) < sum(each.numel() for each in detector.parameters())
    with torch.no_grad():
        for one, other in zip(full(GROUND), detector(GROUND), strict=True):
            assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in other)
        assert {key: value.shape[1:] for key, value in small(GROUND)[0].items()} == {
            key: value.shape[1:] for key, value in other.items()
        }


def test_a_smaller_part_is_a_smaller_whole_of_the_same_class(part):
    before = copy.deepcopy(part.whole.state_dict())
    inputs = transprune.Surroundings(part).inputs_of((GROUND,))
    space = transprune.inspect(part, inputs)
    full = transprune.shrink(part, space.full_architecture(), inputs)
    small = transprune.shrink(part, space.smallest_architecture(), inputs)
    assert type(small) is transprune.Part
    assert type(small.whole) is models.RetinaNet
    assert small.whole.backbone[0].out_channels < part.whole.backbone[0].out_channels
    with torch.no_grad():
        for one, other in zip(full.whole.eval()(GROUND), part.whole.eval()(GROUND), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in other)
        assert small.whole.eval()(GROUND)[0].keys() == other.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in part.whole.state_dict().items())


def test_what_surrounds_a_part_computes_the_detectors_own_loss(part):
    task = transprune.detection(part)
    batch = together(scenes(4))
    inputs, targets = task.split(batch)
    detector = copy.deepcopy(part.whole).train()
    wanted = sum(detector(*map(list, batch)).values())
    running = copy.deepcopy(part).train()
    loss = task.loss_of(running(*inputs), targets)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    loss.backward()
    assert running.whole.backbone[0].weight.grad.abs().sum() > 0
    assert part.whole.training is False
    assert all(each.grad is None for each in part.parameters())


def test_a_random_choice_of_sizes_is_made_once():
    found = transprune.part_of(retina(min_size=(16, 24, 32)), (GROUND,))
    task = transprune.detection(found)
    for _ in range(4):
        inputs, targets = task.split(together(scenes(2)))
        assert inputs[0].shape[-1] == 32
        assert task.loss_of(found(*inputs), targets).isfinite()


def test_a_detector_is_compressed_searched_and_distilled(part):
    task, feeds = transprune.detection(part), data()
    recipe = {"epochs": 2, "warm_up_epochs": 1, "learning_rate": 0.003, "optimizer": "adamw"}
    teacher = transprune.train(part, feeds, transprune.TrainingOptions(**recipe), task=task)
    before, after = (transprune.evaluate(each, feeds, task=task) for each in (part, teacher))
    assert after.loss < before.loss
    assert 0 <= after.map <= after.map50 <= 100
    small = transprune.compress(teacher, feeds, "macs=0.5", task=task)
    assert small.spent[0] <= small.limits[0].most
    assert small.student.whole.eval()(GROUND)[0].keys() == {"boxes", "scores", "labels"}
    brief = recipe | {"epochs": 1, "warm_up_epochs": 0}
    options = transprune.SearchOptions(**brief, start="model", prior="scores", distillation=0.5)
    found = transprune.search(teacher, feeds, "macs=0.5", options, task=task)
    student = transprune.distill(found.student, teacher, feeds, transprune.DistillationOptions(**brief), task=task)
    assert type(student.whole) is models.RetinaNet
    assert transprune.evaluate(student, feeds, task=task).loss < 2 * after.loss


def test_average_precision_is_that_of_coco():
    square = torch.tensor([[0, 0, 10, 10.0]])
    true = {"boxes": square, "labels": torch.tensor([1])}
    hit = {"boxes": square + torch.tensor([0, 0, 0, 2.0]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    found = average_precisions([{"found": hit, "true": true}])
    assert found["map50"] == pytest.approx(100)  # 100 of 120: right at overlaps up to 0.8, seven of ten
    assert found["map"] == pytest.approx(70)
    half = average_precisions([{"found": hit, "true": true}, {"found": nothing, "true": true}])
    assert half["map50"] == pytest.approx(100 * 51 / 101)  # precision 1 at 51 of 101 recalls
    assert average_precisions([{"found": nothing, "true": true}]) == {"map50": 0, "map": 0}


def test_each_tensor_counts_alike_for_a_student():
    wanted = {"a": torch.tensor([0.0, 20.0]), "b": torch.tensor([0.0, 2000.0])}
    assert relative_distance(wanted, wanted) == 0
    moved = {"a": wanted["a"] + 10, "b": wanted["b"] + 1000}
    assert relative_distance(moved, wanted).item() == pytest.approx(0.5, rel=1e-3)  # 100 of a variance of 200


def test_metrics_of_all_samples_do_not_depend_on_batches():
    task = transprune.Task(
        loss=nn.functional.mse_loss,
        metrics={
            "median": transprune.Metric(
                lambda outputs, _: outputs[:, 0].tolist(), finish=lambda seen: torch.tensor(seen).median(), of_all=True
            )
        },
    )
    numbers = torch.arange(15.0)[:, None]
    for size in (4, 15):
        pairs = DataLoader(list(zip(numbers, numbers, strict=True)), size)
        assert transprune.evaluate(nn.Identity(), (pairs, pairs), task=task).median == 7


def test_parts_may_be_named(part):
    found = transprune.part_of(part.whole, (GROUND,), ["backbone"])
    assert [link.path for link in found.links] == ["backbone"]
    with pytest.raises(ModelError, match=r"'transform'.*no module of it that has weights; expected one of .*'head'"):
        transprune.part_of(part.whole, (GROUND,), ["transform"])


def test_a_part_that_is_given_what_is_computed_between_is_refused():
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, images):
            return self.second(self.first(torch.stack(images)) + 1)

    with pytest.raises(ModelError, match=r"'second' of the Between.*computed between"):
        transprune.part_of(Between(), (GROUND,), ["first", "second"])
    assert [link.path for link in transprune.part_of(Between(), (GROUND,)).links] == ["first"]


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ({"boxes": torch.tensor([[0, 0, 40, 10.0]]), "labels": torch.tensor([1])}, r"\[0.0, 0.0, 40.0, 10.0\]"),
        ({"boxes": torch.tensor([[8, 0, 4, 10.0]]), "labels": torch.tensor([1])}, "x1 < x2"),
        ({"boxes": torch.zeros(2, 4), "labels": torch.tensor([1])}, r"labels \[1\]"),
        ({"boxes": torch.zeros(0, 4)}, "boxes and labels"),
        ({"boxes": torch.tensor([[0, float("nan"), 4, 10.0]]), "labels": torch.tensor([1])}, r"\[0.0, nan, 4.0"),
        ({"boxes": torch.tensor([[0, 0, 4, 10.0]]), "labels": torch.tensor([-1])}, "label -1"),
    ],
)
def test_boxes_that_no_image_has_are_named(part, objects, said):
    task = transprune.detection(part)
    with pytest.raises(DataError, match=f"image 1 of a batch.*{said}"):
        task.split((GROUND, [scenes(1)[0][1], objects]))


def test_a_batch_of_something_else_is_answered(part):
    with pytest.raises(DataError, match="a list of images"):
        transprune.detection(part).split((torch.zeros(2, 3), [{}]))


def test_a_detector_without_losses_is_answered(part):
    task = transprune.detection(transprune.part_of(replaced_loss(part.whole), (GROUND,)))
    inputs, targets = task.split(together(scenes(2)))
    with pytest.raises(OptionError, match="expected a dict of losses"):
        task.loss_of(copy.deepcopy(part)(*inputs), targets)


class Chain(nn.Module):
    """Convolutions with something between, at the start and at the end that no part holds, and boxes only if large."""

    def __init__(self, between=lambda features: features, start=None) -> None:
        super().__init__()
        self.start, self.between = start or nn.Identity(), between
        self.first, self.second, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.BatchNorm1d(1)

    def forward(self, images):
        found = self.second(self.between(self.first(self.start(torch.stack(images)) + 0)))
        found.mul_(2)
        return self.norm(found[found > 0 if self.training else found > 100][:, None])


def test_a_part_whose_tensors_are_changed_in_place_between_is_refused_even_where_nothing_is_found():
    assert [link.path for link in transprune.part_of(Chain(), (GROUND,), ["first", "second"]).links][1:] == ["second"]
    with pytest.raises(ModelError, match="in place"):
        transprune.part_of(Chain(lambda features: features.mul_(3)), (GROUND,), ["first", "second"])


def test_what_surrounds_a_part_changes_neither_its_answers_nor_itself():
    found = transprune.part_of(Chain(), (GROUND,), ["first", "second"])
    around = transprune.Surroundings(found)
    with torch.no_grad():
        answers = found(*around.inputs_of((GROUND,)))
        kept = {name: each.clone() for name, each in answers.items()}
        around.outputs((GROUND,), answers, training=True)
    assert all(torch.equal(each, kept[name]) for name, each in answers.items())
    assert all(torch.equal(each, found.whole.state_dict()[name]) for name, each in around.whole.state_dict().items())


def test_inputs_go_to_where_the_whole_is():
    around = transprune.Surroundings(transprune.part_of(Chain(start=nn.Conv2d(3, 3, 1)), (GROUND,), ["first"]))
    around.whole.to("meta")
    assert around.inputs_of((GROUND,))[0].device.type == "meta"


@pytest.mark.parametrize("modules", [["backbone", "backbone.0"], ["backbone.0", "backbone"]])
def test_a_part_that_counts_a_module_twice_is_refused(part, modules):
    with pytest.raises(ModelError, match=r"'backbone\.0' of the RetinaNet.*inside of 'backbone'"):
        transprune.part_of(part.whole, (GROUND,), modules)


@pytest.mark.parametrize("modules", ["backbone", ["backbone", "backbone"]])
def test_one_module_may_be_named(part, modules):
    assert [link.path for link in transprune.part_of(part.whole, (GROUND,), modules).links] == ["backbone"]


def test_surroundings_of_something_else_are_answered(part):
    with pytest.raises(ModelError, match=r"RetinaNet.*expected a Part"):
        transprune.Surroundings(part.whole)


def replaced_loss(detector):
    other = copy.deepcopy(detector)
    other.compute_loss = lambda *_: [torch.zeros(())]
    return other


def test_what_is_far_off_does_not_upset_the_training():
    wanted = {"a": torch.tensor([0.0, 20.0])}
    near, far = (relative_distance({"a": wanted["a"] + 20.0 * times}, wanted).item() for times in (100, 200))
    assert far < 2.1 * near
