"""A teacher whose weights are given is looked at before anything is trained, and what looks wrong is said."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from transprune.data import Augmentation, ImageData, LoaderData, MemorySplit
from transprune.data.sources import normalised
from transprune.models.weights import Weights
from transprune.runs.material import _as_configured, judge_teacher
from transprune.runs.preparation import _record_teacher
from transprune.training.tasks import Task

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(samples=400, right=1.0):
    """Dark and bright images, of which a share has the right label."""
    labels = torch.arange(samples) % 2
    brightness = 70 + 100 * labels + torch.arange(samples) % 7
    pixels = brightness[:, None, None, None].expand(-1, 3, 4, 4).to(torch.uint8)
    wrong = torch.arange(samples) >= right * samples
    return MemorySplit(pixels, torch.where(wrong, 1 - labels, labels))


DATA = ImageData(
    name="two",
    train=images(),
    test=images(),
    classes=("dark", "bright"),
    image_size=(3, 4, 4),
    mean=IMAGENET[0],
    std=IMAGENET[1],
    augmentation=Augmentation(),
)


def network(sign=1.0):
    """Tells dark from bright images that are normalised as ImageNet."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 48) * sign)
        model[1].bias.copy_(torch.tensor([1.0, -1.0]) * sign * 48 * 0.1)
    return model


def material(**parts):
    """What is looked at of a run: of no task but telling images apart."""
    return SimpleNamespace(options=SimpleNamespace(task=None), **parts)


def judged(model, data):
    weights = Weights(tensors=dict(model.state_dict()))
    fresh = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    return judge_teacher(material(weights=weights, data=data, model=fresh), torch.device("cpu"))


def test_a_good_teacher_raises_no_doubt():
    found = judged(network(), DATA)
    assert (found.metric, found.figure, found.samples, found.doubts) == ("top1", 100.0, 400, ())
    assert str(found) == "the given teacher answers 100.00 % of 400 test images right"


def test_another_normalisation_is_said_with_the_one_that_fits():
    found = judged(network(), normalised(DATA, "none", "none"))
    assert found.figure < 60
    (doubt,) = found.doubts
    assert "100.0 % normalised as imagenet (--mean imagenet --std imagenet)" in doubt


def test_another_order_of_the_classes_is_said():
    found = judged(network(sign=-1.0), DATA)
    assert found.figure == 0
    (doubt,) = found.doubts
    assert "with the classes in another order it would be 100.0 %: here they are 'dark', 'bright'; bring them" in doubt


def test_an_accuracy_that_guessing_gives_is_said():
    (doubt,) = judged(network(sign=0.0), DATA).doubts
    assert "guessing gives as much" in doubt
    assert "--mean" in doubt


def test_an_accuracy_far_below_that_on_training_images_is_said():
    found = judged(network(), replace(DATA, test=images(right=0.7)))
    assert found.figure == pytest.approx(70)
    assert "of 400 training images it answers 100.0 %" in found.doubts[0]


def test_nothing_is_said_where_there_is_nothing_to_judge():
    assert judge_teacher(material(weights=None, data=DATA), torch.device("cpu")) is None
    partial = Weights(tensors={}, missing=("1.weight",))
    assert judge_teacher(material(weights=partial, data=DATA), torch.device("cpu")) is None
    assert judged(network(), replace(DATA, is_labelled=False)) is None


@pytest.mark.parametrize("batches", [1, 40])
def test_a_teacher_of_another_task_is_measured_on_the_first_samples(batches):
    model = nn.Linear(2, 1)
    inputs = torch.arange(10.0).view(5, 2)
    with torch.no_grad():
        wanted = model(inputs) + 0.5
    data = LoaderData(train=[(inputs, wanted)], test=[(inputs, wanted)] * batches, example=inputs)
    weights = Weights(tensors=dict(model.state_dict()))
    given = material(weights=weights, data=data, model=nn.Linear(2, 1), task=Task(loss=nn.functional.mse_loss))
    before = torch.get_rng_state()
    found = judge_teacher(given, torch.device("cpu"))
    assert (found.metric, found.samples) == ("loss", min(5 * batches, 130))
    assert found.figure == pytest.approx(0.25)
    assert str(found) == f"the given teacher has loss 0.25 on {found.samples} test samples"
    assert torch.equal(torch.get_rng_state(), before)
    said = {}
    run = SimpleNamespace(decide=lambda what, why, **more: said.update(more))
    _record_teacher(run, replace(found, metric="samples"))  # a name that the record has itself
    assert (said["metric"], said["figure"], said["samples"]) == ("samples", found.figure, found.samples)


def test_a_doubt_is_said_aloud():
    said = []
    run = SimpleNamespace(decide=lambda what, why, **more: said.append((why, more["is_aloud"])))
    for data in (DATA, normalised(DATA, "none", "none")):
        _record_teacher(run, judged(network(), data))
    assert [is_aloud for _, is_aloud in said] == [False, True]


class Configured(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": [0.25, 0.25, 0.25]}


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ({}, (0.5, 0.5, 0.5)),
        ({"weights": None}, IMAGENET[0]),
        ({"mean": "data"}, IMAGENET[0]),
        ({"std": "none"}, IMAGENET[0]),
    ],
)
def test_a_network_with_given_weights_says_how_it_is_normalised_unless_it_is_asked(options, mean):
    asked = SimpleNamespace(**{"weights": "w.pth", "mean": None, "std": None, "model": "timm:x"} | options)
    assert _as_configured(asked, DATA, Configured()).mean == mean
    assert _as_configured(asked, DATA, nn.Linear(1, 1)) is DATA
    grey = replace(normalised(DATA, (0.5,), (0.5,)), image_size=(1, 4, 4), mean=(0.5,), std=(0.5,))
    assert _as_configured(asked, grey, Configured()) is grey


def test_a_word_for_one_figure_holds_for_both():
    assert (normalised(DATA, "cifar10", None).std, normalised(DATA, None, "none").mean) == (
        (63.0 / 255, 62.1 / 255, 66.7 / 255),
        (0.0, 0.0, 0.0),
    )
    assert normalised(DATA, (0.1,), None).std == DATA.std
    assert (normalised(DATA, "data", "data").mean, normalised(DATA, "data", None).std) == IMAGENET
