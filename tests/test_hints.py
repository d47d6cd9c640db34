"""Hints: where student and teacher are compared inside, by how much, and that nothing of it stays behind."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import transprune
from transprune.budget import limits_of
from transprune.costs import COSTS
from transprune.data import load_data, make_loader
from transprune.errors import OptionError
from transprune.options import HINTS, DistillationOptions, TrainingOptions
from transprune.tas.baselines import uniform_architecture
from transprune.training.hints import HintPlace, Hints, hint_place
from transprune.training.update import settled

EXAMPLE = torch.zeros(1, 3, 16, 16)
torch.manual_seed(0)


class Pyramid(nn.Module):
    """Maps, a pool, a hidden layer and logits."""

    def __init__(self, widths: tuple[int, ...], hidden: int, classes: int = 5):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
            for a, b in itertools.pairwise((3, *widths))
        )
        self.hidden = nn.Linear(widths[-1], hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, images):
        for stage in self.stages:
            images = stage(images)
        return self.head(self.hidden(images.mean((2, 3))).relu())


class Tokens(nn.Module):
    """A layer of a transformer on tokens, and a mean."""

    def __init__(self, width: int):
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(16, width), nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, rows):
        return {"logits": self.head(self.norm(self.embed(rows)).mean(1))}


def test_the_place_is_the_last_one_with_several_positions():
    found = hint_place(Pyramid((4, 6), 7), Pyramid((8, 12), 9), EXAMPLE)
    assert found == HintPlace("stages.1", 1, 6, 12)
    assert hint_place(Tokens(8), Tokens(12), torch.zeros(1, 7, 16)) == HintPlace("norm", 2, 8, 12)


def test_features_of_one_position_serve_where_there_are_no_others():
    def plain(width):
        return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4))

    assert hint_place(plain(3), plain(5), torch.zeros(1, 6)) == HintPlace("1", 1, 3, 5)
    assert hint_place(plain(5), plain(5), torch.zeros(1, 6)) == HintPlace("1", 1, 5, 5)


@pytest.mark.parametrize(
    "teacher",
    [lambda images: images, nn.Linear(4, 4), torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))],
    ids=["function", "other-names", "torchscript"],
)
def test_without_modules_in_common_there_is_no_place(teacher):
    student = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert hint_place(student, teacher, torch.zeros(1, 4)) is None


def test_the_first_hint_is_what_least_squares_leave():
    student, teacher = Pyramid((4, 6), 7).eval(), Pyramid((8, 12), 9).eval()
    images = torch.randn(16, 3, 16, 16)
    hints = Hints(student, teacher, hint_place(student, teacher, EXAMPLE))
    student(images), teacher(images)
    found = hints().item()
    with torch.no_grad():
        maps = [
            net.stages[1](net.stages[0](images)).movedim(1, -1).flatten(0, 2).double() for net in (student, teacher)
        ]
    known, wanted = (each.numpy() for each in maps)
    known = np.hstack([known, np.ones((len(known), 1))])
    left = wanted - known @ np.linalg.lstsq(known, wanted, rcond=None)[0]
    assert found == pytest.approx(np.square(left).mean() / wanted.var(), rel=1e-3)
    hints.stop()


def test_equal_networks_leave_nothing():
    network = Pyramid((4, 6), 7).eval()
    other, images = copy.deepcopy(network), torch.randn(16, 3, 16, 16)
    hints = Hints(network, other, hint_place(network, other, EXAMPLE))
    network(images), other(images)
    assert hints().item() < 1e-4
    hints.stop()


def test_a_layer_that_did_not_run_leaves_no_hint():
    student, teacher = Pyramid((4, 6), 7), Pyramid((8, 12), 9)
    hints = Hints(student, teacher, hint_place(student, teacher, EXAMPLE))
    teacher(EXAMPLE)
    assert hints().item() == 0
    hints.stop()


@pytest.fixture(scope="module")
def distilled():
    data = load_data("digits")
    taught = TrainingOptions(epochs=3, warm_up_epochs=0, batch_size=64)
    setup = transprune.Setup(seed=0, device="cpu")
    teacher = transprune.train(transprune.resnet(8, image_channels=1), data, taught, setup=setup)
    space = transprune.inspect(teacher, torch.zeros(1, 1, 8, 8))
    student = transprune.shrink(
        teacher, uniform_architecture(space, limits_of(["macs=0.4"], space, COSTS)), torch.zeros(1, 1, 8, 8)
    )

    def learn(hints: float, **others):
        epochs: list = []
        options = DistillationOptions(epochs=2, warm_up_epochs=0, batch_size=64, learning_rate=0.01, hints=hints)
        setup = transprune.Setup(seed=0, device="cpu", on_epoch=epochs.append, **others)
        return transprune.distill(student, teacher, data, options, setup=setup), epochs

    return student, teacher, learn


def test_hints_are_part_of_the_loss_and_draw_the_student_to_its_teacher(distilled):
    _, teacher, learn = distilled
    data = load_data("digits")
    images, _ = next(iter(make_loader(data.test, data, batch_size=256, train=False, seed=0, device="cpu")))

    def unexplained(network):
        network, guide = copy.deepcopy(network).eval(), copy.deepcopy(teacher).eval()
        hints = Hints(network, guide, hint_place(network, guide, images))
        with torch.no_grad():
            network(images), guide(images)
            return hints().item()

    (without, plain), (with_hints, hinted) = learn(0.0), learn(30.0)
    assert hinted[0]["loss"] > plain[0]["loss"] + 1
    assert unexplained(with_hints) < unexplained(without)


def test_nothing_watches_any_network_afterwards(distilled):
    student, teacher, learn = distilled
    found, _ = learn(30.0)
    for network in (student, teacher, found):
        assert not any(module._forward_hooks for module in network.modules())
    assert found.state_dict().keys() == student.state_dict().keys()


def test_a_weight_below_zero_is_refused():
    with pytest.raises(OptionError, match=r"cannot distill with hints=-1.0: expected a weight of at least 0"):
        DistillationOptions(hints=-1.0)


@pytest.mark.parametrize(
    ("network", "weight"),
    [
        (Pyramid((4, 6), 7), HINTS),
        (Tokens(8), 0.0),
        (nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), 0.0),
    ],
    ids=["batch-norms", "layer-norms", "no-norms"],
)
def test_the_kind_of_network_decides_where_the_recipe_leaves_it_open(network, weight):
    recipe = transprune.get_preset("medium").distill
    assert recipe.hints is None
    assert settled(recipe, network).hints == weight
    assert settled(replace(recipe, hints=3.0), network).hints == 3.0
    assert settled(transprune.get_preset("paper-cifar").distill, network).hints == 0


def test_a_map_that_was_read_back_is_not_fitted_again():
    student, teacher = Pyramid((4, 6), 7).eval(), Pyramid((8, 12), 9).eval()
    place = hint_place(student, teacher, EXAMPLE)
    hints, later = (Hints(student, teacher, place) for _ in range(2))
    assert not later.is_fitted
    student(EXAMPLE), teacher(EXAMPLE)
    hints()
    later.load_state_dict(hints.state_dict())
    student(EXAMPLE + 1), teacher(EXAMPLE + 1)
    later()
    torch.testing.assert_close(later.map.weight, hints.map.weight, rtol=0, atol=0)
    hints.stop(), later.stop()


def test_a_student_that_is_further_off_than_a_constant_is_not_driven_harder():
    student, teacher = Pyramid((4, 6), 7).eval(), Pyramid((8, 12), 9).eval()
    images = torch.randn(16, 3, 16, 16)
    hints = Hints(student, teacher, hint_place(student, teacher, EXAMPLE), weight=2.0)
    student(images), teacher(images)
    hints()
    with torch.no_grad():
        hints.map.weight.mul_(100)
    student(images), teacher(images)
    far = hints()
    assert 2 < far.item() < 2 * (1 + np.log(1e6))
    hints.stop()
